"""The outbound that takes the fastest of its members. One worker measures for all; the master tells the others."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from time import monotonic

from shared.config import UrltestOutbound
from workers.upstream import Leg, LegOwner, Outbound, Trail, UpstreamError
from workers.upstream.fetch import FetchFailed, measure
from workers.upstream.group import ChosenMember

__all__ = ["Urltest"]

log = logging.getLogger(__name__)

TEST_TIMEOUT = 5.0  # seconds, as sing-box's TCPTimeout
TESTS_AT_ONCE = 10  # as sing-box


class Urltest(ChosenMember):
    """`measures`: this worker is the one that does. `on_used` is told at most once an interval that flows take the group;
    `on_measured` gets the delays of all members (None: failed) after each round of tests, and whether `chosen` has changed.
    """

    def __init__(
        self,
        config: UrltestOutbound,
        loop: asyncio.AbstractEventLoop,
        cells: int,
        members: Sequence[Outbound],
        *,
        measures: bool,
        on_used: Callable[[str], object],
        on_measured: Callable[["Urltest", dict[str, float | None], bool], None],
    ) -> None:
        chosen = next((member for member in members if member.tag == config.default), members[0])
        super().__init__(config.tag, "urltest", cells, members, chosen, interrupts=config.interrupt_exist_connections)
        self._config = config
        self._loop = loop
        self._measures = measures
        self._on_used = on_used
        self._on_measured = on_measured
        self._delays: dict[str, float | None] = {}
        self._used_at = self._told_at = monotonic()
        self._tls: ssl.SSLContext | None = None
        self._task = loop.create_task(self._measure_again_and_again(), name=f"urltest {self.tag}") if measures else None

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """See Outbound."""
        self.note_use()
        trail.append(self)
        return await self._member("tcp").connect(host, port, trail)

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """See Outbound."""
        self.note_use()
        trail.append(self)
        return await self._member("udp").open_udp(owner, host, trail)

    def carries(self, network: str) -> bool:
        """If any member does."""
        return any(member.carries(network) for member in self.members)

    def refuses_udp(self) -> UpstreamError | None:
        """See Outbound."""
        return self._member("udp").refuses_udp()

    def _member(self, network: str) -> Outbound:
        """The chosen one; the fastest that carries the network, when that one does not."""
        if self.chosen.carries(network):
            return self.chosen
        able = [member for member in self.members if member.carries(network)]
        return min(able, key=self._delay, default=self.chosen)

    def _delay(self, member: Outbound) -> float:
        delay = self._delays.get(member.tag)
        return delay if delay is not None else float("inf")

    def note_use(self) -> None:
        """A flow takes the group, here or in another worker."""
        now = self._used_at = monotonic()
        if not self._measures:
            if now - self._told_at >= self._config.interval:
                self._told_at = now
                self._on_used(self.tag)
        elif self._task is not None and self._task.done():  # it had been idle for long
            self._task = self._loop.create_task(self._measure_again_and_again(), name=f"urltest {self.tag}")

    def measure_now(self) -> None:
        """What was measured before means nothing any more. Harmless in a worker that does not measure."""
        if self._task is not None:
            self._task.cancel()
            self._task = self._loop.create_task(self._measure_again_and_again(), name=f"urltest {self.tag}")

    async def _measure_again_and_again(self) -> None:
        while monotonic() - self._used_at < self._config.idle_timeout:
            await self._measure_all()
            await asyncio.sleep(self._config.interval)

    async def _measure_all(self) -> None:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        tls = self._tls
        free = asyncio.Semaphore(TESTS_AT_ONCE)

        async def one(member: Outbound) -> None:
            async with free:
                try:
                    self._delays[member.tag] = await measure(member, self._config.url, TEST_TIMEOUT, tls)
                except FetchFailed as error:
                    self._delays[member.tag] = None
                    log.debug("%s: %s failed its test: %s", self.tag, member.tag, error)

        await asyncio.gather(*map(one, self.members))
        best = min(self.members, key=self._delay)
        is_better = best is not self.chosen and (self._delay(best) + self._config.tolerance < self._delay(self.chosen))
        if is_better:
            log.info("%s takes %s (%.0f ms)", self.tag, best.tag, self._delay(best) * 1000)
            self.chosen = best
        self._on_measured(self, dict(self._delays), is_better)

    def close(self) -> None:
        """Stop measuring."""
        if self._task is not None:
            self._task.cancel()
