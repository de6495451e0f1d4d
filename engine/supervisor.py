"""Starts the workers, watches them, and replaces one that dies.

    STARTING --Ready--> RUNNING --exit--> BACKOFF --delay--> STARTING
        |                  |                                      (stop) any --> STOPPING --exit--> STOPPED
        +------exit--------+--> BACKOFF (a first start that fails ends the engine, and so do STARTS_MAX in a row)

When a worker has died and is reaped, its rings are zeroed, its slots return to the pool, and its successor gets the same
shard number: packets of its flows find no connection there and are answered with RST. Other shards do not notice.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from time import monotonic

import msgspec

from engine.ingress import Ingress, Shard
from shared import control
from shared.channel import Channel, channel_to_worker, send_now
from shared.config import Policy, WorkerConfig
from shared.metrics import end_gauges
from shared.pool import Pool
from shared.system import Doorbell, ExitWatch, message_pair, open_doorbell

__all__ = ["Report", "Supervisor", "WorkerFailed", "WorkerState"]

log = logging.getLogger(__name__)

START_TIMEOUT = 20.0  # seconds until Ready; a loaded machine needs about one
STOP_TIMEOUT = 3.0  # seconds to reset flows and exit before SIGKILL
STABLE_AFTER = 10.0  # seconds of running after which a death counts as the first one again
STARTS_MAX = 8
"""Starts that may fail in a row. Whatever keeps a worker from starting for so long, its share of the flows goes nowhere."""
BACKOFF_FIRST, BACKOFF_MAX = 0.05, 15.0  # seconds before a restart, doubled with each death in a row


class WorkerState(Enum):
    """Where a worker's process stands; the picture above has the transitions."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"


_NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset((WorkerState.RUNNING, WorkerState.BACKOFF, WorkerState.STOPPING)),
    WorkerState.RUNNING: frozenset((WorkerState.BACKOFF, WorkerState.STOPPING)),
    WorkerState.BACKOFF: frozenset((WorkerState.STARTING, WorkerState.STOPPED)),
    WorkerState.STOPPING: frozenset((WorkerState.STOPPED,)),
    WorkerState.STOPPED: frozenset((WorkerState.STARTING,)),
}


class WorkerFailed(Exception):
    """A worker could not start; the text is one sentence for the user."""


class _Worker:
    """One shard's process, and what is kept of it from one incarnation to the next."""

    def __init__(self, index: int, doorbell: Doorbell) -> None:
        self.index = index
        self.doorbell = doorbell
        self.state = WorkerState.STOPPED
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel[control.FromWorker] | None = None
        self.exit_watch: ExitWatch | None = None
        self.started_at = 0.0
        self.restarts = 0
        self.last_end = ""
        """What became of the incarnation before this one."""
        self.verdict = ""
        """Why we have killed it."""
        self.deaths_in_a_row = 0
        self.starts_failed = 0
        """In a row."""
        self.ready: asyncio.Future[None] | None = None
        self.exited = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def set_state(self, state: WorkerState) -> None:
        assert state in _NEXT[self.state], f"worker {self.index}: {self.state.value} -> {state.value}"
        log.debug("worker %d: %s -> %s", self.index, self.state.value, state.value)
        self.state = state


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
)
"""What workers say beside how they themselves stand."""


class Supervisor:
    """Owns the worker processes of a run. `config` is worker 0's; the others get theirs with another index.

    `on_report` is given the number of a worker and what it says.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        pool: Pool,
        tun_fd: int,
        fake_ip_fd: int | None = None,
        on_report: Callable[[int, Report], None],
    ) -> None:
        self._config = config
        self._pool = pool
        self._fds = (pool.fd, tun_fd) if fake_ip_fd is None else (pool.fd, tun_fd, fake_ip_fd)
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self.ingress: Ingress | None = None
        self.on_failed: Callable[[WorkerFailed], None] = lambda failure: None
        """Called when a worker that ran once cannot be started again."""
        self.workers = [_Worker(i, open_doorbell()) for i in range(config.workers)]

    def shard(self, index: int) -> Shard:
        """The master's ends of worker `index`; take it once per incarnation."""
        return Shard(self._pool.ring(index), self._pool.free_ring(index), self.workers[index].doorbell.write)

    def send(self, index: int, message: control.FromMaster) -> bool:
        """Tell one worker something. False: it is not running, or does not listen."""
        channel = self.workers[index].channel
        return channel is not None and channel.send(message)

    def send_all(self, message: control.FromMaster) -> list[int]:
        """Tell every worker that is running; return their numbers."""
        return [worker.index for worker in self.workers if self.send(worker.index, message)]

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

    async def start(self) -> None:
        """Start every worker and wait until all serve. Raises WorkerFailed."""
        waiting = []
        for worker in self.workers:
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
            late = [worker.index for worker in self.workers if worker.state is WorkerState.STARTING]
            raise WorkerFailed(f"workers {late} were not ready within {START_TIMEOUT:.0f} s") from None

    async def stop(self) -> None:
        """Stop every worker; those that do not exit in STOP_TIMEOUT are killed."""
        for worker in self.workers:
            if worker.timer is not None:
                worker.timer.cancel()
            if worker.state is WorkerState.BACKOFF:
                worker.set_state(WorkerState.STOPPED)
            elif worker.state in (WorkerState.STARTING, WorkerState.RUNNING):
                worker.set_state(WorkerState.STOPPING)
                self._send_stop(worker)
        stopping = [worker for worker in self.workers if worker.state is WorkerState.STOPPING]
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                for worker in stopping:
                    await worker.exited.wait()
        except TimeoutError:
            for worker in stopping:
                if worker.process is not None:
                    log.warning("worker %d does not stop: killed", worker.index)
                    worker.process.kill()
            for worker in stopping:
                await worker.exited.wait()
        for worker in self.workers:
            worker.doorbell.close()

    def _send_stop(self, worker: _Worker) -> None:
        assert worker.channel is not None
        worker.channel.send(control.Stop())  # one that cannot be told is dying by itself: its exit watch will tell

    def kill(self, index: int, reason: str) -> None:
        """Kill a worker that does not serve as it should, so that another takes its place; `reason` completes "worker N"."""
        worker = self.workers[index]
        if worker.process is not None and worker.state in (WorkerState.STARTING, WorkerState.RUNNING):
            worker.verdict = reason
            worker.process.kill()

    # life of one incarnation

    def _spawn(self, worker: _Worker) -> None:
        """Start the process. Raises OSError when the machine has no memory or process left for it."""
        ours, theirs = message_pair()
        fds = (theirs.fileno(), worker.doorbell.read, *self._fds)
        worker.set_state(WorkerState.STARTING)
        worker.exited.clear()
        worker.started_at = monotonic()
        # Before the process exists: one that dies at once would make this fail with EPIPE.
        send_now(ours, control.Configure(msgspec.structs.replace(self._config, index=worker.index)))
        try:
            # -P: never import from the directory the user happens to stand in.
            worker.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers", str(os.getpid()), *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        except OSError:
            ours.close()
            worker.set_state(WorkerState.BACKOFF)
            raise
        finally:
            theirs.close()
        try:
            worker.exit_watch = ExitWatch(worker.process.pid)
        except OSError:
            worker.process.kill()
            worker.process.wait()
            ours.close()
            worker.set_state(WorkerState.BACKOFF)
            raise
        # The end of the channel is of no interest: the process's is told by the exit watch.
        worker.channel = channel_to_worker(self._loop, ours, partial(self._on_message, worker), lambda: None)
        self._loop.add_reader(worker.exit_watch.fileno(), self._on_exit, worker)

    def _on_message(self, worker: _Worker, message: control.FromWorker) -> None:
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

    def _on_exit(self, worker: _Worker) -> None:
        """The process is dead: reap it, and either finish stopping or start its successor."""
        process, channel = worker.process, worker.channel
        assert process is not None and channel is not None and worker.exit_watch is not None
        channel.read_left()  # a reason for failing
        self._loop.remove_reader(worker.exit_watch.fileno())
        worker.exit_watch.close()
        channel.close()
        code = process.wait()
        worker.process = worker.channel = None
        worker.exited.set()
        if worker.state is WorkerState.STOPPING:
            worker.set_state(WorkerState.STOPPED)
            return
        how = worker.verdict or _how_it_ended(code)
        worker.verdict = ""
        starting = worker.state is WorkerState.STARTING
        worker.set_state(WorkerState.BACKOFF)
        if worker.ready is not None and not worker.ready.done():
            worker.ready.set_exception(WorkerFailed(f"worker {worker.index} {how} before it was ready"))
            return
        if starting:
            self._note_failed_start(worker, how)
        self._schedule_restart(worker, how)

    def _note_failed_start(self, worker: _Worker, how: str) -> None:
        worker.starts_failed += 1
        if worker.starts_failed == STARTS_MAX:
            reason = f"worker {worker.index} has not come up in {STARTS_MAX} starts; the last time it {how}"
            self.on_failed(WorkerFailed(reason))

    def _schedule_restart(self, worker: _Worker, how: str) -> None:
        worker.last_end = how
        if monotonic() - worker.started_at > STABLE_AFTER:
            worker.deaths_in_a_row = 0
        worker.deaths_in_a_row += 1
        worker.restarts += 1
        delay = _backoff(worker.deaths_in_a_row)
        log.error("worker %d %s; its flows are lost, restarting it in %.1f s", worker.index, how, delay)
        self._pool.reset_rings(worker.index)
        if self.ingress is not None:
            self.ingress.reset_shard(worker.index, self.shard(worker.index))
        end_gauges(self._pool.counters[worker.index])
        worker.timer = self._loop.call_later(delay, self._respawn, worker)

    def _respawn(self, worker: _Worker) -> None:
        try:
            self._spawn(worker)
        except OSError as error:
            how = f"could not be started again ({error.strerror})"
            self._note_failed_start(worker, how)
            self._schedule_restart(worker, how)


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _backoff(deaths_in_a_row: int) -> float:
    """Seconds until the restart after the nth death in a row; the first is mended at once."""
    if deaths_in_a_row == 1:
        return 0.0
    return float(min(BACKOFF_FIRST * 2 ** min(deaths_in_a_row, 32), BACKOFF_MAX))
