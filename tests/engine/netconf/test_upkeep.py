"""How often what others remove is made again, and what is remembered of events."""

import logging

import pytest

from engine.netconf.events import EVENTS_MAX, KINDS, EventBook
from engine.netconf.upkeep import Allowance


def test_so_many_times_at_once_and_then_one_an_interval() -> None:
    allowance = Allowance(3, 10.0)
    assert [allowance.take(100.0) for _ in range(3)] == [0.0] * 3
    assert allowance.take(100.0) == pytest.approx(10.0)
    assert allowance.take(104.0) == pytest.approx(6.0)
    assert allowance.take(110.0) == 0.0
    assert allowance.take(110.0) == pytest.approx(10.0)
    assert [allowance.take(1000.0) for _ in range(3)] == [0.0] * 3
    assert allowance.take(1000.0) > 0


def test_last_events_are_kept_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = iter(range(1000))
    book = EventBook(lambda: float(next(now)))
    with caplog.at_level(logging.INFO):
        for n in range(EVENTS_MAX + 5):
            book.note("address_changed", f"change {n}")
        book.note("tun_up", "told elsewhere", level=None)
    assert [event.text for event in book.events][:2] == ["change 6", "change 7"]
    assert (book.events[-1].time, book.events[-1].kind) == (EVENTS_MAX + 5.0, "tun_up")
    assert book.counts == dict.fromkeys(KINDS, 0) | {"address_changed": EVENTS_MAX + 5, "tun_up": 1}
    assert "change 7" in caplog.text
    assert "elsewhere" not in caplog.text
