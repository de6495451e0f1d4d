"""The outbound that is a proxy. Whether it relays UDP is found out by trying, and remembered for a while."""

import asyncio
import socket
from collections.abc import Callable
from time import monotonic

from shared.config import ProxyOutbound
from shared.metrics import Counters
from workers.upstream import Leg, LegOwner, ProxyFailed, Trail, UdpUnsupported, UpstreamError, WrongNetwork
from workers.upstream.health import Health
from workers.upstream.sockets import Sockets
from workers.upstream.socks import Dialer, SocksUpstream
from workers.upstream.socks5_leg import SocksLeg
from workers.upstream.socks5_udp import associate

__all__ = ["ProxyUpstream"]

UNSUPPORTED_FOR = 30.0
"""Seconds until a proxy without UDP is asked again."""
FAILED_FOR = 1.0
"""Seconds until a proxy that failed is asked again for UDP."""


class ProxyUpstream:
    """`on_udp_support` is told whether the proxy relays UDP, with a reason, when that is first known and when it changes."""

    def __init__(
        self,
        config: ProxyOutbound,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        cells: int,
        *,
        mark: int | None,
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
        self._dialer = Dialer(Sockets(loop, config.dial, mark=mark), config.proxy)
        self._tcp = SocksUpstream(self._dialer)
        self._on_udp_support = on_udp_support
        self._udp_supported: bool | None = None  # as told to `on_udp_support`
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
        if self._udp_supported is False:
            # One association asks again; until it knows, the answer to the others stays what it was.
            self._udp_again_at = monotonic() + UNSUPPORTED_FOR
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
        self._udp_again_at = 0.0
        self._health.associated()
        self._tell_support(True, "")
        return SocksLeg(self._loop, association, owner, self._counters, self._buffer, alone=host is not None)

    def _refuse_udp(self, error: UpstreamError, seconds: float) -> None:
        self._udp_error = error
        self._udp_again_at = monotonic() + seconds

    def _tell_support(self, supported: bool, reason: str) -> None:
        if supported is not self._udp_supported:
            self._udp_supported = supported
            self._on_udp_support(self.tag, supported, reason)

    def close(self) -> None:
        """See Outbound: nothing is kept between flows."""
