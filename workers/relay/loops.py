"""Notices flows that lead in a circle: what a proxy sends to its server comes back to us, and goes to the proxy again.

The loop guard of the master lets a local proxy's own flows out, but not every proxy can be told by its sockets (a container,
a chain of programs). A circle shows itself: flows to one destination become more and more, and none gets an answer. Flows that
have been open for a while and have asked nothing, such as a program's idle connections, are no part of one: a circle passes on
what it is given.

A circle is quick: it may have grown to the proxy's own limit, and stand still, a third of a second after its first flow.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from shared.control import LoopSuspected
from shared.metrics import Cell, Counters
from workers.relay.facts import FlowFacts

__all__ = ["CERTAIN", "CERTAIN_AFTER", "CUT_FOR", "LOOK_INTERVAL", "SUSPICIOUS", "LoopWatch", "Watched"]

SUSPICIOUS = 16
"""Flows to one destination without a byte from there; the master is told, and may find out whose they are."""
CERTAIN = 64
CERTAIN_AFTER = 2.0
"""So many such flows, the oldest of them so many seconds old: more of them are refused. Nobody misses them: none is answered.
As young as this, flows that have asked nothing are suspicious as well: they may not have come to it yet."""
CUT_FOR = 5.0
"""Seconds until another one is let through, to see whether that has changed."""
LOOK_INTERVAL = 0.5
"""Seconds between two looks at all flows, but for a destination to which SUSPICIOUS flows have come since the last one."""


class Watched(Protocol):
    """A flow as it is looked at."""

    @property
    def facts(self) -> FlowFacts:
        """What is known of it."""

    @property
    def is_dialing(self) -> bool:
        """Whether its outbound has not connected yet."""

    @property
    def up(self) -> int:
        """Bytes of payload from the application."""

    @property
    def down(self) -> int:
        """Bytes of payload for the application."""


class LoopWatch:
    """Asked about each flow that is about to be dialled. `tell` sends a message to the master."""

    def __init__(self, counters: Counters, tell: Callable[[LoopSuspected], object]) -> None:
        self._counters = counters
        self._tell = tell
        self._look_at = 0.0
        self._recent: dict[tuple[bytes, int], int] = {}  # flows by destination, since the last look of the interval
        self._cut_until: dict[tuple[bytes, int], float] = {}  # by destination; what has expired goes at the next look

    def admits(self, facts: FlowFacts, count: int, flows: Iterable[Watched], now: float) -> bool:
        """Tell whether a flow may be dialled; `flows` are all of its kind, itself among them, `count` or more."""
        destination = facts.ends.destination, facts.ends.destination_port
        is_due = now >= self._look_at
        if is_due:
            self._look_at = now + LOOK_INTERVAL
            self._recent.clear()
        self._recent[destination] = recent = self._recent.get(destination, 0) + 1
        if recent == SUSPICIOUS or (is_due and count >= SUSPICIOUS):
            self._look(facts, flows, now)
        if self._cut_until and self._cut_until.get(destination, 0.0) > now:
            self._counters[Cell.DROP_LOOP] += 1
            return False
        return True

    def _look(self, facts: FlowFacts, flows: Iterable[Watched], now: float) -> None:
        ends = facts.ends
        address, port = ends.destination, ends.destination_port
        self._cut_until = {key: until for key, until in self._cut_until.items() if until > now}
        count, silent, oldest = 0, 0, now
        for flow in flows:
            other = flow.facts.ends
            if other.destination_port == port and other.destination == address:
                if flow.down:
                    return
                if not flow.up and not flow.is_dialing:
                    silent += now - flow.facts.started_at < CERTAIN_AFTER
                    continue
                count += 1
                oldest = min(oldest, flow.facts.started_at)
        if count + silent < SUSPICIOUS:
            return
        is_cut = count >= CERTAIN and now - oldest >= CERTAIN_AFTER
        if is_cut:
            self._cut_until[address, port] = now + CUT_FOR
        self._tell(LoopSuspected(*ends, is_cut))
