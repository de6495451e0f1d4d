"""A short run, and that the fuzzer reaches what it is for."""

from random import Random

import pytest

from shared.metrics import Cell
from tests.fuzz.run import Failure, play, play_episode
from tests.fuzz.targets import TARGETS
from tests.fuzz.world import World
from workers.stack.tcp.states import State

INPUTS = 40_000


def test_nothing_is_found() -> None:
    result = play(INPUTS, seed=20)
    assert result.inputs.keys() == TARGETS.keys() and result.inputs.total() >= INPUTS


def test_every_state_and_every_reason_to_drop_is_met() -> None:
    states: set[State] = set()
    met: set[Cell] = set()
    for seed in range(40):
        world = World(Random(seed))
        for _ in range(300):
            world.step()
            states.update(flow.connection.state for flow in world.flows)
        met.update(cell for cell in Cell if world.counters[cell])
    assert states >= {*State} - {State.TIME_WAIT, State.CLOSED}
    assert met >= {
        Cell.DROP_MALFORMED, Cell.DROP_CHECKSUM, Cell.DROP_FRAGMENT, Cell.DROP_UNSUPPORTED, Cell.DROP_FLOW_LIMIT,
        Cell.DROP_HALF_OPEN, Cell.DROP_OUT_OF_WINDOW, Cell.DROP_RATE_LIMIT, Cell.DROP_STALE, Cell.TCP_CHALLENGE_ACKS,
        Cell.TCP_RESETS_RECEIVED, Cell.TCP_RETRANSMITS, Cell.ICMP_ECHO_REPLIES, Cell.ICMP_ERRORS_SENT,
    }  # fmt: skip


def test_a_failure_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "check", lambda self: self.stack.counters["no such cell"])
    with pytest.raises(Failure, match=r"python -m tests\.fuzz --seed 3 --episode 0"):
        play_episode(3, 0)
