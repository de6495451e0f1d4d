"""Other workers take over while flows live: more or fewer of them, or their code as it is on the disk now.

    1  new workers are started beside the old ones; if one does not come up, all of them are ended and nothing has changed
    2  each old worker tells the keys of its flows, while everything goes on
    3  reading from the tun pauses; each old worker serves its ring to the end and tells what has changed since. No packet
       is on its way now, so the pins (engine/pins.py) hold every flow
    4  new flows go to the new workers, pinned ones to the old; reading goes on. It has paused for a turn of the old workers'
       event loops, and meanwhile packets wait in the tun's queue
    5  an old worker ends when none of its flows is left. After `drain_timeout` those that are left are reset

Several generations may drain at a time, as long as there are places (shared/pool.py). A worker that dies while it drains is
not replaced.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic

from engine.ingress import Ingress
from engine.supervisor import Supervisor
from engine.tun_reader import TunReader
from engine.worker_process import WorkerFailed, WorkerProcess, WorkerState
from shared.config import WorkerConfig
from shared.control import Drain, Drained, Keys, TellKeys
from shared.metrics import Cell
from shared.pool import Pool

__all__ = ["Generations", "HandoverFailed", "flows_of"]

log = logging.getLogger(__name__)

TELL_TIMEOUT = 5.0  # seconds for a worker to tell its flows while everything goes on
SWITCH_TIMEOUT = 2.0  # seconds for it to tell what has changed, while nothing is read from the tun

Shape = Callable[[WorkerConfig], WorkerConfig]


class HandoverFailed(Exception):
    """The workers before go on as if nothing had been; the text is one sentence for the user."""


class _Question:
    """A TellKeys to several workers."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: set[int] = set()
        self.done = asyncio.Event()

    def settle(self, index: int) -> None:
        self.waiting.discard(index)
        if not self.waiting:
            self.done.set()


class Generations:
    """Give it the workers' reports about keys.

    `shape` returns how workers are configured when there are so many of them, and the bytes of memory that each may have.
    `drain_timeout` tells the seconds for which flows of an earlier generation may go on.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        ingress: Ingress,
        reader: TunReader,
        pool: Pool,
        *,
        shape: Callable[[int], tuple[Shape, int]],
        drain_timeout: Callable[[], float],
    ) -> None:
        self._supervisor = supervisor
        self._ingress = ingress
        self._reader = reader
        self._pool = pool
        self._shape = shape
        self._drain_timeout = drain_timeout
        self._numbers = supervisor.generation
        self._questions = 0
        self._question: _Question | None = None

    async def renew(self, count: int) -> None:
        """Have `count` new workers take new flows; return when they do. One at a time. Raises HandoverFailed."""
        supervisor = self._supervisor
        shape, memory_max = self._shape(count)
        self._numbers += 1
        new: list[WorkerProcess] = []
        try:
            new = supervisor.open(count, self._numbers, shape, memory_max)
            await supervisor.start(new)
            await self._hand_over(new)
        except (WorkerFailed, HandoverFailed) as error:
            for worker in new:
                supervisor.end(worker)
            raise HandoverFailed(str(error)) from error

    async def _hand_over(self, new: list[WorkerProcess]) -> None:
        pins = self._ingress.pins
        old = self._supervisor.current
        asked = _running(old)
        for worker in asked:
            pins.drop(worker.shard)
        try:
            await self._ask(asked, TELL_TIMEOUT, afresh=True)
            self._reader.pause()
            try:
                await self._ask(_running(old), SWITCH_TIMEOUT, afresh=False)
                self._ingress.switch([worker.shard for worker in new])
            finally:
                self._reader.resume()
        except HandoverFailed:
            for worker in old:
                pins.drop(worker.shard)
            raise
        self._supervisor.adopt(new)
        timeout = self._drain_timeout()
        flows = sum(flows_of(self._pool, worker) for worker in old)
        log.info(
            "generation %d: %d workers take new flows, those before them drain (%d flows, within %.0f s)",
            new[0].generation, len(new), flows, timeout,
        )  # fmt: skip
        for worker in old:
            self._retire(worker, timeout)

    async def _ask(self, workers: Sequence[WorkerProcess], timeout: float, *, afresh: bool) -> None:
        """Have workers tell their flows; one that dies meanwhile has none. Raises HandoverFailed."""
        self._questions += 1
        question = self._question = _Question(self._questions)
        ends = []
        for worker in workers:
            question.waiting.add(worker.index)
            # What was pushed up to now is served before the answer.
            worker.send(TellKeys(question.number, worker.shard.ring.position, afresh))
            ends.append(asyncio.ensure_future(_when_ended(worker, question)))
        try:
            if question.waiting:
                async with asyncio.timeout(timeout):
                    await question.done.wait()
        except TimeoutError:
            late = ", ".join(map(str, sorted(question.waiting)))
            raise HandoverFailed(f"worker {late} did not tell its flows within {timeout:.0f} s") from None
        finally:
            self._question = None
            for end in ends:
                end.cancel()

    def _retire(self, worker: WorkerProcess, timeout: float) -> None:
        if worker.state is not WorkerState.RUNNING:
            self._supervisor.end(worker)  # it has died and has no flows
            return
        worker.set_state(WorkerState.DRAINING)
        worker.drains_until = monotonic() + timeout
        worker.send(Drain())
        worker.set_timer(timeout, self._cut)

    def _cut(self, worker: WorkerProcess) -> None:
        """Time is up: reset what is left."""
        left = flows_of(self._pool, worker)
        self._pool.counters[-1][Cell.DRAIN_CUT] += left
        log.warning("worker %d has not drained in time: its last %d flows are reset", worker.index, left)
        self._supervisor.end(worker)

    def on_report(self, index: int, report: Keys | Drained) -> None:
        """A worker tells of its flows."""
        worker = self._supervisor.find(index)
        if worker is None:
            return
        if isinstance(report, Drained):
            if worker.state is WorkerState.DRAINING:
                log.info("worker %d has drained", worker.index)
                self._supervisor.end(worker)
            return
        question = self._question
        if report.id and (question is None or report.id != question.number):
            return  # too late
        self._ingress.pins.remove(worker.shard, report.ended)
        self._ingress.pins.add(worker.shard, report.begun)
        if question is not None and report.id and report.last:
            question.settle(index)


def flows_of(pool: Pool, worker: WorkerProcess) -> int:
    """TCP flows and UDP associations of a worker now."""
    row = pool.counters[worker.index]
    return row[Cell.TCP_ACTIVE] + row[Cell.UDP_ACTIVE]


def _running(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    return [worker for worker in workers if worker.state is WorkerState.RUNNING]


async def _when_ended(worker: WorkerProcess, question: _Question) -> None:
    await worker.exited.wait()
    question.settle(worker.index)
