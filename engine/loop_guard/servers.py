"""Which addresses are servers of a local proxy. Pure: addresses (packed) and `now` in, decisions out."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["ASKED_FOR", "ASKED_MAX", "SERVERS_MAX", "UNUSED_FOR", "LearnedServers"]

ASKED_FOR = 600.0
"""Seconds for which a destination counts as an application's: the proxy may open its own connection to it again and again."""
ASKED_MAX = 8192
"""Destinations remembered; beyond it the one asked for longest ago is forgotten."""
SERVERS_MAX = 256
"""Servers at a time; a subscription has some hundred, of which few are used. Beyond it the longest unused one goes."""
UNUSED_FOR = 120.0
"""Seconds without a connection of the proxy after which a server is one no more. Should it come back, it is learned again;
should it have been a download of the proxy itself, applications go there through the proxy again."""


@dataclass(slots=True)
class _Server:
    used_at: float
    udp_sockets: set[int]
    """Inodes of UDP sockets that sent there: unconnected ones do not show whom they talk to."""


class LearnedServers:
    """Remembers what applications asked for and whom the proxy contacted."""

    def __init__(self) -> None:
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        self._servers: OrderedDict[bytes, _Server] = OrderedDict()  # the latest used last

    def __contains__(self, address: bytes) -> bool:
        return address in self._servers

    def __len__(self) -> int:
        return len(self._servers)

    def asked_for(self, address: bytes, now: float) -> None:
        """An application wants to go there, and the proxy is asked to."""
        self._asked[address] = now
        self._asked.move_to_end(address)
        if len(self._asked) > ASKED_MAX:
            self._asked.popitem(last=False)

    def retract(self, address: bytes) -> None:
        """It was no application that asked for it."""
        self._asked.pop(address, None)

    def contacted(self, address: bytes, now: float, *, udp_socket: int | None = None) -> bool:
        """The proxy talks to it, `udp_socket` by UDP; return whether it is a server that was none before."""
        server = self._servers.get(address)
        if server is None:
            asked_at = self._asked.get(address)
            if asked_at is not None and now - asked_at <= ASKED_FOR:
                return False
            server = self._servers[address] = _Server(now, set())
            new = True
        else:
            new = False
        server.used_at = now
        self._servers.move_to_end(address)
        if udp_socket is not None:
            server.udp_sockets.add(udp_socket)
        return new

    def surplus(self) -> list[bytes]:
        """Forget the longest unused servers beyond SERVERS_MAX; return them."""
        return [self._servers.popitem(last=False)[0] for _ in range(len(self._servers) - SERVERS_MAX)]

    def expire(self, connected: Collection[bytes], sockets: Collection[int], now: float) -> list[bytes]:
        """Forget the servers that the proxy has not used for UNUSED_FOR seconds; return them.

        `connected`: addresses that it has connections to now; `sockets`: inodes of all its sockets.
        """
        for address, server in self._servers.items():
            server.udp_sockets.intersection_update(sockets)
            if address in connected or server.udp_sockets:
                server.used_at = now
        gone = [address for address, server in self._servers.items() if now - server.used_at >= UNUSED_FOR]
        for address in gone:
            del self._servers[address]
        return gone
