"""Keeps the changes of the engine in force, and the kill switch true to the local networks, while others change the network.

What another program removes is made again, from the journal; nothing new is recorded, so that it is undone as before. Not as
often as one likes: two programs that fight over a route would keep a processor busy.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

from engine.netconf import NetworkError
from engine.netconf.bypass import follow_local_networks, still_wanted
from engine.netconf.events import EventBook
from engine.netconf.nftables_watch import NftablesWatch
from engine.netconf.picture import Picture, differences
from engine.netconf.plan import Bypass, NetworkPlan
from engine.netconf.surroundings import SurroundingsWatch

__all__ = ["RENEWALS_AT_ONCE", "RENEWAL_INTERVAL", "Allowance", "Upkeep"]

log = logging.getLogger(__name__)

RENEWALS_AT_ONCE = 5
"""Times in a row that what was removed is made again at once."""
RENEWAL_INTERVAL = 30.0
"""Seconds for one more time."""


class Allowance:
    """So many times at once, and one more each `interval` seconds."""

    def __init__(self, most: int, interval: float) -> None:
        self._most = most
        self._interval = interval
        self._left = float(most)
        self._at = 0.0

    def take(self, now: float) -> float:
        """Return 0 and count one time; or return the seconds to wait before asking again."""
        self._left = min(self._most, self._left + (now - self._at) / self._interval)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * self._interval
        self._left -= 1
        return 0.0


class Upkeep:
    """Watches the network of `plan`, which is in force. `renew` makes again what is missing (False: it could not).

    Call `start` first. Raises OSError when there is no interface of the plan's name.
    """

    def __init__(
        self,
        run_dir: Path,
        plan: NetworkPlan,
        events: EventBook,
        *,
        renew: Callable[[], Awaitable[bool]],
        can_renew: Callable[[], bool],
    ) -> None:
        self._run_dir = run_dir
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._renew = renew
        self._can_renew = can_renew
        self._kill_switch = plan.kill_switch
        self._allowance = Allowance(RENEWALS_AT_ONCE, RENEWAL_INTERVAL)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch = SurroundingsWatch(
            self._loop,
            plan,
            on_lost=self._on_lost,
            on_conflict=lambda text: self._events.note("conflict", text, level=logging.WARNING),
            on_picture=self._on_picture,
        )

        self._nftables = NftablesWatch(self._loop, self._on_table_lost) if plan.kill_switch else None

    @property
    def picture(self) -> Picture | None:
        """How the machine is connected, as it was at the last look."""
        return self._watch.picture

    async def start(self) -> None:
        """Watch from now on. Raises OSError."""
        await self._watch.start()
        if self._kill_switch and self._watch.picture is not None:  # it was loaded a while ago
            self._begin(self._tell_kill_switch(self._watch.picture.local))

    async def close(self) -> None:
        """Watch no more; returns when nothing is under way."""
        await self._watch.close()
        if self._nftables is not None:
            self._nftables.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self, work: Awaitable[object]) -> None:
        async def run() -> None:
            await work

        task = self._loop.create_task(run(), name="upkeep of the network")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_lost(self, bypasses: list[Bypass]) -> None:
        self._begin(self._check_bypasses(bypasses) if bypasses else self._renew_at_times())

    async def _check_bypasses(self, bypasses: list[Bypass]) -> None:
        """Those that we have ended ourselves are no loss."""
        try:
            is_loss = await asyncio.to_thread(still_wanted, self._run_dir, bypasses)
        except NetworkError as error:
            log.error("%s", error)
            return
        if is_loss:
            await self._renew_at_times()

    async def _renew_at_times(self) -> bool:
        """Make again what is missing. False: it is done later, or cannot be done."""
        if self._timer is not None or not self._can_renew():
            return False  # later, or when the tun is up
        wait = self._allowance.take(monotonic())
        if wait:
            text = (
                "another program keeps removing routes or rules of the engine: they are made again in "
                f"{wait:.0f} s; stop that program, or traffic goes past the proxy meanwhile"
            )
            self._events.note("conflict", text, level=logging.ERROR)
            self._timer = self._loop.call_later(wait, self._after_wait)
            return False
        return await self._renew()

    def _after_wait(self) -> None:
        self._timer = None
        self._begin(self._renew_at_times())

    def _on_picture(self, before: Picture, after: Picture) -> None:
        for kind, text in differences(before, after):
            self._events.note(kind, text, level=logging.WARNING if kind == "conflict" else logging.INFO)
        if self._kill_switch and before.local != after.local:
            self._begin(self._tell_kill_switch(after.local))

    def _on_table_lost(self) -> None:
        self._begin(self._close_again())

    async def _close_again(self) -> None:
        if await self._renew_at_times():
            text = "another program had removed the kill switch: it is closed again"
            self._events.note("made_again", text, level=logging.WARNING)

    async def _tell_kill_switch(self, local: frozenset[str]) -> None:
        try:
            await asyncio.to_thread(follow_local_networks, self._run_dir, local)
        except NetworkError as error:
            log.error("%s It is loaded again.", error)
            await self._renew_at_times()
