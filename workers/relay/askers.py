"""Whose a question is, where the proxy runs on this machine: an application's is for the DNS service, the proxy's own is not.

The master knows it of a socket. Programs that ask much do so from one socket again and again: what it has said is good for
KNOWN_FOR seconds, and all that a socket asks meanwhile costs one look-up here. That is too short for a port to come
to another program by chance, and what would be lost is a question, which programs repeat.
"""

import asyncio
from collections.abc import Awaitable, Callable

from shared.metrics import Cell, Counters
from shared.rules.flow import Ends

__all__ = ["Askers"]

Endpoint = tuple[bytes, int]

KNOWN_FOR = 1.0  # seconds
KNOWN_MAX = 4096
"""Sockets remembered; then all are found out anew."""
WAITING_MAX = 1024
"""Sockets that are being found out; a question from one more is dropped, and will come again (dns_limit)."""
HELD_MAX = 256
"""Questions of one of them that wait; one more is dropped."""


class Askers:
    """`find` tells whether a socket is the proxy's own, and whether that will be so for its next question, too."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, counters: Counters, find: Callable[[Ends], Awaitable[tuple[bool, bool]]]
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._find = find
        self._known: dict[Endpoint, float] = {}  # applications, and until when
        self._waiting: dict[Endpoint, list[tuple[Ends, bytes]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def knows(self, source: Endpoint, now: float) -> bool:
        """Whether the socket is known to be an application's."""
        until = self._known.get(source)
        return until is not None and now < until

    def hold(self, ends: Ends, payload: bytes, go_on: Callable[[Ends, bytes, bool], None]) -> None:
        """Find out whose a question is; then `go_on` is called with it, and whether it is the proxy's own."""
        source = ends[1:3]
        held = self._waiting.get(source)
        if held is None:
            if len(self._waiting) >= WAITING_MAX:
                self._counters[Cell.DROP_DNS_LIMIT] += 1
                return
            self._waiting[source] = [(ends, payload)]
            task = self._loop.create_task(self._find_out(ends, go_on), name="whose question")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(held) >= HELD_MAX:
            self._counters[Cell.DROP_DNS_LIMIT] += 1
        else:
            held.append((ends, payload))

    async def _find_out(self, ends: Ends, go_on: Callable[[Ends, bytes, bool], None]) -> None:
        source = ends[1:3]
        try:
            is_own, lasts = await self._find(ends)
        finally:
            held = self._waiting.pop(source)
        if lasts and not is_own:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[source] = self._loop.time() + KNOWN_FOR
        for asked, payload in held:
            go_on(asked, payload, is_own)

    def close(self) -> None:
        """Give up what is being found out."""
        for task in self._tasks:
            task.cancel()
