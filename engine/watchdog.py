"""Finds workers that live but do not serve, and lets the supervisor replace them.

hung       its event loop has not turned for HANG_CHECKS checks: the heartbeat in its counters stands still
late       it was started START_TIMEOUT ago and has not said that it serves
too large  its own memory (without the shared pool) is above the cap

A check that comes late itself proves nothing, since then the whole machine, or all of the engine, stood still (a suspended
virtual machine, a frozen cgroup, SIGSTOP to the group): counting starts anew.
"""

from pathlib import Path

from engine.supervisor import START_TIMEOUT, Supervisor
from engine.worker_process import WorkerProcess, WorkerState
from shared.metrics import Cell
from shared.pool import Pool

__all__ = ["CHECK_INTERVAL", "Watchdog"]

CHECK_INTERVAL = 1.0  # seconds
LATE_AFTER = 2.5  # seconds between two checks
HANG_CHECKS = 6
"""A heartbeat comes ten times a second. Even a machine that is short of processors lets a loop turn within this time."""


class Watchdog:
    """Call `check` every CHECK_INTERVAL seconds."""

    def __init__(self, supervisor: Supervisor, pool: Pool) -> None:
        self._supervisor = supervisor
        self._pool = pool
        self._checked_at = float("-inf")
        self._beats: dict[int, tuple[int, int]] = {}
        """Of each worker, by its number: its process and its heartbeat when it last changed."""
        self._still: dict[int, int] = {}
        """Checks since then."""

    def check(self, now: float) -> None:
        """Look at every worker; `now` as of time.monotonic."""
        late = now - self._checked_at > LATE_AFTER
        self._checked_at = now
        for worker in self._supervisor.workers:
            if worker.state in (WorkerState.RUNNING, WorkerState.DRAINING):
                self._check_running(worker, late)
            elif worker.state is WorkerState.STARTING and now - worker.started_at > START_TIMEOUT:
                self._supervisor.kill(worker.index, f"was not ready after {START_TIMEOUT:.0f} s")

    def _check_running(self, worker: WorkerProcess, late: bool) -> None:
        index, pid = worker.index, worker.pid
        assert pid is not None, "it is running"
        beat = pid, self._pool.counters[index][Cell.HEARTBEAT]
        if beat != self._beats.get(index) or late:
            self._beats[index] = beat
            self._still[index] = 0
        else:
            self._still[index] += 1
        if self._still[index] >= HANG_CHECKS:
            self._still[index] = 0
            self._supervisor.kill(index, f"did nothing for {HANG_CHECKS * CHECK_INTERVAL:.0f} s")
            return
        memory = _anonymous_memory(pid)
        if memory > worker.memory_max:
            self._supervisor.kill(
                index, f"took {memory >> 20} MiB of memory, of {worker.memory_max >> 20} MiB that it may have"
            )


def _anonymous_memory(pid: int) -> int:
    """Bytes of memory that are the process's alone, in RAM (RssAnon of proc_pid_status(5)); 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, _, rest = status.partition("RssAnon:")
    return int(rest.split(maxsplit=1)[0]) * 1024 if rest else 0
