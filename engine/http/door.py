"""Who comes in: connections are accepted here, and bounded, so that no number of clients takes more than a fixed amount.

accepted    CONNECTIONS_MAX at a time, PER_PEER_MAX of them from one address; beyond it the answer is 503, without reading
idle        IDLE_TIMEOUT without a request under way, and without progress of what is sent, ends a connection; so it ends one
            whose request does not come to its end
requests    those that cost the master or the network something (DEAR) have a rate each, of the whole server, beyond which the
            answer is 429; and few of them are under way at a time, while others wait
streams     websockets and endless responses: STREAMS_MAX; one that takes nothing for SEND_TIMEOUT ends (clash/streams.py)

aiohttp bounds the rest: 8 KiB a header line, 64 KiB a body (client_max_size). Every refusal is counted by its reason.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["IDLE_TIMEOUT", "REASONS", "SEND_TIMEOUT", "Door", "Rate"]

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
PER_PEER_MAX = 128
"""So that others are served while one address takes all that it can get."""
IDLE_TIMEOUT = 60.0  # seconds
SEND_TIMEOUT = 30.0  # seconds
LOOK_INTERVAL = 5.0  # seconds between two looks at all connections
ACCEPT_PAUSE = 0.5  # seconds after the machine had no descriptor or memory for a connection

REASONS = ("connections", "peer", "idle", "rate", "streams", "slow")
"""Why somebody was refused, or a connection ended."""

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests a second in the long run, so many in a row; and so many under way, while others wait."""

    per_second: float
    burst: int
    at_once: int


DEAR = {
    "/metrics": Rate(100, 200, 4),
    "/connections": Rate(100, 200, 2),  # some 700 bytes a flow
    "/configs": Rate(20, 100, 4),
    "/dns/query": Rate(100, 400, 64),
    "/cache/dns/flush": Rate(2, 20, 1),
    "/cache/fakeip/flush": Rate(2, 20, 1),
    "/proxies/{name}/delay": Rate(50, 500, 64),  # a dashboard asks for all proxies at once
    "/group/{name}/delay": Rate(2, 20, 4),
}
"""By the path as it was routed."""


class _Bucket:
    """A token bucket."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self.at_once = asyncio.Semaphore(rate.at_once)
        self._left = float(rate.burst)
        self._at = monotonic()

    def take(self) -> bool:
        now = monotonic()
        self._left = min(self._rate.burst, self._left + (now - self._at) * self._rate.per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class _Guest:
    """A connection that was let in."""

    peer: str
    seen_at: float
    """When its last request ended, or what is sent to it last became less."""
    under_way: int = 0
    unsent: int = 0


class Door:
    """Accepts what comes at listening sockets, and hands it to `server`."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        """By one of REASONS."""
        self._guests: dict[asyncio.BaseTransport, _Guest] = {}
        self._buckets = {path: _Bucket(rate) for path, rate in DEAR.items()}

    async def run(self, server: web.Server, listeners: Sequence[socket.socket]) -> None:
        """Accept, until this is cancelled. An error ends it: who cannot accept is not to stay without a word."""
        async with asyncio.TaskGroup() as tasks:
            for listener in listeners:
                listener.setblocking(False)
                tasks.create_task(self._accept(server, listener), name="accept")
            tasks.create_task(self._look_again_and_again(), name="door")

    async def _accept(self, server: web.Server, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            peer = str(address[0])
            reason = self._why_not(peer)
            if reason is not None:
                self.refused[reason] += 1
                _refuse(client)
                continue
            try:
                transport, _ = await loop.connect_accepted_socket(server, client)
            except OSError:
                client.close()
                continue
            self._guest(transport, peer)  # unless its first request was faster

    def _why_not(self, peer: str) -> str | None:
        guests = self._guests
        if len(guests) >= PER_PEER_MAX:
            self._guests = guests = {each: guest for each, guest in guests.items() if not each.is_closing()}
        if len(guests) >= CONNECTIONS_MAX:
            return "connections"
        return "peer" if sum(guest.peer == peer for guest in guests.values()) >= PER_PEER_MAX else None

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            self.look(monotonic())

    def look(self, now: float) -> None:
        """End the connections that are idle."""
        self._guests = {each: guest for each, guest in self._guests.items() if not each.is_closing()}
        for transport, guest in self._guests.items():
            unsent = transport.get_write_buffer_size() if isinstance(transport, asyncio.WriteTransport) else 0
            if guest.under_way or 0 < unsent < guest.unsent:
                guest.seen_at = now
            guest.unsent = unsent
            if now - guest.seen_at > IDLE_TIMEOUT:
                self.refused["idle"] += 1
                transport.abort() if isinstance(transport, asyncio.Transport) else transport.close()

    @property
    def connections(self) -> int:
        """That are open now."""
        return sum(not transport.is_closing() for transport in self._guests)

    def _guest(self, transport: asyncio.BaseTransport, peer: str) -> _Guest:
        return self._guests.setdefault(transport, _Guest(peer, monotonic()))

    @property
    def watch(self) -> Middleware:
        """The middleware that stands first: it notes that a request is under way."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.transport is None:  # gone already
                return await handler(request)
            guest = self._guest(request.transport, request.remote or "")
            guest.under_way += 1
            try:
                return await handler(request)
            finally:
                guest.under_way -= 1
                guest.seen_at = monotonic()

        return watch

    @property
    def ration(self) -> Middleware:
        """The middleware that stands behind the check of who asks: it refuses what comes too often."""

        @web.middleware
        async def ration(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            bucket = self._buckets.get(resource.canonical) if resource is not None else None
            if bucket is not None and not bucket.take():
                self.refused["rate"] += 1
                raise web.HTTPTooManyRequests(text="too many such requests: try again in a second")
            if bucket is None or hdrs.UPGRADE in request.headers:  # streams are counted for themselves
                return await handler(request)
            async with bucket.at_once:
                return await handler(request)

        return ration

    def families(self) -> Iterator[Metric]:
        """Yield what metrics show of it."""
        yield GaugeMetricFamily("tunloom_http_connections", "Connections to the HTTP server.", value=self.connections)
        refused = CounterMetricFamily(
            "tunloom_http_refused", "Connections and requests that were refused or ended.", labels=("reason",)
        )
        for reason in REASONS:
            refused.add_metric((reason,), self.refused[reason])
        yield refused


def _refuse(client: socket.socket) -> None:
    """Answer 503 as far as that goes at once: whoever is refused is not waited for."""
    try:
        client.setblocking(False)
        client.send(_REFUSAL)
        client.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    client.close()
