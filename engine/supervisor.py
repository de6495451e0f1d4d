"""Starts the workers, watches them, and replaces one that dies.

A start that is a worker's first and fails, ends the engine, or the reload that wanted it; so do STARTS_MAX in a row. When a
worker has died and is reaped, its rings are zeroed, its slots return to the pool, and its successor gets the same place:
packets of its flows find no connection there and are answered with RST. Other workers do not notice.

Workers belong to a generation. The current one takes new flows; workers of earlier ones drain (engine/generations.py), and
are not replaced. A worker that has ended for good gives its place back.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec

from engine.config.options.engine import WORKERS_MAX
from engine.ingress import Ingress, Shard
from engine.worker_process import WorkerFailed, WorkerProcess, WorkerState
from shared import control
from shared.config import Policy, WorkerConfig
from shared.metrics import Cell, end_gauges
from shared.pool import Pool

__all__ = ["PLACES", "Report", "Supervisor"]

log = logging.getLogger(__name__)

PLACES = 2 * WORKERS_MAX
"""Workers that there may be at a time, those that drain included; each has memory that is reserved until it is used."""
START_TIMEOUT = 20.0  # seconds until Ready; a loaded machine needs about one
STOP_TIMEOUT = 3.0  # seconds to reset flows and exit before SIGKILL
STABLE_AFTER = 10.0  # seconds of running after which a death counts as the first one again
STARTS_MAX = 8
"""Starts that may fail in a row. Whatever keeps a worker from starting for so long, its share of the flows goes nowhere."""
BACKOFF_FIRST, BACKOFF_MAX = 0.05, 15.0  # seconds before a restart, doubled with each death in a row
NO_LIMIT = 1 << 62  # bytes


Report = (
    control.Reloaded
    | control.UdpSupport
    | control.ProxyFailing
    | control.FindProcess
    | control.LoopSuspected
    | control.Measured
    | control.Used
    | control.PassedOver
    | control.Flows
    | control.Delay
    | control.Usage
    | control.LookedUp
    | control.DnsAnswered
    | control.Logged
    | control.Keys
    | control.Drained
)
"""What workers say beside how they themselves stand."""


class Supervisor:
    """Owns the worker processes of a run, at first `workers` of them. `config` is what they are told, without their number.

    `on_report` is given the number of a worker and what it says. `shape` and `memory_max` are those of WorkerProcess.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        workers: int,
        pool: Pool,
        tun_fd: int,
        fake_ip_fd: int | None = None,
        on_report: Callable[[int, Report], None],
        shape: Callable[[WorkerConfig], WorkerConfig] = lambda config: config,
        memory_max: int = NO_LIMIT,
    ) -> None:
        self._config = config
        self._pool = pool
        self._fds = (pool.fd, tun_fd) if fake_ip_fd is None else (pool.fd, tun_fd, fake_ip_fd)
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self.ingress: Ingress | None = None
        self.on_failed: Callable[[WorkerFailed], None] = lambda failure: None
        """Called when a worker that ran once cannot be started again."""
        self._places: dict[int, WorkerProcess] = {}
        self.generation = 1
        """Number of the current one."""
        self.current = self.open(workers, self.generation, shape, memory_max)
        """The workers that take new flows."""

    @property
    def workers(self) -> list[WorkerProcess]:
        """All workers, in the order of their numbers; those that drain and those that are to take over included."""
        return [self._places[index] for index in sorted(self._places)]

    @property
    def measuring(self) -> int:
        """Number of the worker that tests the members of urltest groups."""
        return self.current[0].index

    @property
    def shards(self) -> list[Shard]:
        """The master's ends of the current workers."""
        return [worker.shard for worker in self.current]

    def find(self, index: int) -> WorkerProcess | None:
        """Return the worker with a number."""
        return self._places.get(index)

    def send(self, index: int, message: control.FromMaster) -> bool:
        """Tell one worker something. False: it is not running, or does not listen."""
        worker = self._places.get(index)
        return worker is not None and worker.send(message)

    def send_all(self, message: control.FromMaster) -> list[int]:
        """Tell every worker that is running; return their numbers."""
        return [worker.index for worker in self.workers if worker.send(message)]

    def set_policy(self, policy: Policy) -> None:
        """Workers that are started from now on get this policy; those that run are told by Reload."""
        self._config = msgspec.structs.replace(self._config, policy=policy)

    def set_egress(self, egress: tuple[int, int]) -> None:
        """All workers, and those that are started from now on, let their sockets out by these interfaces."""
        self._config = msgspec.structs.replace(self._config, egress=egress)
        self.send_all(control.Egress(*egress))

    def set_log_level(self, level: str) -> None:
        """All workers, and those that are started from now on, log from this level on."""
        self._config = msgspec.structs.replace(self._config, log_level=level)
        self.send_all(control.SetLogLevel(level))

    # generations

    def open(
        self, count: int, generation: int, shape: Callable[[WorkerConfig], WorkerConfig], memory_max: int
    ) -> list[WorkerProcess]:
        """Give places to `count` workers, the lowest that are free. Raises WorkerFailed when there are too few."""
        free = [place for place in range(self._pool.layout.places) if place not in self._places][:count]
        if len(free) < count:
            raise WorkerFailed(
                f"{count} workers are more than there are places for ({len(free)} of {self._pool.layout.places} are free): "
                "wait until those before them have drained"
            )
        opened = [
            WorkerProcess(
                place,
                generation,
                self._pool,
                shape=shape,
                memory_max=memory_max,
                on_message=self._on_message,
                on_exit=self._on_exit,
            )
            for place in free
        ]
        self._places |= {worker.index: worker for worker in opened}
        master = self._pool.counters[-1]
        master[Cell.PLACES_USED] = max(master[Cell.PLACES_USED], free[-1] + 1)
        return opened

    def adopt(self, workers: list[WorkerProcess]) -> list[WorkerProcess]:
        """These take new flows from now on; return those that did before."""
        before, self.current = self.current, workers
        self.generation = workers[0].generation
        return before

    def end(self, worker: WorkerProcess) -> None:
        """Stop a worker that is none of the current ones, and give its place back."""
        worker.cancel_timer()
        if worker.state is WorkerState.BACKOFF:
            worker.set_state(WorkerState.STOPPED)
        if worker.state is WorkerState.STOPPED:  # also one that never was started
            self._vacate(worker)
        elif worker.state is not WorkerState.STOPPING:
            worker.set_state(WorkerState.STOPPING)
            worker.send(control.Stop())
            worker.set_timer(STOP_TIMEOUT, WorkerProcess.kill)

    def _vacate(self, worker: WorkerProcess) -> None:
        self._pool.reset_rings(worker.index)
        end_gauges(self._pool.counters[worker.index])
        if self.ingress is not None:
            self.ingress.drop(worker.shard)
        worker.close()
        del self._places[worker.index]

    # the current generation, or one that is to be

    async def start(self, workers: Sequence[WorkerProcess] | None = None) -> None:
        """Start workers, the current ones unless others are named, and wait until all serve. Raises WorkerFailed."""
        waiting = []
        workers = self.current if workers is None else workers
        for worker in workers:
            worker.ready = self._loop.create_future()
            waiting.append(worker.ready)
            try:
                self._spawn(worker)
            except OSError as error:
                raise WorkerFailed(f"worker {worker.index} cannot be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.gather(*waiting)
        except TimeoutError:
            late = [worker.index for worker in workers if worker.state is WorkerState.STARTING]
            raise WorkerFailed(f"workers {late} were not ready within {START_TIMEOUT:.0f} s") from None

    async def stop(self) -> None:
        """Stop every worker; those that do not exit in STOP_TIMEOUT are killed."""
        self._stopping = True
        workers = self.workers
        for worker in workers:
            worker.cancel_timer()
            if worker.state is WorkerState.BACKOFF:
                worker.set_state(WorkerState.STOPPED)
            elif worker.state in (WorkerState.STARTING, WorkerState.RUNNING, WorkerState.DRAINING):
                worker.set_state(WorkerState.STOPPING)
                worker.send(control.Stop())  # one that cannot be told is dying by itself: its exit watch will tell
        stopping = [worker for worker in workers if worker.state is WorkerState.STOPPING]
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                for worker in stopping:
                    await worker.exited.wait()
        except TimeoutError:
            for worker in stopping:
                if worker.process is not None:
                    log.warning("worker %d does not stop: killed", worker.index)
                    worker.kill()
            for worker in stopping:
                await worker.exited.wait()
        for worker in workers:
            worker.close()

    def kill(self, index: int, reason: str) -> None:
        """Kill a worker that does not serve as it should, so that another takes its place; `reason` completes "worker N"."""
        worker = self._places[index]
        if worker.state in (WorkerState.STARTING, WorkerState.RUNNING, WorkerState.DRAINING):
            worker.verdict = reason
            worker.kill()

    # life of one incarnation

    def _spawn(self, worker: WorkerProcess) -> None:
        together = [other.index for other in self._places.values() if other.generation == worker.generation]
        own = msgspec.structs.replace(
            self._config, index=worker.index, workers=len(together), measures=worker.index == min(together)
        )
        worker.spawn(worker.shape(own), self._fds)

    def _on_message(self, worker: WorkerProcess, message: control.FromWorker) -> None:
        if isinstance(message, control.Ready):
            if worker.state is not WorkerState.STARTING:
                return  # it crossed our Stop
            worker.set_state(WorkerState.RUNNING)
            worker.starts_failed = 0
            log.info("worker %d serves (pid %d)", worker.index, message.pid)
            if worker.ready is not None and not worker.ready.done():
                worker.ready.set_result(None)
        elif not isinstance(message, control.Failed):
            self._on_report(worker.index, message)
        elif worker.ready is not None and not worker.ready.done():
            worker.ready.set_exception(WorkerFailed(f"worker {worker.index} cannot start: {message.reason}"))
        else:
            worker.verdict = f"cannot start: {message.reason}"

    def _on_exit(self, worker: WorkerProcess, how: str) -> None:
        """The process is dead and reaped: either finish stopping or start its successor."""
        if worker.state is WorkerState.STOPPING:
            worker.set_state(WorkerState.STOPPED)
            if not self._stopping:
                self._vacate(worker)
            return
        if worker.state is WorkerState.DRAINING:
            log.error("worker %d %s while it drained; its flows are lost", worker.index, how)
            worker.set_state(WorkerState.STOPPED)
            self._vacate(worker)
            return
        starting = worker.state is WorkerState.STARTING
        worker.set_state(WorkerState.BACKOFF)
        if worker.ready is not None and not worker.ready.done():
            worker.ready.set_exception(WorkerFailed(f"worker {worker.index} {how} before it was ready"))
            return
        if worker.ready is not None and not worker.ready.cancelled() and worker.ready.exception() is not None:
            return  # it has said why it cannot start
        if starting:
            self._note_failed_start(worker, how)
        self._schedule_restart(worker, how)

    def _note_failed_start(self, worker: WorkerProcess, how: str) -> None:
        worker.starts_failed += 1
        if worker.starts_failed == STARTS_MAX:
            reason = f"worker {worker.index} has not come up in {STARTS_MAX} starts; the last time it {how}"
            self.on_failed(WorkerFailed(reason))

    def _schedule_restart(self, worker: WorkerProcess, how: str) -> None:
        worker.last_end = how
        if monotonic() - worker.started_at > STABLE_AFTER:
            worker.deaths_in_a_row = 0
        worker.deaths_in_a_row += 1
        worker.restarts += 1
        delay = _backoff(worker.deaths_in_a_row)
        log.error("worker %d %s; its flows are lost, restarting it in %.1f s", worker.index, how, delay)
        self._pool.reset_rings(worker.index)
        before, worker.shard = worker.shard, worker.new_shard()
        if self.ingress is not None and worker in self.current:
            self.ingress.replace(before, worker.shard)
        else:
            before.close()
        end_gauges(self._pool.counters[worker.index])
        worker.set_timer(delay, self._respawn)

    def _respawn(self, worker: WorkerProcess) -> None:
        try:
            self._spawn(worker)
        except OSError as error:
            how = f"could not be started again ({error.strerror})"
            self._note_failed_start(worker, how)
            self._schedule_restart(worker, how)


def _backoff(deaths_in_a_row: int) -> float:
    """Seconds until the restart after the nth death in a row; the first is mended at once."""
    if deaths_in_a_row == 1:
        return 0.0
    return float(min(BACKOFF_FIRST * 2 ** min(deaths_in_a_row, 32), BACKOFF_MAX))
