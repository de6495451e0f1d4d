"""Asks the master whose flow it is: a worker is unprivileged and cannot see other users' sockets."""

import asyncio
from collections.abc import Callable
from itertools import count

from shared.control import FindProcess, ProcessFound
from shared.metrics import Cell, Counters
from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["Processes"]

TIMEOUT = 2.0
"""Seconds for an answer; then nothing is known of the program, and the rules go on without it."""
WAITING_MAX = 4096
"""Questions under way; for one more nothing is known at once."""

NOBODY = ProcessInfo()


class Processes:
    """`ask` sends a question to the master and tells whether it could; `found` takes in the answers.

    One question a flow. A UDP endpoint keeps its answer for all its flows (udp_flow.py).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, ask: Callable[[FindProcess], bool]) -> None:
        self._loop = loop
        self._counters = counters
        self._ask = ask
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[ProcessFound]] = {}

    async def of(self, ends: Ends, *, for_view: bool = False) -> tuple[ProcessInfo, bool]:
        """See ProcessService."""
        found = await self._ask_master(ends, for_view)
        return (found.process, found.direct) if found is not None else (NOBODY, False)

    async def is_own(self, ends: Ends) -> tuple[bool, bool]:
        """See ProcessService."""
        found = await self._ask_master(ends, for_view=False)
        return (found.direct, found.lasts) if found is not None else (False, False)

    async def _ask_master(self, ends: Ends, for_view: bool) -> ProcessFound | None:
        """None: it did not answer, which is counted."""
        if len(self._waiting) >= WAITING_MAX:
            self._counters[Cell.PROCESS_UNKNOWN] += 1
            return None
        number = next(self._ids)
        answer: asyncio.Future[ProcessFound] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            if not self._ask(FindProcess(number, *ends, for_view=for_view)):
                raise TimeoutError
            async with asyncio.timeout(TIMEOUT):
                return await answer
        except TimeoutError:
            self._counters[Cell.PROCESS_UNKNOWN] += 1
            return None
        finally:
            del self._waiting[number]

    async def owner_of(self, ends: Ends) -> ProcessInfo:
        """Return the owner alone, for DNS rules."""
        return (await self.of(ends))[0]

    def found(self, answer: ProcessFound) -> None:
        """The master has answered; too late is too late."""
        waiting = self._waiting.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
