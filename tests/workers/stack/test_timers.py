"""The lazy heap against the obvious: look at every deadline."""

import math

from hypothesis import given
from hypothesis import strategies as st

from workers.stack.timers import Entry, Timers


class Alarm:
    """Fires at `deadline`, which may be moved at will."""

    def __init__(self) -> None:
        self.timer: Entry | None = None
        self.deadline = math.inf
        self.fired: list[float] = []

    def on_timer(self, now: float) -> float:
        if self.deadline <= now:
            self.fired.append(now)
            self.deadline = math.inf
        return self.deadline


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["set", "cancel", "pass"]), st.integers(0, 50)), max_size=60)
)
def test_alarms_fire_when_they_are_due(steps: list[tuple[int, str, int]]) -> None:
    timers = Timers()
    alarms = [Alarm() for _ in range(4)]
    expected: list[list[float]] = [[] for _ in alarms]
    now = 0.0
    for which, what, amount in steps:
        alarm = alarms[which]
        if what == "set":
            alarm.deadline = now + amount  # sooner or later than before
            timers.arm(alarm, alarm.deadline)
        elif what == "cancel":
            alarm.deadline = math.inf
            timers.cancel(alarm)
        else:
            now += amount
            for each, record in zip(alarms, expected, strict=True):
                if each.deadline <= now:
                    record.append(now)
            timers.expire(now)
        pending = [alarm.deadline for alarm in alarms if alarm.deadline < math.inf]
        at = timers.next_at()
        assert (at is None) <= (not pending)
        assert at is None or not pending or at <= min(pending)
    assert [alarm.fired for alarm in alarms] == expected


def test_dead_entries_do_not_pile_up() -> None:
    timers = Timers()
    keeper = Alarm()
    timers.arm(keeper, 1e6)
    for _ in range(10_000):
        alarm = Alarm()
        timers.arm(alarm, 7200.0)
        timers.cancel(alarm)
    assert len(timers) == 1
    assert len(timers._heap) < 200
