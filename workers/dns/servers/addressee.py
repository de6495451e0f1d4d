"""The server that the program itself has asked, through an outbound.

One on a private network is out of a proxy's reach: the defaults stand in for it. So they do for a public one that does not
answer us, such as a provider's resolver, which serves the provider's customers only.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from workers.dns import Server
from workers.dns.servers.failover import FailoverServer

__all__ = ["AddresseeServers", "scope_of"]

SERVERS_MAX = 1024
"""Servers remembered; beyond it the oldest is forgotten. A program that resolves by itself asks hundreds."""
PATIENCE = 4.0
"""Seconds for the server that was asked, before the defaults are; within the five after which resolvers lose patience."""

_PRIVATE = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "198.18.0.0/15",
        "::/127", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
"""Not every special range (RFC 6890): those that LANs, carriers, container networks and tun devices use."""


def scope_of(address: bytes) -> bytes:
    """Return what the answers of the server at a packed address are kept under; all that are out of reach have one scope."""
    if not address or _is_out_of_reach(address):
        return b"\0"
    return bytes((len(address),)) + address


def _is_out_of_reach(address: bytes) -> bool:
    """Whether an address means something on this side of the proxy only."""
    parsed: IPv4Address | IPv6Address = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_multicast or any(parsed in network for network in _PRIVATE if network.version == parsed.version)


class AddresseeServers:
    """Servers by the address that programs use for them."""

    def __init__(self, default: Server, make: Callable[[str], Server]) -> None:
        """`make` returns a server at an address; `default` is asked in place of one that is out of reach, or does not answer."""
        self._default = default
        self._make = make
        self._servers: dict[bytes, Server] = {}

    def find(self, address: bytes) -> Server:
        """Return the server for a packed address; empty: the worker itself asks."""
        scope = scope_of(address)
        if scope == b"\0":
            return self._default
        server = self._servers.get(address)
        if server is None:
            own = self._make(str(ip_address(address)))
            server = self._servers[address] = FailoverServer((own, _Shared(self._default)), patience=PATIENCE)
            if len(self._servers) > SERVERS_MAX:
                self._servers.pop(next(iter(self._servers))).close()
        return server

    def close(self) -> None:
        """Close all servers."""
        for server in self._servers.values():
            server.close()
        self._default.close()


class _Shared:
    """A server that others use as well: not closed with its user."""

    def __init__(self, server: Server) -> None:
        self.exchange = server.exchange

    def close(self) -> None:
        """It belongs to somebody else."""
