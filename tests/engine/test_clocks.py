"""Suspends and a wall clock that is set, on clocks of the test's own; and what the engine does then."""

import asyncio
from typing import Any, cast

from engine.clocks import Clocks, ClockWatch, read_clocks
from engine.netconf.events import EventBook
from engine.roaming import Roaming
from shared.config import PassedOver
from shared.control import FlushDns, MeasureNow
from tests.engine.test_groups import groups as made_groups
from tests.support.loop import on_loop


class FakeClocks:
    """Three clocks that the test turns."""

    def __init__(self) -> None:
        self.now = Clocks(1000.0, 900.0, 1_700_000_000.0)

    def read(self) -> Clocks:
        return self.now

    def turn(self, seconds: float, *, suspended: float = 0.0, jumped: float = 0.0) -> None:
        """So many seconds pass awake, and so many in a suspend; the wall clock is set by so many."""
        boottime, monotonic, realtime = self.now
        passed = seconds + suspended
        self.now = Clocks(boottime + passed, monotonic + seconds, realtime + passed + jumped)


@on_loop
async def test_clocks_that_go_apart_tell_what_happened() -> None:
    told: list[tuple[str, float]] = []
    clocks = FakeClocks()
    watch = ClockWatch(
        asyncio.get_running_loop(),
        on_suspended=lambda seconds: told.append(("suspended", round(seconds, 3))),
        on_jumped=lambda seconds: told.append(("jumped", round(seconds, 3))),
        read=clocks.read,
    )
    try:
        for turn, expected in (
            ({"seconds": 1.0}, []),
            ({"seconds": 60.0}, []),  # the loop was busy: all three agree
            ({"seconds": 1.0, "jumped": 0.4, "suspended": 0.4}, []),
            ({"seconds": 1.0, "suspended": 3600.0}, [("suspended", 3600.0)]),
            ({"seconds": 1.0, "jumped": -86400.0}, [("jumped", -86400.0)]),
            ({"seconds": 1.0, "suspended": 7.0, "jumped": 5.0}, [("suspended", 7.0), ("jumped", 5.0)]),
            ({"seconds": 1.0}, []),
        ):
            clocks.turn(**turn)
            watch.check()
            assert told == expected
            told.clear()
    finally:
        watch.close()


def test_clocks_of_this_machine_go_on() -> None:
    before, after = read_clocks(), read_clocks()
    assert before.boottime <= after.boottime
    assert before.monotonic <= after.monotonic
    assert after.boottime >= after.monotonic - 1, "suspends count"


@on_loop
async def test_what_was_known_of_proxies_is_found_out_anew_after_a_suspend() -> None:
    clocks, events = FakeClocks(), EventBook()
    groups, notes = made_groups()
    roaming = Roaming(asyncio.get_running_loop(), events, cast(Any, notes), groups, read=clocks.read)
    groups.on_passed_over(PassedOver(group="fallback", member="one", until=1e9))
    notes.sent.clear()
    clocks.turn(1.0, suspended=3600.4)
    roaming.clocks.check()
    assert [event.text for event in events.events] == ["the machine was suspended for 3600 s"]
    alive = PassedOver(group="fallback", member="one", until=0.0)
    assert [message for worker, message in notes.sent if worker == 2] == [FlushDns(), alive, MeasureNow()]
    assert groups.chosen()["fallback"] == "one"
    notes.sent.clear()
    clocks.turn(1.0, jumped=-60.0)
    roaming.clocks.check()
    assert notes.sent == [], "no timer of ours is on the wall clock"
    events.note("default_route_moved", "moved")
    assert [message for worker, message in notes.sent if worker == 0] == [MeasureNow()]
    events.note("address_changed", "of some interface")
    assert len(notes.sent) == 3
    assert events.counts["suspended"] == events.counts["clock_jumped"] == 1
    roaming.close()
    events.note("default_route_moved", "again")
    assert len(notes.sent) == 3
