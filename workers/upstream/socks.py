"""TCP through the proxy: SOCKS5, SOCKS4a or HTTP CONNECT, spoken by python-socks.

python-socks has two layers: `Proxy`, which also opens the socket, and beneath it connectors that speak a protocol over any
AsyncSocketStream. We use the connectors, because the socket needs SO_MARK before it connects, and because `Proxy` reads the
answer of an HTTP proxy with one large recv, which swallows what a server that speaks first sent right behind it.
"""

import asyncio
import socket

from python_socks import ProxyType
from python_socks._abc import AsyncResolver, AsyncSocketStream
from python_socks._connectors.factory_async import create_connector
from python_socks._errors import IncompleteReadError
from python_socks._protocols.errors import ReplyError

from shared.config import ProxyConfig
from shared.wire.socks5 import Reply
from workers.stack import Refusal
from workers.upstream import DestinationRefused, ProxyFailed, UpstreamError
from workers.upstream.sockets import Sockets, wait_readable

__all__ = ["Dialer", "ProxyStream", "SocksUpstream"]

_TYPES = {"socks5": ProxyType.SOCKS5, "socks4": ProxyType.SOCKS4, "http": ProxyType.HTTP}

_REFUSALS: dict[str, dict[int, Refusal]] = {
    "socks5": {
        Reply.NOT_ALLOWED: Refusal.PROHIBITED,
        Reply.NETWORK_UNREACHABLE: Refusal.NET_UNREACHABLE,
        Reply.HOST_UNREACHABLE: Refusal.HOST_UNREACHABLE,
        Reply.TTL_EXPIRED: Refusal.HOST_UNREACHABLE,
    },
    "socks4": {},
    "http": {403: Refusal.PROHIBITED, 502: Refusal.HOST_UNREACHABLE, 504: Refusal.HOST_UNREACHABLE},
}
"""What a reply code (an HTTP status) tells the application; a code that is not here: REFUSED."""

_CREDENTIALS_REFUSED: dict[str, tuple[int, ...]] = {
    "socks5": (),  # answered before the request, without a reply code
    "socks4": (0x5C, 0x5D),  # the identd cases of the SOCKS 4 memo
    "http": (407,),
}


class ProxyStream(AsyncSocketStream):
    """A connected, non-blocking socket to the proxy while a handshake is spoken over it. Reads no byte too many."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self.socket = sock
        self.answered = False  # the proxy has sent something

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        # A handshake message always fits the empty send buffer; the coroutine of the loop is ten times dearer.
        sent = self.socket.send(data)
        if sent < len(data):
            await self._loop.sock_sendall(self.socket, data[sent:])

    async def read_exactly(self, n: int) -> bytes:
        """Return the next `n` bytes. Raises IncompleteReadError at end of file, OSError."""
        data = await self._recv(n)
        while len(data) < n:
            more = await self._recv(n - len(data)) if data else b""
            if not more:
                raise IncompleteReadError("the proxy closed the connection")
            data += more
        return data

    async def read(self, max_bytes: int = 65536) -> bytes:
        """Return the header of an HTTP response, and nothing of what follows it. Raises OSError."""
        data = b""
        while len(data) < max_bytes:
            ahead = await self._recv(max_bytes, socket.MSG_PEEK)
            end = (data + ahead).find(b"\r\n\r\n")
            data += await self._recv(end + 4 - len(data) if end >= 0 else max(len(ahead), 1))
            if end >= 0 or not ahead:
                break
        return data

    async def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    async def _recv(self, n: int, flags: int = 0) -> bytes:
        while True:
            try:
                data = self.socket.recv(n, flags)
            except BlockingIOError:
                await wait_readable(self._loop, self.socket.fileno())
            else:
                self.answered = self.answered or bool(data)
                return data


class Dialer:
    """Opens TCP connections to the proxy, trying its addresses in order, within the time that `sockets` has for a connection."""

    def __init__(self, sockets: Sockets, proxy: ProxyConfig) -> None:
        assert proxy.addresses, "the master resolves the proxy's name: the worker must not ask the DNS it carries"
        self.loop = sockets.loop
        self.sockets = sockets
        self.proxy = proxy
        self.timeout = sockets.timeout

    async def open(self) -> ProxyStream:
        """Connect to the first address that answers. Raises ProxyFailed with the reason of the last one."""
        # An address that swallows packets must leave time for the next one.
        timeout = self.timeout / len(self.proxy.addresses)
        reason = ""
        for address in self.proxy.addresses:
            try:
                return ProxyStream(self.loop, await self.sockets.connect(address, self.proxy.port, timeout=timeout))
            except TimeoutError:
                reason = "no answer"
            except OSError as error:
                reason = error.strerror or str(error)
        raise ProxyFailed(f"cannot connect to the proxy {self.proxy}: {reason}")


class SocksUpstream:
    """CONNECT through the proxy, which has as long to answer as a connection to it may take."""

    def __init__(self, dialer: Dialer) -> None:
        proxy = dialer.proxy
        self._dialer = dialer
        self._kind = proxy.kind
        # Names are left to the proxy (rdns), so the resolver is never asked. The connector keeps no state between flows.
        self._connector = create_connector(_TYPES[proxy.kind], proxy.username, proxy.password, True, AsyncResolver())

    async def connect(self, host: str, port: int) -> socket.socket:
        """Return a non-blocking socket whose other end is `host`:`port`. Raises UpstreamError."""
        stream = await self._dialer.open()
        try:
            async with asyncio.timeout(self._dialer.timeout):
                await self._connector.connect(stream, host, port)
        except (ReplyError, IncompleteReadError, OSError, ValueError) as error:
            stream.socket.close()
            raise self._failure(error, stream) from error
        except BaseException:
            stream.socket.close()
            raise
        return stream.socket

    def _failure(self, error: Exception, stream: ProxyStream) -> UpstreamError:
        """Tell what the application shall hear about a handshake that failed."""
        if isinstance(error, ReplyError):
            return self._reply_failure(error)
        # Only SOCKS5 answers before it is asked for the destination; the silence of the others may be the destination's.
        proxy_works = stream.answered or self._kind != "socks5"
        if isinstance(error, TimeoutError) and proxy_works:
            return DestinationRefused("the proxy gave no answer in time", Refusal.HOST_UNREACHABLE)
        if isinstance(error, IncompleteReadError | OSError) and stream.answered:
            # OpenSSH (-D) hangs up, without a reply, when the far end could not connect.
            return DestinationRefused("the proxy closed the connection instead of answering", Refusal.REFUSED)
        return ProxyFailed(f"the proxy {self._dialer.proxy} does not serve us: {error or 'no answer'}")

    def _reply_failure(self, error: ReplyError) -> UpstreamError:
        code = error.error_code
        if code is None or code in _CREDENTIALS_REFUSED[self._kind]:
            return ProxyFailed(f"the proxy {self._dialer.proxy} does not serve us: {error}")
        return DestinationRefused(str(error), _REFUSALS[self._kind].get(code, Refusal.REFUSED))
