"""Which SYN gets a connection while there are too many that lead to none: one that comes again.

Each new connection costs a dial through the proxy, a thousand times what a forged SYN costs its sender. In a flood the first
SYN of a flow is therefore dropped and remembered. An application sends it again after a second (RFC 6298 2.1), and is admitted
then; a flood from forged addresses is not there to do so, and would have to take its time for each flow if it did.
"""

__all__ = ["Admission"]

_FAILURES_MAX = 250
"""Connections that came to nothing (refused, never completed, given up) within a second: more are a flood, or a scan."""
_REPEAT_MIN = 0.4  # seconds; what comes again sooner is no retransmission
_REMEMBERED_MAX = 32768  # SYNs of each of two generations
_GENERATION = 8.0  # seconds; SYNs come again after 1 and 3


class Admission:
    """The gate of one worker."""

    def __init__(self, half_open_max: int) -> None:
        """`half_open_max`: half-open connections up to which there is no question of a flood."""
        self._half_open_max = half_open_max
        self._second = 0  # that `_failures` counts
        self._failures = self._failures_before = 0
        self._younger: dict[bytes, float] = {}  # flow key -> when its SYN was dropped
        self._older: dict[bytes, float] = {}
        self._turned_at = 0.0

    def failed(self, now: float) -> None:
        """A connection has ended before it was established."""
        self._count_to(now)
        self._failures += 1

    def admits(self, key: bytes, half_open: int, now: float) -> bool:
        """Whether the SYN of flow `key` gets a connection; `half_open`: how many there are that wait for something."""
        self._count_to(now)
        if half_open < self._half_open_max and self._failures < _FAILURES_MAX and self._failures_before < _FAILURES_MAX:
            return True
        dropped_at = self._younger.get(key) or self._older.get(key)
        if dropped_at is not None:
            return now - dropped_at >= _REPEAT_MIN
        if now - self._turned_at > _GENERATION or len(self._younger) >= _REMEMBERED_MAX:
            self._turned_at = now
            self._older, self._younger = self._younger, {}
        self._younger[key] = now
        return False

    def _count_to(self, now: float) -> None:
        second = int(now)
        if second != self._second:
            self._failures_before = self._failures if second == self._second + 1 else 0
            self._failures = 0
            self._second = second
