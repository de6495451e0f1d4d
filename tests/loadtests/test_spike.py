"""loadtests/spike.py: what a machine carries is found, twice that is offered, and it is told how long the way back takes."""

from collections.abc import Callable

import pytest

from loadtests.checks import shedding
from loadtests.spike import AFTER_SECONDS, BASE_SECONDS, FIRST_USERS, SPIKE_SECONDS, Answers, Course, Facts, Spike

PER_USER = 10
"""Requests that a user makes in a second when nobody waits."""
SLO = 500.0


class Machine:
    """Answers up to `capacity` requests in a second, in `quick` milliseconds, and later the more users there are beyond.

    disturbed   seconds in which somebody else takes half of it
    """

    def __init__(self, capacity: int, *, quick: float = 20.0, disturbed: range = range(0)) -> None:
        self.capacity = capacity
        self.quick = quick
        self.disturbed = disturbed

    def serve(self, second: int, users: int, answers: Answers, *, is_ill: bool) -> None:
        capacity = self.capacity // 2 if second in self.disturbed else self.capacity
        offered = users * PER_USER
        late = self.quick * max(1.0, offered / capacity)
        for number in range(min(offered, capacity)):
            answers.add(second + 0.5, late * (20 if is_ill else 1), failed=is_ill and number == 0)


def run(machine: Machine, *, most: int = 2000, ill: range = range(0)) -> tuple[Course, list[int]]:
    """Run a whole course; return it and how many users there were in each second.

    `ill`: seconds after the end of the spike in which requests fail, and all take twenty times as long
    """
    answers = Answers()
    course = Course(answers, p95=SLO, most=most)
    users: list[int] = []
    while (now := course.users(second := len(users))) is not None:
        is_ill = course.is_found and second - course.after_at in ill
        machine.serve(second, now, answers, is_ill=is_ill)
        users.append(now)
        assert len(users) < 1000, "it never ends"
    return course, users


@pytest.mark.parametrize("capacity", [300, 1000, 4000])
def test_what_is_carried_is_found(capacity: int) -> None:
    course, users = run(Machine(capacity))
    carried = capacity / PER_USER
    assert carried / 1.5 <= course.carried <= carried * 1.5
    peak = [second for second, count in enumerate(users) if count == 2 * course.carried]
    assert peak[-SPIKE_SECONDS:] == list(range(peak[-1] - SPIKE_SECONDS + 1, peak[-1] + 1)), (
        "at once, and as long as it is to be"
    )
    half = round(course.carried / 2)
    assert users[-AFTER_SECONDS:] == [half] * AFTER_SECONDS
    assert users[peak[-SPIKE_SECONDS] - BASE_SECONDS : peak[-SPIKE_SECONDS]] == [half] * BASE_SECONDS


def test_one_disturbed_step_does_not_end_the_search() -> None:
    calm, _ = run(Machine(2000))
    disturbed, _ = run(Machine(2000, disturbed=range(18, 24)))
    assert disturbed.carried == calm.carried


def test_a_machine_that_carries_more_than_may_be_tried() -> None:
    course, users = run(Machine(10**6), most=50)
    assert (course.carried, max(users)) == (50, 100)


def test_a_machine_that_is_too_slow_for_anybody() -> None:
    course, _ = run(Machine(1000, quick=SLO + 1))
    assert course.carried == FIRST_USERS
    assert "even 20 users are not answered within 500 ms" in course.verdict()[0]


def test_as_before_at_once() -> None:
    course, _ = run(Machine(3000))
    assert course.recovery() == 0
    missed, kept = course.verdict()
    assert missed == []
    assert "as before 0 s after the spike, to be 5 s" in kept


@pytest.mark.parametrize(("recovers", "good"), [(3, True), (5, True), (6, False), (1000, False)])
def test_the_way_back_is_timed(recovers: int, good: bool) -> None:
    course, _ = run(Machine(3000), ill=range(recovers))
    missed, kept = course.verdict()
    assert (missed == []) is good, missed
    if recovers < 100:
        assert course.recovery() == recovers
        assert any(f"as before {recovers} s after the spike" in sentence for sentence in [*missed, *kept])
    else:
        assert course.recovery() is None
        assert any("after the spike it is not as before" in sentence for sentence in missed)


def test_who_falls_ill_again_is_not_as_before() -> None:
    course, _ = run(Machine(3000), ill=range(8, 18))
    assert course.recovery() == 0
    (missed,) = course.verdict()[0]
    assert missed.startswith("and from then on: ") and missed.endswith("95 % within 400 ms, 10 failed")


def facts(**changes: float) -> Facts:
    return Facts(**({"start": 1010.0, "end": 1020.0, "failed": 0, "unanswered": 0} | changes))  # type: ignore[typeddict-item]


def sample(time: float, *, dropped: float = 0.0, refused: float = 0.0) -> dict[str, float]:
    return {
        "time": time, "dropped ring_full": dropped, "dropped tun_queue_full": 1.0, "connects failed": refused, "udp refused": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failed", "dropped", "refused", "good"),
    [(0, 0, 0, True), (3, 0, 0, False), (3, 5, 0, True), (3, 0, 3, True), (0, 7, 0, True)],
)
def test_what_users_lose_the_engine_has_counted(failed: int, dropped: float, refused: float, good: bool) -> None:
    before, later = sample(1009.0, dropped=10, refused=2), sample(1021.0, dropped=10 + dropped, refused=2 + refused)
    much_later = sample(1030.0, dropped=100, refused=100)
    verdict = shedding(facts(failed=failed, unanswered=1 if failed else 0), [before, later, much_later])
    assert verdict.good is good
    assert f"{dropped} packets dropped and {refused} flows or datagrams refused" in verdict.sentence
    if failed:
        assert "3 requests of the spike failed, 1 of them without an answer" in verdict.sentence


def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr("loadtests.spike.monotonic", lambda: now[0])
    monkeypatch.setattr("loadtests.spike.time", lambda: 1000.0 + now[0])

    def move(to: float) -> None:
        now[0] = to

    return move


class WrongAnswer(Exception):
    """As loadtests.users.request has it, which nobody imports who needs his sockets."""


def test_failures_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    move = at(monkeypatch)
    spike = Spike(p95=SLO, most=FIRST_USERS)
    second = 0.0
    while spike.users() is not None:
        for _ in range(50):
            spike.add(10.0, None)
        if spike._course.best is not None and int(second) == spike._course.spike_at:
            for failure in TimeoutError(), OSError("timed out"), ConnectionRefusedError(), WrongAnswer("not this"):
                spike.add(10_000.0, failure)
        second += 1
        move(second)
    found = spike.facts()
    assert found is not None
    assert (found["failed"], found["unanswered"]) == (4, 2)
    assert (found["start"], found["end"] - found["start"]) == (1000.0 + spike._course.spike_at, SPIKE_SECONDS + 5)
    assert spike.verdict()[0] == ["1 wrong answers"]


def test_run_that_ends_too_early_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    move = at(monkeypatch)
    spike = Spike(p95=SLO, most=100)
    for second in range(10):
        move(float(second))
        spike.users()
    assert spike.verdict()[0] == ["the run ended before the spike was over: give it more time (-t)"]
    assert spike.facts() is None
