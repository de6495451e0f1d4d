"""workers/handover.py: what a worker tells of its flows before and after others take over."""

import asyncio
from collections.abc import Set
from typing import Any

import pytest

from shared import control
from shared.metrics import CELLS, Cell
from tests.support.loop import on_loop, until
from workers import handover
from workers.handover import KEYS_IN_MESSAGE, Handover

A, B, C = (bytes([n]) * 12 for n in range(3))


class Worker:
    """A worker with flows that the test says."""

    def __init__(self) -> None:
        self.flows: set[bytes] = set()
        self.arriving: dict[int, bytes] = {}  # entry of the ring -> flow that it begins
        self.said: list[Any] = []
        self.admitted: Set[bytes] | None = None
        self.listens = True
        self.counters = [0] * CELLS
        self.handover = Handover(
            asyncio.get_running_loop(),
            self.counters,
            live=lambda: set(self.flows),
            serve_until=self.serve_until,
            refuse_new=self.refuse_new,
            tell=self.tell,
        )

    def serve_until(self, entry: int) -> None:
        self.flows |= {key for at, key in self.arriving.items() if at < entry}

    def refuse_new(self, known: Set[bytes]) -> None:
        self.admitted = known

    def tell(self, message: control.FromWorker) -> bool:
        if self.listens:
            self.said.append(message)
        return self.listens

    def changes(self) -> tuple[set[bytes], set[bytes]]:
        """What was told since the last call: begun, ended."""
        keys = [message for message in self.said if isinstance(message, control.Keys)]
        self.said.clear()
        return {key for m in keys for key in m.begun}, {key for m in keys for key in m.ended}


@on_loop
async def test_flows_and_what_has_changed_are_told() -> None:
    worker = Worker()
    worker.flows = {A, B}
    worker.handover.tell(control.TellKeys(1, 0, afresh=True))
    assert worker.said[-1] == control.Keys(1)
    assert worker.changes() == ({A, B}, set())
    worker.flows = {B}
    worker.arriving = {6: C}
    worker.handover.tell(control.TellKeys(2, 7, afresh=False))
    assert worker.changes() == ({C}, {A}), "the ring is served before"
    worker.handover.tell(control.TellKeys(3, 7, afresh=True))
    assert worker.changes() == ({B, C}, set())


@on_loop
async def test_many_flows_are_told_in_messages_that_fit() -> None:
    worker = Worker()
    worker.flows = {n.to_bytes(36, "big") for n in range(2 * KEYS_IN_MESSAGE + 1)}
    worker.handover.tell(control.TellKeys(1, 0, afresh=True))
    assert [(len(m.begun), m.last) for m in worker.said] == [(500, False), (500, False), (1, False), (0, True)]
    assert max(len(control.encode(message)) for message in worker.said) < 32 * 1024
    assert worker.changes()[0] == worker.flows


@on_loop
async def test_answer_of_which_a_part_is_lost_does_not_end() -> None:
    worker = Worker()
    worker.flows = {A}
    worker.listens = False
    worker.handover.tell(control.TellKeys(1, 0, afresh=True))
    worker.listens = True
    assert worker.said == []


@on_loop
async def test_ends_are_told_while_it_drains_and_known_flows_alone_may_begin() -> None:
    worker = Worker()
    worker.flows = {A, B}
    worker.handover.tell(control.TellKeys(1, 0, afresh=True))
    worker.changes()
    worker.handover.drain()
    assert worker.admitted == {A, B}
    assert worker.said == []
    worker.listens = False
    worker.flows = {A}
    worker.handover._look()
    assert worker.admitted == {A, B}, "the master does not know yet, and sends a SYN of B here"
    worker.listens = True
    worker.handover._look()
    assert worker.changes() == (set(), {B})
    assert worker.admitted == {A}
    worker.counters[Cell.DNS_WAITING] = 1
    worker.flows = set()
    worker.handover._look()
    assert worker.said == [control.Keys(0, ended=(A,))]
    worker.said.clear()
    worker.handover._look()
    assert worker.said == [], "a question is under way"
    worker.counters[Cell.DNS_WAITING] = 0
    worker.handover._look()
    assert worker.said == [control.Drained()]
    worker.handover.close()


@on_loop
async def test_it_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "INTERVAL", 0.001)
    worker = Worker()
    worker.flows = {A}
    worker.handover.tell(control.TellKeys(1, 0, afresh=True))
    worker.changes()
    worker.handover.drain()
    worker.flows = set()
    await until(lambda: control.Drained() in worker.said)
    assert worker.changes() == (set(), {A})
    worker.handover.close()
