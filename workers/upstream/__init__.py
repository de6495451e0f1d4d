"""Outbounds: where flows leave. Each kind is an `Outbound`; build.py makes them of a policy.

proxy     through a SOCKS5, SOCKS4a or HTTP proxy: socks.py (TCP), socks5_udp.py and socks5_leg.py (UDP)
direct    from sockets of our own: direct.py (TCP), direct_leg.py (UDP)
block     nowhere
group     one of several others: group.py (selector, fallback), urltest.py (the fastest)

An attempt either gives a socket (TCP) or a leg (UDP), or raises an UpstreamError that says what the application is to be told.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from shared.config import Resolve
from workers.stack import Refusal

__all__ = [
    "DestinationRefused",
    "Leg",
    "LegOwner",
    "LookUp",
    "Outbound",
    "ProxyFailed",
    "Send",
    "Trail",
    "UdpUnsupported",
    "UpstreamError",
    "WrongNetwork",
]


class UpstreamError(Exception):
    """The flow is not carried; `refusal` is the answer for the application, the text is for the log."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


class DestinationRefused(UpstreamError):
    """The outbound works and says that this destination cannot be had."""


class ProxyFailed(UpstreamError):
    """The outbound itself does not work: a proxy that cannot be reached, speaks no protocol of ours, or refuses our credentials.

    Never REFUSED: the application must not conclude that the destination closed its port.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.NET_UNREACHABLE)


class UdpUnsupported(UpstreamError):
    """The proxy carries no UDP. Port unreachable makes browsers leave QUIC for TCP at once."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.PORT_UNREACHABLE)


class WrongNetwork(UpstreamError):
    """The outbound does not carry this network, by its kind or by its configuration."""

    def __init__(self, tag: str, network: str) -> None:
        refusal = Refusal.REFUSED if network == "tcp" else Refusal.PORT_UNREACHABLE
        super().__init__(f"outbound {tag} carries no {network.upper()}", refusal)


Trail = list["Outbound"]
"""The outbounds that a flow goes through, groups first; appended to by those that are taken."""

Send = Callable[[memoryview], None]
"""Sends one datagram of the application, of which it keeps nothing; what cannot be sent is lost and counted."""

LookUp = Callable[[str, Resolve], Awaitable[Sequence[bytes]]]
"""Packed addresses of a name, best first. Raises UpstreamError."""


class LegOwner(Protocol):
    """Whoever the datagrams of a leg are for: one endpoint of an application."""

    source: tuple[bytes, int]
    """Packed address and port: only peers of the same IP version can reach it."""

    def deliver(self, peer: bytes, port: int, payload: memoryview | bytearray, /) -> None:
        """A datagram of `peer` (packed; of no meaning when the leg leads to one host alone), valid during the call."""

    def unreachable(self, peer: bytes, port: int, payload: bytes, /) -> None:
        """`peer` (as in `deliver`) does not take datagrams at that port: ICMP said so about `payload`."""

    def on_leg_end(self, leg: "Leg", /) -> None:
        """The other side has ended the leg; it is to be closed, and the next datagram may open another."""


class Leg(Protocol):
    """What carries the datagrams of one endpoint of an application through one outbound: one mapping for all its peers."""

    def to(self, host: bytes | str, port: int) -> Send:
        """Return what sends to a packed address, or to the host that the leg was opened for. Raises ValueError."""

    def close(self) -> None:
        """Release it; harmless when repeated."""


class Outbound(Protocol):
    """Where flows leave.

    cells  where its cells begin in the worker's counters (shared/metrics.py, outbound_at)
    """

    tag: str
    kind: str
    cells: int

    def carries(self, network: str) -> bool:
        """Tell whether `tcp` or `udp` may be tried, by kind and configuration."""

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """Return a connected, non-blocking socket to a name or address. Raises UpstreamError."""

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """Open a leg for datagrams to any address, or to one name or address alone. Raises UpstreamError."""

    def refuses_udp(self) -> UpstreamError | None:
        """Return the error that open_udp would raise, if that is known without trying."""

    def close(self) -> None:
        """Release what the outbound itself holds; sockets and legs that it gave away live on."""
