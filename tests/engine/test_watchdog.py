"""Workers that live but do not serve."""

import asyncio
import os
import signal
from operator import ne

import pytest

from engine import supervisor as supervisor_module
from engine.watchdog import CHECK_INTERVAL, HANG_CHECKS, Watchdog
from engine.worker_process import WorkerFailed, WorkerState
from shared.metrics import Cell
from tests.engine.test_supervisor import WORKERS, Bed, running
from tests.support.loop import on_loop
from tests.support.netns import wait_until

ENOUGH = 1 << 40  # bytes


class Clock:
    """Checks at the right times, or at others."""

    def __init__(self, bed: Bed, memory_max: int = ENOUGH) -> None:
        self.now = 100.0
        self.watchdog = Watchdog(bed.supervisor, bed.pool)
        for worker in bed.supervisor.workers:
            worker.memory_max = memory_max

    def check(self, times: int, interval: float = CHECK_INTERVAL) -> None:
        for _ in range(times):
            self.now += interval
            self.watchdog.check(self.now)


def stop(bed: Bed, index: int) -> int:
    pid = bed.supervisor.workers[index].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    return pid


def beats(bed: Bed) -> list[int]:
    return [bed.pool.counters[index][Cell.HEARTBEAT] for index in range(WORKERS)]


@on_loop
async def test_stopped_worker_is_replaced() -> None:
    async with running() as bed:
        clock = Clock(bed)
        pid = stop(bed, 0)
        for _ in range(HANG_CHECKS + 1):
            assert bed.supervisor.workers[0].state is WorkerState.RUNNING, "not sooner"
            before = beats(bed)[1]
            wait_until(lambda: beats(bed)[1] != before, what="the next heartbeat of the other")  # noqa: B023
            clock.check(1)
        await bed.restarted(0)
        hung, other = bed.supervisor.workers
        assert hung.pid != pid
        assert (hung.restarts, other.restarts) == (1, 0)
        assert hung.last_end == f"did nothing for {HANG_CHECKS} s"


@on_loop
async def test_checks_that_come_late_prove_nothing() -> None:
    """The whole machine was suspended."""
    async with running() as bed:
        clock = Clock(bed)
        clock.check(1)
        pid = stop(bed, 0)
        clock.check(HANG_CHECKS - 1)
        clock.check(5, interval=3600)
        clock.check(HANG_CHECKS - 1)
        assert bed.supervisor.workers[0].pid == pid
        os.kill(pid, signal.SIGCONT)


@on_loop
async def test_worker_that_serves_is_left_alone() -> None:
    async with running() as bed:
        clock = Clock(bed)
        pids = bed.pids()
        for _ in range(3 * HANG_CHECKS):
            before = beats(bed)
            wait_until(lambda: all(map(ne, beats(bed), before)), what="the next heartbeats")  # noqa: B023
            clock.check(1)
        assert bed.pids() == pids


@on_loop
async def test_worker_above_its_memory_is_replaced() -> None:
    async with running() as bed:
        pids = bed.pids()
        Clock(bed, memory_max=1 << 20).check(1)
        await asyncio.gather(*map(bed.restarted, range(WORKERS)))
        assert set(pids).isdisjoint(bed.pids())
        assert "MiB of memory, of 1 MiB that it may have" in bed.supervisor.workers[0].last_end


@on_loop
async def test_successor_that_does_not_get_ready_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as bed:
        worker = bed.supervisor.workers[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await worker.exited.wait()
        while worker.state is WorkerState.BACKOFF:  # noqa: ASYNC110 - until a callback of this loop has run
            await asyncio.sleep(0)
        stop(bed, 0)
        clock = Clock(bed)
        clock.now = worker.started_at + supervisor_module.START_TIMEOUT
        clock.check(1)
        await worker.exited.wait()
        await bed.restarted(0)
        assert worker.restarts == 2
        assert worker.last_end == "was not ready after 20 s"


@on_loop
async def test_worker_that_comes_up_no_more_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST", 0.0001)
    async with running() as bed:
        failed: asyncio.Future[WorkerFailed] = asyncio.get_running_loop().create_future()
        bed.supervisor.on_failed = failed.set_result
        monkeypatch.setattr("sys.executable", "/bin/false")
        os.kill(bed.pids()[0], signal.SIGKILL)
        assert str(await failed) == "worker 0 has not come up in 8 starts; the last time it exited with code 1"
