"""Sends lines of the log to the master while somebody follows them."""

from collections.abc import Callable

from shared.control import FromWorker, Logged
from shared.log import LEVELS, Tap
from shared.metrics import Cell, Counters

__all__ = ["LogTap"]


class LogTap:
    """`tell` sends a message to the master, and says whether it could; lines that it could not are counted (LOG_LOST)."""

    def __init__(self, counters: Counters, tell: Callable[[FromWorker], bool]) -> None:
        self._counters = counters
        self._tell = tell
        self._tap: Tap | None = None

    def set_level(self, level: str | None) -> None:
        """Send lines from this level (a key of LEVELS) on; None: none any more."""
        if self._tap is not None:
            self._tap.remove()
            self._tap = None
        if level is not None:
            self._tap = Tap(LEVELS[level], self._send)

    def _send(self, level: str, message: str, fields: dict[str, str]) -> None:
        if not self._tell(Logged(level, message, fields)):
            self._counters[Cell.LOG_LOST] += 1
