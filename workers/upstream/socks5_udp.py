"""UDP through the proxy: SOCKS5 UDP ASSOCIATE (RFC 1928 sections 4, 6 and 7). python-socks has none of it.

associate()  ->  Association: the control connection, whose life is the association's, and a UDP socket connected to the relay
"""

import asyncio
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from python_socks._errors import IncompleteReadError

from shared.config import ProxyConfig
from shared.wire.socks5 import (
    DOMAIN,
    IPV4,
    NO_ACCEPTABLE_METHOD,
    NO_AUTHENTICATION,
    PASSWORD_VERSION,
    UDP_ASSOCIATE,
    USERNAME_PASSWORD,
    VERSION,
    Reply,
    encode_address,
    parse_address,
)
from workers.upstream import ProxyFailed, UdpUnsupported
from workers.upstream.socks import Dialer, ProxyStream

__all__ = ["Association", "associate", "relay_address"]

SOCKET_BUFFER = 1024 * 1024  # bytes asked for; the default holds three datagrams of 64 KiB
_ANY_ENDPOINT = encode_address(bytes(4), 0)  # where we shall send from: not known yet (RFC 1928, section 4)


@dataclass(slots=True, frozen=True)
class Association:
    """One UDP association. The proxy ends it when the control connection closes (RFC 1928, section 7)."""

    control: socket.socket
    """TCP to the proxy; readable means that the proxy closes the association."""
    relay: socket.socket
    """Non-blocking UDP, connected to the relay: only the relay's datagrams come in, and its ICMP errors reach us."""
    over_ipv6: bool
    """The relay's address is IPv6, which allows slightly larger datagrams."""

    def close(self) -> None:
        """End the association."""
        self.relay.close()
        self.control.close()


async def associate(dialer: Dialer) -> Association:
    """Open an association, for which the proxy has as long as a connection to it may take.

    Raises UdpUnsupported when the proxy says (or shows) that it carries no UDP, ProxyFailed when it cannot be used at all.
    """
    proxy = dialer.proxy
    if proxy.kind != "socks5":
        raise UdpUnsupported(f"the proxy {proxy} carries no UDP: {proxy.kind} has no UDP")
    stream = await dialer.open()
    try:
        async with asyncio.timeout(dialer.timeout):
            await _authenticate(stream, proxy)
            address, port = await _request(stream, dialer)
        return _connect_relay(dialer, stream.socket, address, port)
    except (TimeoutError, OSError, IncompleteReadError, ValueError) as error:
        stream.socket.close()
        raise ProxyFailed(f"the proxy {proxy} did not open a UDP association: {error or 'no answer'}") from error
    except BaseException:
        stream.socket.close()
        raise


async def _authenticate(stream: ProxyStream, proxy: ProxyConfig) -> None:
    """Agree on a method (RFC 1928, section 3) and give the password if it is asked for (RFC 1929). Raises ProxyFailed."""
    methods = [NO_AUTHENTICATION] if proxy.username is None else [NO_AUTHENTICATION, USERNAME_PASSWORD]
    await stream.write(bytes((VERSION, len(methods), *methods)))
    version, method = await stream.read_exactly(2)
    if version != VERSION or method not in methods:
        reason = "no acceptable authentication" if method == NO_ACCEPTABLE_METHOD else "not a SOCKS5 proxy"
        raise ProxyFailed(f"the proxy {proxy} does not serve us: {reason}")
    if method == USERNAME_PASSWORD:
        assert proxy.username is not None, "offered only with a user name"
        name, password = proxy.username.encode(), (proxy.password or "").encode()
        await stream.write(bytes((PASSWORD_VERSION, len(name))) + name + bytes((len(password),)) + password)
        _, status = await stream.read_exactly(2)
        if status:
            raise ProxyFailed(f"the proxy {proxy} does not serve us: it refuses the user name or password")


async def _request(stream: ProxyStream, dialer: Dialer) -> tuple[str, int]:
    """Send UDP ASSOCIATE; return address and port of the relay. Raises UdpUnsupported, OSError, ValueError."""
    proxy = dialer.proxy
    await stream.write(bytes((VERSION, UDP_ASSOCIATE, 0)) + _ANY_ENDPOINT)
    try:
        head = await stream.read_exactly(3)
    except (IncompleteReadError, ConnectionError) as error:  # OpenSSH (-D) hangs up on this command
        raise UdpUnsupported(f"the proxy {proxy} carries no UDP: it closed the connection") from error
    if head[1] != Reply.SUCCEEDED:
        raise UdpUnsupported(f"the proxy {proxy} carries no UDP: it answered {_reply_name(head[1])}")
    address = await stream.read_exactly(2)
    while (bound := parse_address(address, 0)) is None:
        # Two bytes tell how long the rest is: of DOMAIN the second is the length, of the others it is part of the address.
        rest = {IPV4: 5, DOMAIN: address[1] + 2}.get(address[0], 17)
        address += await stream.read_exactly(rest)
    kind, host, port, _ = bound
    if port == 0:
        raise UdpUnsupported(f"the proxy {proxy} carries no UDP: it names port 0 as its relay")
    proxy_address = stream.socket.getpeername()[0]
    if kind == DOMAIN:
        host = await _resolve(dialer, host.decode("ascii"), proxy_address)
    return relay_address(host, proxy_address), port


def _reply_name(code: int) -> str:
    try:
        return Reply(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code {code}"


async def _resolve(dialer: Dialer, name: str, proxy_address: str) -> bytes:
    """Return the packed address of a relay given by name; the proxy's own when it is the proxy's name. Raises OSError."""
    if name == dialer.proxy.host:
        return ip_address(proxy_address).packed
    infos = await dialer.loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return ip_address(infos[0][4][0]).packed


def relay_address(bound: bytes, proxy_address: str) -> str:
    """Return where to send datagrams, given BND.ADDR (packed) and the address the proxy was reached at.

    An unspecified BND.ADDR means the proxy itself. So does a private or loopback one of a proxy that we reach at a public
    address: it sits behind NAT, or is bound to loopback, and names an address that is somebody else's here.
    """
    address = _plain(ip_address(bound))
    proxy = _plain(ip_address(proxy_address.partition("%")[0]))
    if address.is_unspecified:
        return proxy_address
    inner = address.is_private or address.is_loopback or address.is_link_local
    # A loopback address is this machine's only if the proxy is on this machine; documentation and other special ranges
    # count as private here, so they are compared among themselves.
    if (inner and not proxy.is_private) or (address.is_loopback and not proxy.is_loopback):
        return proxy_address
    return str(address)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address inside an IPv4-mapped one (RFC 4291, 2.5.5.2), as dual-stack proxies report them."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address


def _connect_relay(dialer: Dialer, control: socket.socket, address: str, port: int) -> Association:
    over_ipv6 = ":" in address
    relay = dialer.sockets.make(socket.AF_INET6 if over_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            relay.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        relay.connect((address, port))
    except OSError:
        relay.close()
        raise
    return Association(control, relay, over_ipv6)
