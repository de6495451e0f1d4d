"""Makes the servers of a configuration. Each is reached through its detour, or past all proxies without one."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from shared.config import DnsConfig, DnsServer, FakeIpConfig
from workers.dns import KnowingServer, Names, Server
from workers.dns.rules import parse_rcode
from workers.dns.servers.addressee import AddresseeServers
from workers.dns.servers.connection import Connection
from workers.dns.servers.failover import FailoverServer
from workers.dns.servers.framed import FramedConnection
from workers.dns.servers.https import HttpsConnection
from workers.dns.servers.known import FakeIpServer, HostsServer, RcodeServer
from workers.dns.servers.legs import LegPath
from workers.dns.servers.local import LocalServer
from workers.dns.servers.stream import StreamServer, tls_context
from workers.dns.servers.udp import UdpServer
from workers.dns.service import Servers
from workers.upstream import Outbound

__all__ = ["build_servers", "check_servers"]

PATIENCE = 3.0
"""Seconds for one of a server's addresses before the next is tried."""
RESOLVES_NAMES = ("socks5", "socks4", "http")
"""Kinds of outbounds that are given a server's name; the others need one of its addresses, for no name can be found before."""
DNS_PORT, HTTPS_PORT = 53, 443


def build_servers(
    loop: asyncio.AbstractEventLoop,
    config: DnsConfig,
    outbounds: Mapping[str, Outbound],
    direct: Outbound,
    *,
    names: Names | None,
    own: frozenset[str],
    on_silence: Callable[[Outbound], object],
) -> Servers:
    """Return the servers of `config`.

    `direct`: the outbound of servers without detour. `names`: the table of fake addresses. `own`: addresses that are ours, never
    to be asked. `on_silence` is told of outbounds over which servers answer by TCP alone. `check_servers` has passed `config`.
    """
    builder = _Builder(loop, outbounds, direct, own, on_silence)
    asking: dict[str, Server] = {}
    knowing: dict[str, KnowingServer] = {}
    addressees: dict[str, AddresseeServers] = {}
    for server in config.servers:
        known = _knowing(server, names)
        if known is not None:
            knowing[server.tag] = known
        elif server.kind == "addressee":
            addressees[server.tag] = builder.addressees(server)
        else:
            asking[server.tag] = builder.server(server)
    return Servers(asking, knowing, addressees, tuple(builder.paths.values()))


def check_servers(config: DnsConfig, fake_ip: FakeIpConfig | None) -> None:
    """Raise ValueError for a host, address or certificate that is none: all that `build_servers` could stumble over.

    `fake_ip`: the ranges of the table of fake addresses.
    """
    for server in config.servers:
        _knowing(server, None)
        ranges = FakeIpConfig(inet4_range=server.inet4_range, inet6_range=server.inet6_range)
        if server.kind == "fakeip" and ranges != fake_ip:
            raise ValueError(
                f'the ranges of the DNS server "{server.tag}" are not those that the engine was started with: restart it'
            )
        if server.kind in ("tls", "https"):
            _context(server, "h2")


def _knowing(server: DnsServer, names: Names | None) -> KnowingServer | None:
    """Return a server that need not ask anybody; None when it is one that must."""
    match server.kind:
        case "hosts":
            return HostsServer(server.hosts)
        case "rcode":
            return RcodeServer(parse_rcode(server.rcode))
        case "fakeip":
            return FakeIpServer(names) if names is not None else None
        case _:
            return None


class _Builder:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbounds: Mapping[str, Outbound],
        direct: Outbound,
        own: frozenset[str],
        on_silence: Callable[[Outbound], object],
    ) -> None:
        self.paths: dict[int, LegPath] = {}  # by identity of the outbound
        self._loop = loop
        self._outbounds = outbounds
        self._direct = direct
        self._own = own
        self._on_silence = on_silence

    def server(self, server: DnsServer) -> Server:
        """A server that is asked."""
        if server.kind == "local":
            return LocalServer(partial(self._udp, self._outbound(server), DNS_PORT), own=self._own)
        return self._any_of(server, self._maker(server))

    def addressees(self, server: DnsServer) -> AddresseeServers:
        """The servers that programs ask."""
        make = partial(self._udp, self._outbound(server), DNS_PORT)
        defaults = [self._udp(self._outbound(server), server.port, host) for host in (server.server, *server.others)]
        return AddresseeServers(FailoverServer(defaults, patience=PATIENCE), make)

    def _any_of(self, server: DnsServer, make: Callable[[str], Server]) -> Server:
        """The server at the first of its addresses that works."""
        resolves = self._outbound(server).kind in RESOLVES_NAMES
        hosts = (server.server,) if resolves or not server.addresses else server.addresses
        made = [make(host) for host in hosts]
        return made[0] if len(made) == 1 else FailoverServer(made, patience=PATIENCE)

    def _maker(self, server: DnsServer) -> Callable[[str], Server]:
        outbound = self._outbound(server)
        match server.kind:
            case "udp":
                return partial(self._udp, outbound, server.port)
            case "tcp":
                return partial(self._stream, outbound, server.port, self._framed)
            case "tls":
                context = _context(server, "dot")
                name = server.server_name or server.server
                return partial(self._stream, outbound, server.port, self._framed, tls=context, tls_name=name)
            case _:
                name = server.server_name or server.server
                authority = f"[{name}]" if ":" in name else name
                authority += "" if server.port == HTTPS_PORT else f":{server.port}"
                make = partial(HttpsConnection, self._loop, authority, server.path)
                context = _context(server, "h2")
                return partial(self._stream, outbound, server.port, make, tls=context, tls_name=name)

    def _outbound(self, server: DnsServer) -> Outbound:
        return self._direct if server.detour is None else self._outbounds[server.detour]

    def _udp(self, outbound: Outbound, port: int, host: str) -> Server:
        path = self.paths.get(id(outbound))
        if path is None:
            path = self.paths[id(outbound)] = LegPath(self._loop, outbound, partial(self._on_silence, outbound))
        return UdpServer(path, self._stream(outbound, port, self._framed, host), host, port)

    def _framed(self) -> Connection:
        return FramedConnection(self._loop)

    def _stream(
        self,
        outbound: Outbound,
        port: int,
        make: Callable[[], Connection],
        host: str,
        *,
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
    ) -> StreamServer:
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return StreamServer(self._loop, name, _dialer(outbound, host, port), make, tls=tls, tls_name=tls_name)


def _dialer(outbound: Outbound, host: str, port: int) -> Callable[[], Awaitable[socket.socket]]:
    async def dial() -> socket.socket:
        return await outbound.connect(host, port, [])

    return dial


def _context(server: DnsServer, protocol: str) -> ssl.SSLContext:
    try:
        return tls_context(protocol, certificate=server.certificate, insecure=server.insecure)
    except ssl.SSLError as error:
        raise ValueError(f'the certificate of the DNS server "{server.tag}" cannot be read: {error.reason}') from error
