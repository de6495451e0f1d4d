"""What a port speaks. Each protocol gets a connection of its own and sees a beginning that is harmless to the others.

Nothing is asked of the internet: where a request needs a destination, it is the probed port itself.
"""

import asyncio
import base64
import socket
import struct
from collections.abc import Awaitable
from typing import TypeVar

from engine.discovery import Access, Speech
from shared.config import ProxyConfig
from shared.wire.socks5 import (
    NO_ACCEPTABLE_METHOD,
    NO_AUTHENTICATION,
    PASSWORD_VERSION,
    UDP_ASSOCIATE,
    USERNAME_PASSWORD,
    VERSION,
    Reply,
    encode_address,
)

__all__ = ["probe", "read_http_head"]

T = TypeVar("T")

SOCKS4_VERSION, SOCKS4_CONNECT = 4, 1
SOCKS4_REPLIES = range(0x5A, 0x5E)  # granted, rejected, no identd, wrong user
HTTP_HEAD_MAX = 8192  # bytes
CREDENTIAL_MAX = 255  # bytes, RFC 1929 (2)
_PROXY_HEADERS = ("proxy-agent", "proxy-connection", "proxy-authenticate", "via", "x-squid-error")
"""What a proxy says of itself when it refuses a CONNECT; a web server says none of it."""


async def probe(proxy: ProxyConfig, *, timeout: float) -> Speech:
    """Return what `proxy`'s host and port speak; `timeout` seconds for each protocol. Its credentials are offered."""
    try:
        (await _open(proxy, timeout)).close()
    except ConnectionRefusedError:
        return Speech(trouble="nobody listens there")
    except TimeoutError:
        return Speech(trouble="no answer")
    except OSError as error:
        return Speech(trouble=error.strerror or str(error))
    # Together, since a proxy of the one protocol is silent to the beginning of the other.
    (socks5, udp), http = await asyncio.gather(
        _attempt(_probe_socks5(proxy, timeout), (Access.NO, False), timeout),
        _attempt(_probe_http(proxy, timeout), Access.NO, timeout),
    )
    socks4 = Access.NO
    if socks5 is http is Access.NO:
        socks4 = await _attempt(_probe_socks4(proxy, timeout), Access.NO, timeout)
        if socks4 is Access.NO:
            return Speech(trouble="speaks no protocol of proxies")
    return Speech(socks5, udp, socks4, http)


async def _attempt(attempt: Awaitable[T], failure: T, timeout: float) -> T:
    """Return what came of an attempt, `failure` when the port hung up or was silent on what it does not speak."""
    try:
        async with asyncio.timeout(timeout):
            return await attempt
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return failure


class _Connection:
    """One TCP connection to the probed port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes, size: int) -> bytes:
        """Send a request; return `size` bytes of the answer."""
        self.writer.write(request)
        return await self.reader.readexactly(size)

    async def __aenter__(self) -> "_Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self.writer.transport.abort()


async def _open(proxy: ProxyConfig, timeout: float) -> _Connection:
    async with asyncio.timeout(timeout):
        return _Connection(*await asyncio.open_connection(proxy.host, proxy.port))


async def _probe_socks5(proxy: ProxyConfig, timeout: float) -> tuple[Access, bool]:
    """Return the access, and whether UDP ASSOCIATE is granted (RFC 1928)."""
    async with await _open(proxy, timeout) as connection:
        version, method = await connection.ask(bytes((VERSION, 2, NO_AUTHENTICATION, USERNAME_PASSWORD)), 2)
        if version != VERSION:
            return Access.NO, False
        if method == NO_AUTHENTICATION:
            return Access.OPEN, await _grants_udp(connection)
        if method == USERNAME_PASSWORD and proxy.username is not None:
            return await _log_in(connection, proxy)
        if method not in (USERNAME_PASSWORD, NO_ACCEPTABLE_METHOD):
            return Access.PASSWORD, False  # GSSAPI or a private method, though nobody offered it
    if method == NO_ACCEPTABLE_METHOD:
        return Access.PASSWORD, False
    # Some prefer a password when they are offered one, and go without.
    async with await _open(proxy, timeout) as connection:
        version, method = await connection.ask(bytes((VERSION, 1, NO_AUTHENTICATION)), 2)
        if version == VERSION and method == NO_AUTHENTICATION:
            return Access.OPEN, await _grants_udp(connection)
    return Access.PASSWORD, False


async def _log_in(connection: _Connection, proxy: ProxyConfig) -> tuple[Access, bool]:
    """RFC 1929."""
    name, password = (proxy.username or "").encode(), (proxy.password or "").encode()
    if max(len(name), len(password)) > CREDENTIAL_MAX:
        return Access.REFUSED, False
    request = bytes((PASSWORD_VERSION, len(name))) + name + bytes((len(password),)) + password
    _, status = await connection.ask(request, 2)
    return (Access.REFUSED, False) if status else (Access.OPEN, await _grants_udp(connection))


async def _grants_udp(connection: _Connection) -> bool:
    try:
        reply = await connection.ask(bytes((VERSION, UDP_ASSOCIATE, 0)) + encode_address(bytes(4), 0), 4)
    except (OSError, asyncio.IncompleteReadError):  # OpenSSH (-D) hangs up
        return False
    return reply[1] == Reply.SUCCEEDED


async def _probe_socks4(proxy: ProxyConfig, timeout: float) -> Access:
    """Ask for a connection to the port itself; any answer of the protocol will do."""
    async with await _open(proxy, timeout) as connection:
        host, port = connection.writer.get_extra_info("peername")[:2]
        address = socket.inet_aton(host) if ":" not in host else socket.inet_aton("127.0.0.1")
        user = (proxy.username or "").encode()
        request = struct.pack("!BBH4s", SOCKS4_VERSION, SOCKS4_CONNECT, port, address) + user + b"\0"
        version, code = await connection.ask(request, 2)
        if version != 0 or code not in SOCKS4_REPLIES:
            return Access.NO
        return Access.PASSWORD if code > SOCKS4_REPLIES.start + 1 else Access.OPEN


async def _probe_http(proxy: ProxyConfig, timeout: float) -> Access:
    """CONNECT (RFC 9110, 9.3.6) to the port itself."""
    async with await _open(proxy, timeout) as connection:
        host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
        lines = [f"CONNECT {host}:{proxy.port} HTTP/1.1", f"Host: {host}:{proxy.port}"]
        if proxy.username is not None:
            credentials = base64.b64encode(f"{proxy.username}:{proxy.password or ''}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {credentials}")
        connection.writer.write("\r\n".join([*lines, "", ""]).encode())
        head = await _read_head(connection.reader)
    return read_http_head(head, with_credentials=proxy.username is not None)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HTTP_HEAD_MAX:
        piece = await reader.read(HTTP_HEAD_MAX)
        if not piece:
            break
        head += piece
    return head.partition(b"\r\n\r\n")[0]


def read_http_head(head: bytes, *, with_credentials: bool) -> Access:
    """Tell a proxy from a web server by its answer to CONNECT: status line and headers, without the empty line."""
    status_line, *header_lines = head.decode("latin-1").split("\r\n")
    protocol, _, rest = status_line.partition(" ")
    status = rest[:3]
    if not protocol.startswith("HTTP/1.") or not status.isdecimal():
        return Access.NO
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
    if status == "407" or (status == "401" and with_credentials):  # tinyproxy's word for a wrong password is 401
        return Access.REFUSED if with_credentials else Access.PASSWORD
    if status.startswith("2"):
        # RFC 9110, 9.3.6: no body follows a CONNECT that succeeded; a server that answers everything sends one.
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        return Access.NO if has_body else Access.OPEN
    return Access.OPEN if any(name in headers for name in _PROXY_HEADERS) else Access.NO
