"""The master's own pulse: that it lives, and how late its event loop is."""

import asyncio
from time import monotonic

from shared.metrics import Cell, Counters, Histogram, observe

__all__ = ["Heartbeat"]

INTERVAL = 0.5  # seconds; an idle master wakes for this and little else


class Heartbeat:
    """Beats from `start` to `stop` into the master's row of counters."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        self._loop = loop
        self._counters = counters
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Beat at once, and then every INTERVAL."""
        self._due_at = monotonic()
        self._beat()

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        now = monotonic()
        observe(self._counters, Histogram.LOOP_LAG, max(now - self._due_at, 0.0))
        self._counters[Cell.HEARTBEAT] = int(now * 1000)
        self._due_at = now + INTERVAL
        self._timer = self._loop.call_later(INTERVAL, self._beat)
