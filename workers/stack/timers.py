"""One heap of deadlines for all connections, updated lazily.

A connection keeps its real deadlines in itself, where moving one later is one store. The heap holds at most one live
entry of it, at or before the earliest of them. When that entry comes due the connection acts on what is really due and
asks to be woken again for the rest. So an ACK that restarts the retransmission timer never touches the heap.
"""

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

__all__ = ["Timed", "Timers"]

Entry = tuple[float, int, "Timed"]
_COMPACT_MIN = 64
"""Dead entries the heap may hold whatever its size."""


class Timed(Protocol):
    """What the heap wakes."""

    timer: Entry | None
    """The live entry, owned by Timers; set it to None at first."""

    def on_timer(self, now: float, /) -> float:
        """Act on every deadline at or before `now`; return the next one (seconds, monotonic), or infinity."""


def _nobody_waits(at: float) -> None:
    """Whoever drives the timers asks for the next one after each call."""


class Timers:
    """Deadlines in monotonic seconds. `on_earlier` is called with a deadline that lies before all others."""

    def __init__(self) -> None:
        self.on_earlier: Callable[[float], None] = _nobody_waits
        self._heap: list[Entry] = []
        self._order = (
            0  # equal deadlines fire in the order they were set; also keeps the heap from comparing connections
        )
        self._dead = 0

    def __len__(self) -> int:
        """Live entries."""
        return len(self._heap) - self._dead

    def arm(self, timed: Timed, at: float) -> None:
        """Have `timed` woken no later than `at`."""
        entry = timed.timer
        if entry is not None:
            if entry[0] <= at:
                return
            self._dead += 1
        self._order += 1
        timed.timer = entry = (at, self._order, timed)
        heappush(self._heap, entry)
        if self._heap[0] is entry:
            self.on_earlier(at)
        self._compact()

    def cancel(self, timed: Timed) -> None:
        """Forget `timed`."""
        if timed.timer is not None:
            timed.timer = None
            self._dead += 1
            self._compact()

    def _compact(self) -> None:
        # An idle connection's entry lies hours ahead: without this, closed connections would stay in memory till then.
        if self._dead > _COMPACT_MIN and self._dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].timer is entry]
            heapify(self._heap)
            self._dead = 0

    def next_at(self) -> float | None:
        """The earliest deadline, None without any."""
        heap = self._heap
        while heap and heap[0][2].timer is not heap[0]:
            heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def expire(self, now: float) -> None:
        """Wake everything due at `now`."""
        while (at := self.next_at()) is not None and at <= now:
            timed = heappop(self._heap)[2]
            timed.timer = None
            following = timed.on_timer(now)
            if following < math.inf:
                self.arm(timed, following)
