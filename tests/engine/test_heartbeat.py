"""engine/heartbeat.py: it beats, it tells how late it was, it stops. Time is a number that the test sets."""

import asyncio
from collections.abc import Callable
from typing import cast
from unittest.mock import Mock

import pytest

from engine import heartbeat
from engine.heartbeat import INTERVAL, Heartbeat
from shared.metrics import BOUNDS, CELLS, Cell, Histogram


class Clock:
    """A loop whose one timer is fired by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.timer: Mock | None = None
        self.due: Callable[[], None] | None = None
        monkeypatch.setattr(heartbeat, "monotonic", lambda: self.now)

    def call_later(self, delay: float, call: Callable[[], None]) -> Mock:
        assert delay == INTERVAL
        self.due, self.timer = call, Mock()
        return self.timer

    def fire(self, at: float) -> None:
        self.now = at
        assert self.due is not None
        self.due()


def beats(row: list[int]) -> dict[float, int]:
    """Upper bound of each bucket of lateness that is not empty -> beats."""
    bounds = (*BOUNDS, float("inf"))
    return {bound: row[Histogram.LOOP_LAG + i] for i, bound in enumerate(bounds) if row[Histogram.LOOP_LAG + i]}


def test_beats_in_time_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, row = Clock(monkeypatch), [0] * CELLS
    heart = Heartbeat(cast(asyncio.AbstractEventLoop, clock), row)
    heart.start()
    assert row[Cell.HEARTBEAT] == 100_000
    clock.fire(100.0 + INTERVAL)
    clock.fire(100.0 + 2 * INTERVAL + 0.3)
    assert beats(row) == {0.001: 2, 0.5: 1}
    clock.fire(100.0 + 3 * INTERVAL + 0.3)  # lateness does not add up
    assert beats(row) == {0.001: 3, 0.5: 1}
    heart.stop()
    assert clock.timer is not None
    clock.timer.cancel.assert_called_once_with()
