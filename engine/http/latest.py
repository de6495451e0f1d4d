"""One answer for all who look at about the same time: however many dashboards are open, the engine is asked once."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

__all__ = ["Latest"]

T = TypeVar("T")

SHARE = 5
"""An answer that took a second is good for so many seconds, so that asking takes no more than this part of the time."""


class Latest(Generic[T]):
    """`fetch` asks; its answer is given again for `age` seconds, or longer when it was expensive."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], age: float) -> None:
        self._fetch = fetch
        self._age = age
        self._until = 0.0
        self._task: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return an answer that is not too old. Raises what `fetch` raises."""
        task = self._task
        if task is None or (task.done() and monotonic() >= self._until):
            task = self._task = asyncio.get_running_loop().create_task(self._ask(), name="latest")
        return await asyncio.shield(task)  # another one may wait for it, too

    async def _ask(self) -> T:
        began = monotonic()
        try:
            answer = await self._fetch()
        except BaseException:
            self._until = 0.0
            raise
        now = monotonic()
        self._until = now + max(self._age, SHARE * (now - began))
        return answer
