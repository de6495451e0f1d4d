"""What was known of proxies is found out anew when the machine wakes, or is in another network."""

import asyncio
import logging
from collections.abc import Callable

from engine.clocks import Clocks, ClockWatch, read_clocks
from engine.groups import Groups
from engine.netconf.events import Event, EventBook
from engine.supervisor import Supervisor
from shared.control import FlushDns, MeasureNow

__all__ = ["Roaming"]


class Roaming:
    """Begins at once, and ends by `close`. `read`: the clocks."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        events: EventBook,
        supervisor: Supervisor,
        groups: Groups,
        *,
        read: Callable[[], Clocks] = read_clocks,
    ) -> None:
        self._events = events
        self._supervisor = supervisor
        self._groups = groups
        self.clocks = ClockWatch(loop, on_suspended=self._on_suspended, on_jumped=self._on_jumped, read=read)
        events.on_event = self._on_event

    def close(self) -> None:
        """Notice no more."""
        self.clocks.close()
        self._events.on_event = None

    def _on_suspended(self, seconds: float) -> None:
        self._events.note("suspended", f"the machine was suspended for {seconds:.0f} s")

    def _on_jumped(self, seconds: float) -> None:
        which = "ahead" if seconds > 0 else "back"
        self._events.note(
            "clock_jumped", f"the wall clock was set {which} by {abs(seconds):.0f} s", level=logging.WARNING
        )

    def _on_event(self, event: Event) -> None:
        if event.kind == "suspended":
            # The clock by which answers expire stood still meanwhile.
            self._supervisor.send_all(FlushDns())
        if event.kind in ("suspended", "default_route_moved"):
            self._groups.look_again()
            self._supervisor.send_all(MeasureNow())
