"""The outbound past all proxies: TCP from sockets of our own."""

import asyncio
import errno
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from time import monotonic

from shared.config import DirectOutbound, Resolve
from shared.metrics import Counters
from workers.stack import Refusal
from workers.upstream import DestinationRefused, Leg, LegOwner, LookUp, Trail, UpstreamError
from workers.upstream.direct_leg import DirectLeg
from workers.upstream.egress import Egress
from workers.upstream.health import Health
from workers.upstream.sockets import Networks, Sockets, address_text, pack_address

__all__ = ["DirectUpstream", "refusal_of"]

_REFUSALS = {
    errno.ECONNREFUSED: Refusal.REFUSED,
    errno.ENETUNREACH: Refusal.NET_UNREACHABLE,
    errno.ENETDOWN: Refusal.NET_UNREACHABLE,
    errno.ENODEV: Refusal.NET_UNREACHABLE,
    errno.EADDRNOTAVAIL: Refusal.NET_UNREACHABLE,
    errno.EACCES: Refusal.PROHIBITED,
    errno.EPERM: Refusal.PROHIBITED,
}
"""What an error of connect(2) tells the application; one that is not here: HOST_UNREACHABLE."""


_COMES_BACK = Refusal.HOST_UNREACHABLE


def refusal_of(error: OSError) -> Refusal:
    """Return what the application is told."""
    return _REFUSALS.get(error.errno or 0, Refusal.HOST_UNREACHABLE)


class DirectUpstream:
    """Names are looked up by `look_up`, as the outbound's dial fields say."""

    kind = "direct"

    def __init__(
        self,
        config: DirectOutbound,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        cells: int,
        *,
        mark: int | Egress | None,
        tun: Networks,
        buffer: bytearray,
        look_up: LookUp,
    ) -> None:
        self.tag = config.tag
        self.cells = cells
        self._counters = counters
        self._buffer = buffer
        self._tun = tun
        self._health = Health(counters, cells)
        self._sockets = Sockets(loop, config.dial, counters, mark=mark)
        self._look_up = look_up
        self._how = Resolve(server=config.dial.domain_resolver, strategy=config.dial.strategy)

    def carries(self, network: str) -> bool:
        """Both."""
        return True

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """Connect to the first address that answers. See Outbound."""
        trail.append(self)
        addresses = await self._addresses(host)
        began = monotonic()
        try:
            sock = await self._connect_any(host, addresses, port)
        except UpstreamError as error:
            self._health.failed(error)
            raise
        self._health.connected(monotonic() - began)
        return sock

    async def _addresses(self, host: str) -> Sequence[str]:
        if pack_address(host) is not None:
            return (host,)
        return [address_text(packed) for packed in await self._look_up(host, self._how)]

    async def _connect_any(self, host: str, addresses: Sequence[str], port: int) -> socket.socket:
        last: UpstreamError | None = None
        for address in addresses:
            if self._is_of_the_tun(address):
                last = DestinationRefused(f"{address} is of the tun itself: it would only come back", _COMES_BACK)
                continue
            try:
                # An address that swallows packets must leave time for the next one.
                return await self._sockets.connect(address, port, timeout=self._sockets.timeout / len(addresses))
            except TimeoutError:
                last = DestinationRefused(f"{address} gave no answer", Refusal.HOST_UNREACHABLE)
            except OSError as error:
                last = DestinationRefused(f"{address}: {error.strerror or error}", refusal_of(error))
        if last is None:
            raise DestinationRefused(f"{host} has no address", Refusal.HOST_UNREACHABLE)
        raise last

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """Return a leg of its own sockets. See Outbound."""
        trail.append(self)
        address = None
        if host is not None:
            found = [pack_address(text) or b"" for text in await self._addresses(host)]
            if not found:
                raise DestinationRefused(f"{host} has no address", Refusal.HOST_UNREACHABLE)
            address = found[0]
        return DirectLeg(self._sockets, owner, self._counters, self._buffer, self._is_of_the_tun, address=address)

    def _is_of_the_tun(self, address: str) -> bool:
        """Whether a packet to `address` would enter the tun, although it is ours."""
        return any(ip_address(address.partition("%")[0]) in network for network in self._tun)

    def refuses_udp(self) -> UpstreamError | None:
        """See Outbound."""
        return None

    def close(self) -> None:
        """See Outbound: nothing is kept between flows."""
