"""One worker's process: how it is started, told things, and reaped. What follows from its end is the supervisor's.

STARTING --Ready--> RUNNING --exit--> BACKOFF --delay--> STARTING
    |                |   |                                  (stop) any --> STOPPING --exit--> STOPPED
    |                |   +--others take over--> DRAINING --no flow left, or time is up--> STOPPING
    |                |                             +--exit--> STOPPED
    +------exit------+--> BACKOFF
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from time import monotonic

from engine.ingress import Shard
from shared import control
from shared.channel import Channel, channel_to_worker, send_now
from shared.config import WorkerConfig
from shared.contract import contract
from shared.pool import Pool
from shared.system import ExitWatch, message_pair, open_doorbell

__all__ = ["WorkerFailed", "WorkerProcess", "WorkerState"]

log = logging.getLogger(__name__)


class WorkerState(Enum):
    """Where a worker's process stands; the picture above has the transitions."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"


_NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset((WorkerState.RUNNING, WorkerState.BACKOFF, WorkerState.STOPPING)),
    WorkerState.RUNNING: frozenset((WorkerState.DRAINING, WorkerState.BACKOFF, WorkerState.STOPPING)),
    WorkerState.DRAINING: frozenset((WorkerState.STOPPING, WorkerState.STOPPED)),
    WorkerState.BACKOFF: frozenset((WorkerState.STARTING, WorkerState.STOPPED)),
    WorkerState.STOPPING: frozenset((WorkerState.STOPPED,)),
    WorkerState.STOPPED: frozenset((WorkerState.STARTING,)),
}


class WorkerFailed(Exception):
    """A worker could not start; the text is one sentence for the user."""


class WorkerProcess:
    """The process at one place of the shared memory, and what is kept of it from one incarnation to the next.

    shape       makes a worker's configuration that of this generation: its limits
    memory_max  bytes of anonymous memory that it may have
    on_message  is called with the worker and each message
    on_exit     is called with the worker and how it ended, once it is dead and reaped
    """

    def __init__(
        self,
        index: int,
        generation: int,
        pool: Pool,
        *,
        shape: Callable[[WorkerConfig], WorkerConfig],
        memory_max: int,
        on_message: Callable[["WorkerProcess", control.FromWorker], None],
        on_exit: Callable[["WorkerProcess", str], None],
    ) -> None:
        self.index = index
        self.generation = generation
        self.shape = shape
        self.memory_max = memory_max
        self._pool = pool
        self._on_message = on_message
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self.doorbell = open_doorbell()
        self.shard = self.new_shard()
        """The master's ends of this incarnation."""
        self.state = WorkerState.STOPPED
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: Channel[control.FromWorker] | None = None
        self._exit_watch: ExitWatch | None = None
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
        """Of the restart, the end of draining, or the end of stopping."""
        self.drains_until: float | None = None
        """Monotonic seconds at which the flows that are left are reset."""

    @property
    def pid(self) -> int | None:
        """Of the process that there is now."""
        return self.process.pid if self.process is not None else None

    def set_state(self, state: WorkerState) -> None:
        """Go to a state that the picture allows."""
        assert state in _NEXT[self.state], f"worker {self.index}: {self.state.value} -> {state.value}"
        log.debug("worker %d: %s -> %s", self.index, self.state.value, state.value)
        self.state = state

    def new_shard(self) -> Shard:
        """Return the master's ends of the rings; one for each incarnation."""
        return Shard(self._pool.ring(self.index), self._pool.free_ring(self.index), self.doorbell.write)

    def set_timer(self, delay: float, call: Callable[["WorkerProcess"], None]) -> None:
        """Call `call` with this worker in `delay` seconds, instead of what was to be called before."""
        self.cancel_timer()
        self.timer = self._loop.call_later(delay, call, self)

    def cancel_timer(self) -> None:
        """Call nothing."""
        if self.timer is not None:
            self.timer.cancel()

    def send(self, message: control.FromMaster) -> bool:
        """Tell it something. False: it is not running, or does not listen."""
        return self._channel is not None and self._channel.send(message)

    def spawn(self, config: WorkerConfig, shared_fds: tuple[int, ...]) -> None:
        """Start the process. Raises OSError when the machine has no memory or process left for it."""
        ours, theirs = message_pair()
        fds = (theirs.fileno(), self.doorbell.read, *shared_fds)
        self.set_state(WorkerState.STARTING)
        self.exited.clear()
        self.started_at = monotonic()
        # Before the process exists: one that dies at once would make this fail with EPIPE.
        send_now(ours, control.Configure(config))
        try:
            # -P: never import from the directory the user happens to stand in.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers", str(os.getpid()), contract(), *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        except OSError:
            ours.close()
            self.set_state(WorkerState.BACKOFF)
            raise
        finally:
            theirs.close()
        try:
            self._exit_watch = ExitWatch(self.process.pid)
        except OSError:
            self.process.kill()
            self.process.wait()
            self.process = None
            ours.close()
            self.set_state(WorkerState.BACKOFF)
            raise
        # The end of the channel is of no interest: the process's is told by the exit watch.
        self._channel = channel_to_worker(
            self._loop, ours, lambda message: self._on_message(self, message), lambda: None
        )
        self._loop.add_reader(self._exit_watch.fileno(), self._reap)

    def kill(self) -> None:
        """Kill the process, if there is one; its end is told as any other."""
        if self.process is not None:
            self.process.kill()

    def _reap(self) -> None:
        process, channel = self.process, self._channel
        assert process is not None and channel is not None and self._exit_watch is not None
        channel.read_left()  # a reason for failing
        self._loop.remove_reader(self._exit_watch.fileno())
        self._exit_watch.close()
        channel.close()
        code = process.wait()
        self.process = self._channel = None
        how = self.verdict or _how_it_ended(code)
        self.verdict = ""
        self.exited.set()
        self._on_exit(self, how)

    def close(self) -> None:
        """Let go of the doorbell and the rings; the process is gone."""
        self.cancel_timer()
        self.shard.close()
        self.doorbell.close()


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
