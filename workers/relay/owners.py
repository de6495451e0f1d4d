"""Programs of flows, for views and for the usage by program, where no rule has asked for them.

All that are missing are asked for at once, since one walk of /proc answers them all. A walk takes time from the master that its
packets need, so it has a budget; a flow that finds it spent is asked for the next time, if it is still there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from time import monotonic

from workers.relay.facts import FlowFacts

__all__ = ["Owners"]

AT_ONCE = 256
"""Flows whose programs are looked up together; the others are next."""
SHARE = 1 / 20
"""Part of the time, on all workers together, that may go by in waiting for the master's answers."""
SAVED_MAX = 0.25
"""Seconds that may be saved up, so that somebody who looks now and then is answered at once; and owed."""


class Owners:
    """`find` asks for the program of a flow, and puts it into the flow's facts; `workers`: how many share the budget."""

    def __init__(
        self,
        find: Callable[[FlowFacts], Awaitable[None]],
        workers: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._find = find
        self._share = SHARE / workers
        self._clock = clock
        self._saved = SAVED_MAX
        self._saved_at = clock()

    async def seek(self, flows: Iterable[FlowFacts]) -> None:
        """Look up the programs of `flows` that nobody has looked for yet, if there is time for it."""
        unknown = (facts for facts in flows if not facts.owner_sought and not facts.has_owner)
        began = self._save()
        if self._saved <= 0 or not (some := list(islice(unknown, AT_ONCE))):
            return
        await asyncio.gather(*map(self._find, some))
        ended = self._save()
        self._saved = max(self._saved - (ended - began), -SAVED_MAX)

    def _save(self) -> float:
        """Add what has come together since the last call; return the time."""
        now = self._clock()
        self._saved = min(self._saved + (now - self._saved_at) * self._share, SAVED_MAX)
        self._saved_at = now
        return now
