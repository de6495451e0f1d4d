"""The shape spike: finds out what the machine carries, offers twice as much, and looks how long it takes to be as before.

    finding   steps of half as many users again, until the answers per second grow no more or come too late
    before    half of what is carried
    spike     twice what is carried, at once
    after     as before

Users are a closed loop (each waits for its answer), so "twice" is twice the users; what is not carried shows as late answers
and as failures. Of these none may be silent: what the users lost the engine must have counted as dropped or refused.
locustfile.py tells what was answered, and asks every second how many users there are to be. All but Spike knows no clock.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import monotonic, time
from typing import TypedDict

__all__ = ["Answers", "Course", "Facts", "Spike", "Window", "shed"]

FIRST_USERS = 20
STEP_FACTOR = 1.5
STEP_SETTLE, STEP_MEASURE = 2, 4
"""Seconds of a step: users come, and are measured."""
GROWTH_MIN = 1.1
"""A step with half as many users again that answers less than this much more has not grown."""
FLAT_STEPS = 2
"""Steps in a row without growth that end the search: one may be somebody else's doing."""
BASE = 0.5
"""Of the users that are carried: the load before and after."""
SPIKE = 2.0
BASE_SETTLE, BASE_SECONDS, SPIKE_SECONDS, AFTER_SECONDS = 4, 10, 15, 20
RECOVERY_MAX = 5
"""Seconds after the spike until all is as before."""
RECOVERY_WINDOW = 3
"""Seconds in a row that must be as before."""
SLOWER_MAX, SLOWER_BY = 2.0, 100.0
"""Latency is as before when it is not this many times, or milliseconds, higher."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was answered in some seconds."""

    rate: float
    """Right answers per second: the median of the seconds."""
    p95: float
    """Milliseconds within which 95 % of all requests ended: the median of the seconds; 0 when none ended."""
    failed: int


@dataclass(slots=True)
class _Second:
    times: list[float] = field(default_factory=list)
    failed: int = 0


class Answers:
    """What ended in each second of the run."""

    def __init__(self) -> None:
        self._seconds: defaultdict[int, _Second] = defaultdict(_Second)

    def add(self, at: float, ms: float, *, failed: bool) -> None:
        """A request ended `at` so many seconds after the start, and took `ms`."""
        second = self._seconds[int(at)]
        second.times.append(ms)
        second.failed += failed

    def between(self, start: int, end: int) -> Window:
        """Return what ended in the seconds from `start` to before `end`."""
        seconds = [self._seconds[number] for number in range(start, end)]
        return Window(
            rate=median(len(second.times) - second.failed for second in seconds),
            p95=median(_percentile(second.times) for second in seconds),
            failed=sum(second.failed for second in seconds),
        )


def _percentile(times: Sequence[float]) -> float:
    return sorted(times)[int(0.95 * (len(times) - 1))] if times else 0.0


class Course:
    """How many users there are to be, second by second, and at the end what is to be said.

    p95   milliseconds within which 95 % are to be answered; users who wait longer are more than the machine carries
    most  users not to be exceeded
    """

    def __init__(self, answers: Answers, *, p95: float, most: int) -> None:
        self._answers = answers
        self._p95 = p95
        self._most = most
        self._flat = 0
        self._stepped_at = 0
        self._users = min(FIRST_USERS, most)
        self.carried = 0
        """Users; 0 while it is not known."""
        self.best: Window | None = None
        """The step with most answers."""
        self._best_users = 0
        self._found_at: int | None = None

    def users(self, now: int) -> int | None:
        """Return how many users there are to be `now`, in seconds since the start; None: it is over."""
        if self._found_at is None:
            if now - self._stepped_at >= STEP_SETTLE + STEP_MEASURE:
                self._step(now)
            if self._found_at is None:
                return self._users
        base = max(1, round(BASE * self.carried))
        if now >= self.end_at:
            return None
        return round(SPIKE * self.carried) if self.spike_at <= now < self.after_at else base

    def _step(self, now: int) -> None:
        """A step is over: judge it, and take the next or end the search."""
        made = self._answers.between(self._stepped_at + STEP_SETTLE, now)
        has_grown = made.p95 <= self._p95 and (self.best is None or made.rate >= self.best.rate * GROWTH_MIN)
        if has_grown:
            self.best, self._best_users, self._flat = made, self._users, 0
        else:
            self._flat += 1
        if self._flat == FLAT_STEPS or self._users >= self._most or made.p95 > self._p95:
            self.carried, self._found_at = self._best_users or self._users, now
            return
        self._users = min(round(self._users * STEP_FACTOR), self._most)
        self._stepped_at = now

    @property
    def is_found(self) -> bool:
        """Whether it is known what is carried."""
        return self._found_at is not None

    @property
    def spike_at(self) -> int:
        """Second at which the spike begins, once it is known what is carried."""
        assert self._found_at is not None, "it is not known yet what is carried"
        return self._found_at + BASE_SETTLE + BASE_SECONDS

    @property
    def after_at(self) -> int:
        """Second at which it ends."""
        return self.spike_at + SPIKE_SECONDS

    @property
    def end_at(self) -> int:
        """Second at which the run ends."""
        return self.after_at + AFTER_SECONDS

    def recovery(self) -> int | None:
        """Return seconds from the end of the spike until latency and failures are as before; None: they never are."""
        for second in range(self.after_at, self.end_at - RECOVERY_WINDOW + 1):
            if self._is_as_before(second, second + RECOVERY_WINDOW):
                return second - self.after_at
        return None

    def _is_as_before(self, start: int, end: int) -> bool:
        before, now = self.before, self._answers.between(start, end)
        limit = max(before.p95 * SLOWER_MAX, before.p95 + SLOWER_BY)
        return now.rate > 0 and now.p95 <= limit and now.failed <= before.failed

    @property
    def before(self) -> Window:
        """What was answered before the spike."""
        return self._answers.between(self.spike_at - BASE_SECONDS, self.spike_at)

    def verdict(self) -> tuple[list[str], list[str]]:
        """Return sentences on what was missed, and on what was kept, when the run has ended."""
        missed: list[str] = []
        kept: list[str] = []
        if self.best is None:
            missed.append(f"even {self.carried} users are not answered within {self._p95:.0f} ms")
        else:
            kept.append(f"{self.carried} users are carried: {_told(self.best)}")
        before, spike = self.before, self._answers.between(self.spike_at, self.after_at)
        (missed if before.failed else kept).append(f"before the spike, half of them: {_told(before)}")
        kept.append(f"in the spike, twice as many: {_told(spike)}")
        if spike.rate == 0:
            missed.append("nothing was answered in the spike")
        seconds = self.recovery()
        if seconds is None:
            missed.append(f"after the spike it is not as before: {_told(self.after)}")
        else:
            late = seconds > RECOVERY_MAX
            (missed if late else kept).append(f"as before {seconds} s after the spike, to be {RECOVERY_MAX} s")
            lasts = self._is_as_before(self.after_at + max(seconds, RECOVERY_MAX), self.end_at)
            (kept if lasts else missed).append(f"and from then on: {_told(self.after)}")
        return missed, kept

    @property
    def after(self) -> Window:
        """What was answered once all was to be as before."""
        return self._answers.between(self.after_at + RECOVERY_MAX, self.end_at)


def _told(window: Window) -> str:
    return f"{window.rate:,.0f} answers/s, 95 % within {window.p95:.0f} ms, {window.failed} failed"


class Facts(TypedDict):
    """What `shed` needs to know of a spike."""

    start: float
    """Unix time."""
    end: float
    failed: int
    """Requests, in the spike and until all was to be as before."""
    unanswered: int
    """Of these, those whose users heard nothing for so long that they gave up."""


class Spike:
    """A course by the clock, which begins now."""

    def __init__(self, *, p95: float, most: int) -> None:
        self._answers = Answers()
        self._course = Course(self._answers, p95=p95, most=most)
        self._began = monotonic()
        self._began_unix = time()
        self._unanswered: list[float] = []
        self._wrong = 0
        self._ended = False

    def add(self, ms: float, failure: Exception | None) -> None:
        """A request has ended, after `ms`."""
        at = monotonic() - self._began
        self._answers.add(at, ms, failed=failure is not None)
        if failure is None:
            return
        if isinstance(failure, TimeoutError) or "timed out" in str(failure):
            self._unanswered.append(at)
        elif type(failure).__name__ == "WrongAnswer":
            self._wrong += 1

    def users(self) -> int | None:
        """Return how many users there are to be now; None: it is over."""
        users = self._course.users(int(monotonic() - self._began))
        self._ended = users is None
        return users

    def verdict(self) -> tuple[list[str], list[str]]:
        """Return sentences on what was missed, and on what was kept."""
        if not self._ended:
            return ["the run ended before the spike was over: give it more time (-t)"], []
        missed, kept = self._course.verdict()
        (missed if self._wrong else kept).append(f"{self._wrong} wrong answers")
        return missed, kept

    def facts(self) -> Facts | None:
        """Return what `shed` needs; None when the run ended too early."""
        if not self._ended:
            return None
        start, end = self._course.spike_at, self._course.after_at + RECOVERY_MAX
        return Facts(
            start=self._began_unix + start,
            end=self._began_unix + end,
            failed=self._answers.between(start, end).failed,
            unanswered=sum(start <= at < end for at in self._unanswered),
        )


def shed(facts: Facts, dropped: float, refused: float) -> tuple[str, bool]:
    """Return a sentence on what became of the load that was not carried, and whether it is as it should be.

    dropped, refused   packets, and flows and datagrams, that the engine has counted meanwhile
    """
    counted = f"the engine counted {dropped:,.0f} packets dropped and {refused:,.0f} flows or datagrams refused"
    if not facts["failed"]:
        return f"no request of the spike failed: what was too much was answered late; {counted}", True
    told = f"{facts['failed']} requests of the spike failed, {facts['unanswered']} of them without an answer; {counted}"
    return told, dropped + refused > 0
