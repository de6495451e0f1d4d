"""The outbound that leads nowhere."""

import socket

from workers.stack import Refusal
from workers.upstream import DestinationRefused, Leg, LegOwner, Trail, UpstreamError

__all__ = ["BlockUpstream"]


class BlockUpstream:
    """TCP is refused by RST, datagrams are answered with ICMP port unreachable."""

    kind = "block"

    def __init__(self, tag: str, cells: int) -> None:
        self.tag = tag
        self.cells = cells

    def carries(self, network: str) -> bool:
        """It refuses both alike."""
        return True

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """Raises DestinationRefused."""
        trail.append(self)
        raise self._error()

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """Raises DestinationRefused."""
        trail.append(self)
        raise self._error()

    def refuses_udp(self) -> UpstreamError | None:
        """See Outbound."""
        return self._error()

    def _error(self) -> UpstreamError:
        return DestinationRefused(f"outbound {self.tag} blocks everything", Refusal.REFUSED)

    def close(self) -> None:
        """See Outbound: there is nothing to release."""
