"""Our data until the application has acknowledged it: chunks from a free list that all connections of a stack share.

Chunks come in three sizes. A connection starts with the smallest and gets the next when a read filled what it was offered, so
ten thousand flows with a small answer each hold 4 KiB each, and a bulk flow reads 64 KiB at a time.

A new large chunk costs more than filling it: the kernel clears sixteen pages. So as many are kept as bulk flows have used lately.
Each is a mapping of its own, so that what is given up goes back to the kernel, and never lies between other things on the heap.
"""

import mmap
from collections import deque

from shared.buffer import Buffer
from shared.metrics import Cell, Counters

__all__ = ["BUFFER_NEAR", "CHUNK_SIZES", "ChunkPool", "SendBuffer"]

CHUNK_SIZES = (4 * 1024, 16 * 1024, 64 * 1024)
"""Bytes of memory of each class of chunk."""

_LARGEST = len(CHUNK_SIZES) - 1

_FREE_MAX = (256, 64, 1024)
"""Free chunks kept of each class: 2 MiB of small ones; of the largest 64 MiB, as long as they are in use now and then."""

_TRIMMED = 64
"""Large chunks given up at a time, some 30 us each: other flows wait for it."""

_BUFFER_BYTES = int(Cell.BUFFER_BYTES)
"""A plain integer: an attribute of an Enum and its conversion cost more than the rest of the count."""

BUFFER_NEAR = 1024 * 1024
"""Bytes of memory that are enough for an application on this machine, whatever its window."""

_WINDOWS = 4
"""Congestion windows that are buffered: a hole that is lost again holds back what is sent in three round trips."""

_FIRST = 64 * 1024
"""Bytes of memory that a flow may hold at first, and always. Who never reads gets little more."""

_CHUNKS_MIN = 4
"""Chunks into which a limit is divided, if it is not too small for that."""

_LEFTOVER_MIN = 2048
"""Bytes below which the rest of a chunk is not offered any more: a read into it would cost as much and bring little."""


class ChunkPool:
    """Last in, first out: the chunk given back last is still in the processor's cache.

    `limit`: bytes that all flows together may hold, backlogs and out-of-order bytes included. Whoever comes first gets the
    first half. Of the other half each of `flows` has an equal share, so that those who hold much and move nothing, for as long
    as they like, do not stop the others.
    """

    def __init__(self, counters: Counters, limit: int, flows: int) -> None:
        self._limit = limit
        self._plenty = limit // 2
        self._share = (limit - self._plenty) // flows
        self._free: list[list[memoryview]] = [[] for _ in CHUNK_SIZES]
        self._idle = 0  # large chunks that have been free ever since the last `trim`
        self._counters = counters

    def is_short(self, held: int) -> bool:
        """Whether a flow may not hold `held` bytes now: memory is short, and it is more than its share."""
        return self._counters[_BUFFER_BYTES] > self._plenty and held > self._share

    def take(self, size_class: int) -> memoryview:
        """Return a writable view of CHUNK_SIZES[size_class] bytes, of any content."""
        self._counters[_BUFFER_BYTES] += CHUNK_SIZES[size_class]
        free = self._free[size_class]
        if size_class < _LARGEST:
            return free.pop() if free else memoryview(bytearray(CHUNK_SIZES[size_class]))
        if not free:
            return memoryview(mmap.mmap(-1, CHUNK_SIZES[_LARGEST], flags=mmap.MAP_PRIVATE))
        memory = free.pop()
        self._idle = min(self._idle, len(free))
        return memory

    def give(self, size_class: int, memory: memoryview) -> None:
        """Take back what `take` returned."""
        size = CHUNK_SIZES[size_class]
        held = self._counters[_BUFFER_BYTES] - size
        self._counters[_BUFFER_BYTES] = held
        free = self._free[size_class]
        if len(free) < _FREE_MAX[size_class] and (size_class < _LARGEST or held + len(free) * size < self._limit):
            free.append(memory)

    def trim(self) -> None:
        """Give large chunks that nobody has needed since the last call back to the kernel."""
        free = self._free[_LARGEST]
        del free[: min(self._idle, _TRIMMED)]
        self._idle = len(free)


class _Chunk:
    """Stream positions start..end lie in memory[0 .. end - start]."""

    __slots__ = ("capacity", "end", "memory", "size_class", "start")

    def __init__(self, start: int, capacity: int, size_class: int, memory: memoryview) -> None:
        self.start = self.end = start
        self.capacity = capacity  # bytes of `memory` in use at most: a whole number of segments
        self.size_class = size_class
        self.memory = memory


class SendBuffer:
    """The bytes of one connection between the oldest unacknowledged one and `end`, the position after the last.

    `limit`: bytes of memory to hold; it follows the congestion window.
    """

    __slots__ = (
        "_chunks", "_full_capacity", "_held", "_largest", "_most", "_offered", "_pool", "_size_class", "end", "limit",
    )  # fmt: skip

    def __init__(self, pool: ChunkPool, start: int, most: int, full_capacity: int) -> None:
        """`most`: bytes of memory never to exceed; `full_capacity`: of the largest segment, used of each 64 KiB chunk."""
        self._pool = pool
        self._chunks: deque[_Chunk] = deque()
        self._most = most
        self._full_capacity = full_capacity
        self._size_class = 0
        self._held = 0
        self._offered = 0  # bytes of the view that `space` returned and `commit` has not answered yet
        self.end = start
        self.follow(0)

    def follow(self, window: int) -> None:
        """The congestion window has changed: hold as much as it can use."""
        self.limit = limit = min(max(_WINDOWS * window, _FIRST), self._most)
        largest = len(CHUNK_SIZES) - 1
        while largest and CHUNK_SIZES[largest] * _CHUNKS_MIN > limit:
            largest -= 1  # or no chunk could be filled while the last byte of another is not yet acknowledged
        self._largest = largest
        self._size_class = min(self._size_class, self._largest)

    def space(self) -> memoryview | None:
        """Return a writable view for more data, None at the limit or when the pool is short. The same place until `commit`."""
        if self._chunks:
            tail = self._chunks[-1]
            used = tail.end - tail.start
            room = tail.capacity - used
            if room >= _LEFTOVER_MIN or (room and self._offered):
                self._offered = room
                return tail.memory[used : tail.capacity]
        size_class = self._size_class
        held = self._held + CHUNK_SIZES[size_class]
        refused = held > self.limit
        if self._pool.is_short(held):
            size_class = 0
            held = self._held + CHUNK_SIZES[0]
            refused = held > self.limit or self._pool.is_short(held)
        if refused and self._chunks:  # who holds nothing has no acknowledgment to wait for, and gets a chunk always
            return None
        size = CHUNK_SIZES[size_class]
        self._held = held
        memory = self._pool.take(size_class)
        capacity = min(size, self._full_capacity)
        self._chunks.append(_Chunk(self.end, capacity, size_class, memory))
        self._offered = capacity
        return memory[:capacity]

    def commit(self, length: int) -> None:
        """The first `length` bytes of the view from `space` are data now; 0 gives the view back."""
        offered = self._offered
        assert 0 <= length <= offered, "commit() without space(), or of more than it offered"
        self._offered = 0
        tail = self._chunks[-1]
        self.end = tail.end = tail.end + length
        if length == offered:
            self._size_class = min(self._size_class + 1, self._largest)
        elif self._size_class and length * 4 <= CHUNK_SIZES[self._size_class - 1]:
            self._size_class -= 1
        if tail.end == tail.start:
            self._give(self._chunks.pop())

    def views(self, start: int, end: int) -> list[Buffer]:
        """Return the bytes from position `start` to `end`, in pieces."""
        tail = self._chunks[-1]
        if start >= tail.start:
            return [tail.memory[start - tail.start : end - tail.start]]
        pieces: list[Buffer] = []
        for chunk in self._chunks:
            if chunk.end <= start:
                continue
            pieces.append(chunk.memory[start - chunk.start : min(end, chunk.end) - chunk.start])
            start = chunk.end
            if start >= end:
                break
        return pieces

    def discard(self, position: int) -> None:
        """Everything before `position` has been acknowledged: give the chunks back."""
        chunks = self._chunks
        while chunks and chunks[0].end <= position and not (self._offered and len(chunks) == 1):
            self._give(chunks.popleft())

    def _give(self, chunk: _Chunk) -> None:
        self._held -= CHUNK_SIZES[chunk.size_class]
        self._pool.give(chunk.size_class, chunk.memory)

    @property
    def is_full(self) -> bool:
        """Whether `space` would return None: what is to come waits for acknowledgments, and not for its source."""
        tail = self._chunks[-1] if self._chunks else None
        if tail is None or tail.capacity - (tail.end - tail.start) >= _LEFTOVER_MIN:
            return False
        return self._held + CHUNK_SIZES[self._size_class] > self.limit or self._pool.is_short(
            self._held + CHUNK_SIZES[0]
        )

    def has_room(self) -> bool:
        """Whether a quarter of the limit is free: below it, waking the relay would bring it little."""
        return self._held * 4 <= self.limit * 3

    def clear(self) -> None:
        """Give all memory back; the connection is over."""
        self._offered = 0
        while self._chunks:
            self._give(self._chunks.popleft())
