"""Several servers that are as good as one another: asked in turn, one that does not answer comes last for a while."""

import asyncio
from collections.abc import Sequence
from time import monotonic

from workers.dns import Server, ServerFailed
from workers.dns.wire import RCODE

__all__ = ["FailoverServer"]

BACK_AFTER = 300.0
"""Seconds after which the first server is tried first again."""
SERVFAIL, REFUSED = 2, 5


class FailoverServer:
    """One Server made of several. Each but the last has `patience` seconds to answer."""

    def __init__(self, servers: Sequence[Server], *, patience: float) -> None:
        assert servers, "at least one server"
        self._servers = tuple(servers)
        self._patience = patience
        self._first = 0  # index of the server to begin with
        self._back_at = 0.0

    async def exchange(self, message: bytes) -> bytes:
        """Return the first answer that is not a failure; failing that, the last failure. Raises ServerFailed."""
        if self._first and monotonic() >= self._back_at:
            self._first = 0
        first, count = self._first, len(self._servers)
        failure: ServerFailed | None = None
        refusal: bytes | None = None
        for step in range(count):
            index = (first + step) % count
            try:
                answer = await self._ask(index, message, last=step == count - 1)
            except ServerFailed as error:
                failure = error
                continue
            rcode = answer[3] & RCODE if len(answer) > 3 else SERVFAIL
            if rcode not in (SERVFAIL, REFUSED):
                return answer
            # SERVFAIL is about the name, REFUSED about us.
            refusal = answer
            if rcode == REFUSED:
                self._pass_over(index)
        if refusal is not None:
            return refusal
        assert failure is not None, "there is at least one server"
        raise failure

    async def _ask(self, index: int, message: bytes, *, last: bool) -> bytes:
        try:
            async with asyncio.timeout(None if last else self._patience):
                return await self._servers[index].exchange(message)
        except TimeoutError:
            self._pass_over(index)
            raise ServerFailed("no answer in time") from None
        except ServerFailed:
            self._pass_over(index)
            raise

    def _pass_over(self, index: int) -> None:
        """Begin with the next server from now on."""
        if index == self._first:
            self._first = (index + 1) % len(self._servers)
            self._back_at = monotonic() + BACK_AFTER

    def close(self) -> None:
        """Close all of them."""
        for server in self._servers:
            server.close()
