"""workers/relay/loops.py: when flows count as a circle. Times are seconds."""

import socket
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest

from shared.control import LoopSuspected
from shared.metrics import CELLS, Cell
from shared.rules.flow import Ends
from workers.relay.facts import FlowFacts
from workers.relay.loops import CERTAIN, CERTAIN_AFTER, CUT_FOR, LOOK_INTERVAL, SUSPICIOUS, LoopWatch

HOST, OTHER = socket.inet_aton("198.51.100.10"), socket.inet_aton("203.0.113.10")
APPLICATION = socket.inet_aton("198.18.0.1")


@dataclass
class Flow:
    facts: FlowFacts
    up: int = 0
    down: int = 0
    is_dialing: bool = True


def flow(number: int, host: bytes = HOST, *, port: int = 8443, started_at: float = 0.0) -> Flow:
    ends = Ends("tcp", APPLICATION, 40000 + number, host, port)
    return Flow(cast(FlowFacts, SimpleNamespace(ends=ends, started_at=started_at)))


class Watch:
    """A LoopWatch over flows that stay."""

    def __init__(self) -> None:
        self.counters = [0] * CELLS
        self.told: list[LoopSuspected] = []
        self.flows: list[Flow] = []
        self._watch = LoopWatch(self.counters, self.told.append)

    def admits(self, new: Flow, now: float) -> bool:
        self.flows.append(new)
        return self._watch.admits(new.facts, len(self.flows), self.flows, now)

    def fill(self, count: int, now: float = 0.0, host: bytes = HOST) -> None:
        for number in range(count):
            assert self.admits(flow(number, host, started_at=now), now)


def test_some_flows_without_answer_are_nothing() -> None:
    watch = Watch()
    watch.fill(SUSPICIOUS - 1)
    assert watch.told == []


def test_many_flows_without_answer_are_told_and_admitted() -> None:
    watch = Watch()
    watch.fill(SUSPICIOUS)
    (told,) = watch.told
    assert (told.destination, told.destination_port, told.is_cut) == (HOST, 8443, False)
    watch.fill(CERTAIN, now=LOOK_INTERVAL / 2)
    assert len(watch.told) == 1, "not before the next look"


@pytest.mark.parametrize("others", [0, 1000])
def test_burst_is_told_at_once_and_before_anything_was_asked(others: int) -> None:
    watch = Watch()
    for number in range(others):
        watch.admits(flow(number, bytes((10, 0, number >> 8, number & 255))), 0.0)
    for number in range(SUSPICIOUS):
        assert watch.told == []
        new = flow(number, started_at=0.1)
        assert watch.admits(new, 0.1)
        new.is_dialing = False
    assert [(told.destination, told.is_cut) for told in watch.told] == [(HOST, False)]


def test_burst_of_connections_that_stay_silent_is_no_circle() -> None:
    watch = Watch()
    for number in range(2 * CERTAIN):
        idle = flow(number)
        idle.is_dialing = False
        assert watch.admits(idle, 0.0)
    watch.told.clear()
    for after in range(10):
        assert watch.admits(flow(0, started_at=CERTAIN_AFTER + after), CERTAIN_AFTER + after)
    assert watch.told == []


def test_one_answer_clears_the_destination() -> None:
    watch = Watch()
    watch.fill(SUSPICIOUS - 1)
    watch.flows[3].down = 1
    watch.fill(CERTAIN)
    assert watch.told == []


def test_connections_on_which_nothing_was_asked_do_not_count() -> None:
    watch = Watch()
    for number in range(CERTAIN):
        idle = flow(number)
        idle.is_dialing = False
        assert watch.admits(idle, CERTAIN_AFTER + number * LOOK_INTERVAL)
    assert watch.told == []
    for asked in watch.flows:
        asked.up = 1
    assert not watch.admits(flow(0), 1000.0)


@pytest.mark.parametrize(("host", "port"), [(OTHER, 8443), (HOST, 443)])
def test_destinations_count_apart(host: bytes, port: int) -> None:
    watch = Watch()
    for number in range(SUSPICIOUS - 1):
        watch.admits(flow(number), 0.0)
        watch.admits(flow(number, host, port=port), 0.0)
    assert watch.told == []


def test_burst_is_no_circle_before_its_time() -> None:
    """A load test opens a thousand connections before the first answer can be there."""
    watch = Watch()
    watch.fill(4 * CERTAIN)
    assert watch.admits(flow(0), CERTAIN_AFTER - 0.1)
    assert not any(told.is_cut for told in watch.told)


def test_circle_is_cut_for_a_while_and_tried_again() -> None:
    watch = Watch()
    watch.fill(CERTAIN)
    assert not watch.admits(flow(0), CERTAIN_AFTER)
    assert watch.told[-1].is_cut
    assert watch.counters[Cell.DROP_LOOP] == 1
    assert watch.admits(flow(0, OTHER), CERTAIN_AFTER), "others go on"
    watch.flows.clear()
    assert not watch.admits(flow(0), CERTAIN_AFTER + CUT_FOR - 0.1)
    assert watch.admits(flow(0), CERTAIN_AFTER + CUT_FOR)
