"""Notices that the machine was suspended, and that its wall clock was set: three clocks that then go apart.

CLOCK_BOOTTIME goes on during a suspend, CLOCK_MONOTONIC stands still (clock_gettime(2)), CLOCK_REALTIME is set by people and
by NTP. On macOS CLOCK_MONOTONIC goes on and time.monotonic stands still, which is the same pair.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["CHECK_INTERVAL", "ClockWatch", "Clocks", "read_clocks"]

CHECK_INTERVAL = 1.0  # seconds
SUSPENDED_MIN = 1.0
"""Seconds between two checks for which the machine stood still: less is no suspend that anybody would notice."""
JUMP_MIN = 2.0
"""Seconds between two checks by which the wall clock has run ahead or behind: NTP's slewing is a thousandth of it."""
_BOOTTIME: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clocks(NamedTuple):
    """Three clocks, read at one moment; seconds."""

    boottime: float
    """Since the machine was started, suspends included."""
    monotonic: float
    """Without them."""
    realtime: float
    """Of the wall."""


def read_clocks() -> Clocks:
    """Read them."""
    return Clocks(time.clock_gettime(_BOOTTIME), time.monotonic(), time.time())


class ClockWatch:
    """Compares the clocks every CHECK_INTERVAL seconds from now on.

    `on_suspended` gets the seconds of a suspend that is over, `on_jumped` those by which the wall clock was set, negative when
    it was set back.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_suspended: Callable[[float], None],
        on_jumped: Callable[[float], None],
        read: Callable[[], Clocks] = read_clocks,
    ) -> None:
        self._loop = loop
        self._on_suspended = on_suspended
        self._on_jumped = on_jumped
        self._read = read
        self._before = read()
        self._timer = loop.call_later(CHECK_INTERVAL, self._tick)

    def close(self) -> None:
        """Compare no more."""
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(CHECK_INTERVAL, self._tick)
        self.check()

    def check(self) -> None:
        """Compare the clocks with how they stood at the check before."""
        before, now = self._before, self._read()
        self._before = now
        passed = now.boottime - before.boottime
        suspended = passed - (now.monotonic - before.monotonic)
        jumped = now.realtime - before.realtime - passed
        if suspended >= SUSPENDED_MIN:
            self._on_suspended(suspended)
        if abs(jumped) >= JUMP_MIN:
            self._on_jumped(jumped)
