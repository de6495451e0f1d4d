"""Who follows the log: lines of all processes are kept for a while, and only while somebody follows.

Workers are told to send their lines (TapLog), and each sends them over its channel (Logged) until it is told otherwise.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic, time

from engine.requests import LogLine, LogPart
from shared.control import Logged, TapLog
from shared.log import LEVELS, Tap, level_name

__all__ = ["LogTap"]

KEPT_MAX = 1000
"""Lines; the oldest go, and who follows is told how many."""
WAIT = 10.0  # seconds that an answer may wait for a line
LINGER = 30.0  # seconds after the last question until lines are no longer sent
IN_PART = 200  # lines in one answer


class LogTap:
    """`tell` sends a message to every worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[TapLog], object]) -> None:
        self._loop = loop
        self._tell = tell
        self._lines: deque[LogLine] = deque(maxlen=KEPT_MAX)
        self._count = 0  # lines so far
        self._wanted = logging.CRITICAL + 1
        self._tap: Tap | None = None
        self._until = 0.0
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def follow(self, level: str, after: int) -> LogPart:
        """Return the lines after number `after`, from `level` on; wait for one, for a while. 0: only what comes from now on."""
        wanted = LEVELS.get(level, logging.INFO)
        self._open(wanted)
        at = self._count if after == 0 else min(after - 1, self._count)
        deadline = monotonic() + WAIT
        while True:
            lost = max(0, self._count - len(self._lines) - at)
            kept = list(self._lines)[max(0, at + lost - (self._count - len(self._lines))) :]
            found = [line for line in kept[:IN_PART] if LEVELS[line.level] >= wanted]
            at += lost + len(kept[:IN_PART])
            left = deadline - monotonic()
            if found or left <= 0:
                return LogPart(next=at + 1, lines=found, lost=lost)
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def on_line(self, worker: int, line: Logged) -> None:
        """A worker tells a line."""
        self._add(
            LogLine(time=time(), level=line.level, process=f"worker {worker}", message=line.message, fields=line.fields)
        )

    def close(self) -> None:
        """Nobody follows any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tap is not None:
            self._tap.remove()
            self._tap = None
            self._tell(TapLog(None))
        self._wanted = logging.CRITICAL + 1
        self._lines.clear()

    def _open(self, wanted: int) -> None:
        self._until = monotonic() + LINGER
        if wanted >= self._wanted:
            return
        self._wanted = wanted
        if self._tap is not None:
            self._tap.remove()
        self._tap = Tap(wanted, self._on_record)
        self._tell(TapLog(level_name(wanted)))
        if self._timer is None:
            self._timer = self._loop.call_later(LINGER, self._look)

    def _look(self) -> None:
        self._timer = None
        if monotonic() >= self._until:
            self.close()
        else:
            self._timer = self._loop.call_later(LINGER, self._look)

    def _on_record(self, level: str, message: str, fields: dict[str, str]) -> None:
        line = LogLine(time=time(), level=level, process="master", message=message, fields=fields)
        self._loop.call_soon_threadsafe(self._add, line)

    def _add(self, line: LogLine) -> None:
        if self._tap is not None:
            self._lines.append(line)
            self._count += 1
            self._changed.set()
