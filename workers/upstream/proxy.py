"""The outbound that is a proxy. Whether it relays UDP is found out by trying, and remembered for a while.

What opening an association shows counts until somebody has asked a question through one (`judge_udp`): some proxies open
associations and relay nothing.
"""

import asyncio
import math
import socket
from collections.abc import Callable
from time import monotonic

from shared.config import ProxyOutbound
from shared.metrics import Counters, OutboundCell, UdpState
from workers.upstream import Leg, LegOwner, ProxyFailed, Trail, UdpUnsupported, UpstreamError, WrongNetwork
from workers.upstream.egress import Egress
from workers.upstream.health import Health
from workers.upstream.sockets import Sockets
from workers.upstream.socks import Dialer, SocksUpstream
from workers.upstream.socks5_leg import SocksLeg
from workers.upstream.socks5_udp import associate

__all__ = ["UNVERIFIED", "ProxyUpstream"]

UNSUPPORTED_FOR = 30.0
"""Seconds until a proxy without UDP is asked again."""
FAILED_FOR = 1.0
"""Seconds until a proxy that failed is asked again for UDP."""

UNVERIFIED = "not verified"
"""Why it is not sure that UDP works: associations open, but nothing has come through one yet."""


class ProxyUpstream:
    """`on_udp_support` is told whether the proxy relays UDP, when that is first known and when it changes.

    With a reason why not; or why that is not sure, though it opens associations.
    """

    def __init__(
        self,
        config: ProxyOutbound,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        cells: int,
        *,
        mark: int | Egress | None,
        buffer: bytearray,
        on_udp_support: Callable[[str, bool, str], object],
    ) -> None:
        self.tag = config.tag
        self.kind: str = config.proxy.kind
        self.cells = cells
        self._only = config.network
        self._loop = loop
        self._counters = counters
        self._buffer = buffer
        self._health = Health(counters, cells)
        self._dialer = Dialer(Sockets(loop, config.dial, counters, mark=mark), config.proxy)
        self._tcp = SocksUpstream(self._dialer)
        self._on_udp_support = on_udp_support
        self._udp_told: tuple[bool, str] | None = None  # as told to `on_udp_support`
        self._udp_error: UpstreamError | None = None
        self._udp_again_at = 0.0

    def carries(self, network: str) -> bool:
        """See Outbound."""
        return self._only in (None, network) and (network == "tcp" or self.kind == "socks5")

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """CONNECT through the proxy. See Outbound."""
        trail.append(self)
        if self._only == "udp":
            raise WrongNetwork(self.tag, "tcp")
        began = monotonic()
        try:
            sock = await self._tcp.connect(host, port)
        except UpstreamError as error:
            self._health.failed(error)
            raise
        self._health.connected(monotonic() - began)
        return sock

    def refuses_udp(self) -> UpstreamError | None:
        """See Outbound."""
        if self._only == "tcp":
            return WrongNetwork(self.tag, "udp")
        return self._udp_error if monotonic() < self._udp_again_at else None

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """UDP ASSOCIATE. See Outbound."""
        trail.append(self)
        if (known := self.refuses_udp()) is not None:
            raise known
        if self._udp_told is not None and not self._udp_told[0]:
            # One association asks again; until it knows, the answer to the others stays what it was.
            self._udp_again_at = monotonic() + UNSUPPORTED_FOR
        leg = await self.try_udp(owner, host)
        self._udp_again_at = 0.0
        if self._udp_told is None or not self._udp_told[0]:
            self._tell_support(True, UNVERIFIED)
        return leg

    async def try_udp(self, owner: LegOwner, host: str | None = None) -> Leg:
        """Open an association, whatever is known of the proxy. Raises UpstreamError."""
        try:
            association = await associate(self._dialer)
        except UdpUnsupported as error:
            self._refuse_udp(error, UNSUPPORTED_FOR)
            self._tell_support(False, str(error))
            raise
        except ProxyFailed as error:
            self._refuse_udp(error, FAILED_FOR)
            self._health.failed(error)
            raise
        self._health.associated()
        return SocksLeg(self._loop, association, owner, self._counters, self._buffer, alone=host is not None)

    def judge_udp(self, works: bool, reason: str) -> None:
        """A question through an association has shown this; it holds until the next judgement."""
        if works:
            self._udp_again_at = 0.0
        else:
            self._refuse_udp(UdpUnsupported(f"the proxy {self._dialer.proxy} carries no UDP: {reason}"), math.inf)
        self._tell_support(works, reason)

    def _refuse_udp(self, error: UpstreamError, seconds: float) -> None:
        self._udp_error = error
        self._udp_again_at = monotonic() + seconds

    def _tell_support(self, supported: bool, reason: str) -> None:
        if (supported, reason) != self._udp_told:
            self._udp_told = supported, reason
            works = UdpState.UNVERIFIED if reason else UdpState.WORKS
            self._counters[self.cells + OutboundCell.UDP] = works if supported else UdpState.NONE
            self._on_udp_support(self.tag, supported, reason)

    def close(self) -> None:
        """See Outbound: nothing is kept between flows."""
