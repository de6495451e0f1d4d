"""How much memory processes of ours take: their proportional set size, which the kernel walks every page for.

Nobody who asks waits for that if something not too old is known: measured is in a thread, beside the packets.
"""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from time import monotonic

__all__ = ["AGE", "AGE_MAX", "ProcessMemory", "proportional_set_size"]

AGE = 5.0
"""Seconds after which a measurement is told once more, but taken anew for the next who asks."""
AGE_MAX = 20.0
"""Seconds after which it is told no more: who asks waits."""

Sizes = dict[int, int | None]
"""Process id -> bytes; None when we may not know."""


def proportional_set_size(pid: int) -> int | None:
    """Bytes of memory that a process takes, its share of shared pages included (proc(5)); None when we may not know."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


class ProcessMemory:
    """Measures with `measure`, in a thread."""

    def __init__(self, measure: Callable[[int], int | None] = proportional_set_size) -> None:
        self._measure = measure
        self._sizes: Sizes = {}
        self._measured_at = float("-inf")
        self._running: asyncio.Task[None] | None = None

    async def of(self, pids: Collection[int]) -> Sizes:
        """Return the memory of these processes: of now, or of AGE_MAX seconds ago at most."""
        while True:
            age = monotonic() - self._measured_at
            is_known = self._sizes.keys() == set(pids)
            if is_known and age < AGE:
                return self._sizes
            if self._running is None:
                self._running = asyncio.get_running_loop().create_task(self._take(tuple(pids)), name="memory")
            if is_known and age < AGE_MAX:
                return self._sizes
            await asyncio.shield(self._running)  # it may have begun before one of them was there

    async def _take(self, pids: tuple[int, ...]) -> None:
        try:
            self._sizes = await asyncio.to_thread(lambda: {pid: self._measure(pid) for pid in pids})
            self._measured_at = monotonic()
        finally:
            self._running = None
