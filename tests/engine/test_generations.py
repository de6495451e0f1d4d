"""engine/generations.py with real workers; one end of a socket pair is their tun, and datagrams keep flows alive there."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from engine import generations as module
from engine.generations import Generations, HandoverFailed
from engine.supervisor import Report
from engine.worker_process import WorkerProcess, WorkerState
from shared.control import Drained, Keys
from shared.metrics import Cell
from tests.engine.test_supervisor import CONFIG as CONFIG
from tests.engine.test_supervisor import PLACES, SLOTS, WORKERS, Bed, running
from tests.support.loop import on_loop, until
from tests.support.packets import tcp

SOURCE, TARGET = "192.0.2.1", "198.51.100.7"


class Reader:
    """Counts."""

    def __init__(self) -> None:
        self.pauses = self.resumed = 0

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self.resumed += 1


class Handing:
    """A bed whose workers others can take over from. `timeout`: seconds to drain."""

    def __init__(self, bed: Bed, timeout: float) -> None:
        self.bed = bed
        self.supervisor = bed.supervisor
        self.ingress = bed.start_ingress()
        self.reader = Reader()
        self.generations = Generations(
            bed.supervisor,
            self.ingress,
            cast(Any, self.reader),
            bed.pool,
            shape=lambda count: (lambda config: config, 1 << 40),
            drain_timeout=lambda: timeout,
        )
        bed.supervisor._on_report = self.on_report

    def on_report(self, index: int, report: Report) -> None:
        if isinstance(report, Keys | Drained):
            self.generations.on_report(index, report)

    def active(self, worker: WorkerProcess) -> int:
        return self.bed.pool.counters[worker.index][Cell.TCP_ACTIVE]

    def opened(self) -> int:
        rows = self.bed.pool.counters[:-1]
        return sum(row[Cell.TCP_OPENED] for row in rows)

    async def open(self, *ports: int) -> None:
        """Flows that wait for their proxy: nothing listens there, but the SYN has made them."""
        before = self.opened()
        self.bed.dispatch(*(tcp(SOURCE, port, TARGET, 443, flags=2) for port in ports))
        await until(lambda: self.opened() == before + len(ports))

    def states(self) -> list[tuple[int, str]]:
        return [(worker.generation, worker.state.value) for worker in self.supervisor.workers]


@asynccontextmanager
async def handing(timeout: float = 3600.0) -> AsyncIterator[Handing]:
    async with running() as bed:
        yield Handing(bed, timeout)


@on_loop
async def test_others_take_over_and_those_without_flows_end() -> None:
    async with handing() as made:
        pids = made.bed.pids()
        await made.generations.renew(3)
        assert [worker.index for worker in made.supervisor.current] == [2, 3, 4]
        assert made.supervisor.generation == 2
        assert made.supervisor.measuring == 2
        assert (made.reader.pauses, made.reader.resumed) == (1, 1)
        await until(lambda: len(made.supervisor.workers) == 3)
        assert not set(pids) & set(made.bed.pids())
        assert made.ingress.read_batch == made.ingress._read_batch, "nothing is looked up any more"
        await made.generations.renew(1)
        assert [worker.index for worker in made.supervisor.current] == [0], "places are given again"
        await until(lambda: len(made.supervisor.workers) == 1)


@on_loop
async def test_too_few_places() -> None:
    async with handing() as made:
        with pytest.raises(HandoverFailed, match=rf"5 workers are more than .* \(4 of {PLACES} are free\)"):
            await made.generations.renew(5)
        assert made.states() == [(1, "running")] * WORKERS


@on_loop
async def test_workers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async with handing() as made:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(HandoverFailed, match=r"worker \d exited with code 1 before it was ready"):
            await made.generations.renew(2)
        await until(lambda: made.states() == [(1, "running")] * WORKERS)
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        with pytest.raises(HandoverFailed, match="worker 2 cannot be started: No such file"):
            await made.generations.renew(2)
        await until(lambda: made.states() == [(1, "running")] * WORKERS)
        monkeypatch.undo()
        await made.generations.renew(2)
        assert made.supervisor.generation == 4


@on_loop
async def test_workers_of_another_version_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async with handing() as made:
        monkeypatch.setattr("engine.worker_process.contract", lambda: "0123456789abcdef")
        with pytest.raises(HandoverFailed, match=r"worker \d cannot start: the code on the disk is of another version"):
            await made.generations.renew(2)
        assert made.supervisor.generation == 1


@on_loop
async def test_worker_that_does_not_tell_its_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_TIMEOUT", 0.05)
    async with handing() as made:
        pid = made.bed.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(HandoverFailed, match=r"worker 1 did not tell its flows within"):
            await made.generations.renew(2)
        os.kill(pid, signal.SIGCONT)
        assert made.reader.pauses == 0, "packets went on meanwhile"
        assert len(made.ingress.pins) == 0
        monkeypatch.setattr(module, "TELL_TIMEOUT", 20.0)
        await made.generations.renew(2)


@on_loop
async def test_worker_that_dies_while_it_is_asked() -> None:
    async with handing() as made:
        pid = made.bed.pids()[0]
        os.kill(pid, signal.SIGSTOP)
        renewing = asyncio.ensure_future(made.generations.renew(1))
        await until(lambda: made.generations._question is not None)
        os.kill(pid, signal.SIGKILL)
        await renewing
        await until(lambda: made.states() == [(2, "running")])
        assert made.ingress.free_slots == SLOTS - 1


@on_loop
async def test_death_while_it_drains_frees_its_place() -> None:
    async with handing() as made:
        old = made.supervisor.workers
        await made.generations.renew(1)
        for worker in old:
            worker.kill()
        await until(lambda: made.states() == [(2, "running")])
        assert {worker.state for worker in old} == {WorkerState.STOPPED}
