"""The packet pool and all shared memory of a run, in one piece (a memfd).

    | counters: one row per place, then the master's | per place: ring (packets to it), free ring (slots back) |
    | slots, SLOT_SIZE each | per place: names of the addresses that its workers have answered |

The master creates it and owns the free list; a worker is given a place, maps the memory through the inherited descriptor, reads
packets out of slots, and returns each slot over its free ring. A slot has one owner at a time: the master, or the worker it
was sent to. There are more places than workers, so that workers of several generations can live beside one another; what is
never touched takes no memory.
"""

import mmap
import os

from shared.answered import PART_SIZE, AnsweredNames
from shared.metrics import CELLS, Cell
from shared.ring import Ring, ring_size
from shared.system import create_memory

__all__ = ["Pool", "PoolLayout"]

SLOT_SIZE = 68 * 1024
"""Bytes per slot: the largest IP packet (65,535) and its virtio header (10), rounded up to whole pages."""


class PoolLayout:
    """Sizes and offsets within the memory; equal in all processes that were told the same three numbers."""

    def __init__(self, places: int, slots: int, ring_entries: int) -> None:
        assert slots < 0x7FFF, "a descriptor has 15 bits for the slot"
        self.places = places
        self.slots = slots
        self.ring_entries = ring_entries
        self.free_entries = 1 << slots.bit_length()  # more than there are slots: never full
        self.counters_size = -(-(places + 1) * CELLS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        self.ring_size = ring_size(ring_entries, inline=True)
        self.free_size = ring_size(self.free_entries, inline=False)
        self.slots_at = self.counters_size + places * (self.ring_size + self.free_size)
        self.answered_at = self.slots_at + slots * SLOT_SIZE
        self.size = self.answered_at + places * PART_SIZE


class Pool:
    """A mapping of the shared memory. `create` in the master, `attach` in a worker.

    slots      slot number -> writable memoryview of SLOT_SIZE bytes
    counters   row per process: places 0..n-1, then the master; memoryview of CELLS 8-byte unsigned integers
    """

    def __init__(self, fd: int, layout: PoolLayout) -> None:
        self.fd = fd
        self.layout = layout
        self._map = mmap.mmap(fd, layout.size)
        self._memory = memoryview(self._map)
        at = layout.slots_at
        self.slots = [self._memory[at + i * SLOT_SIZE : at + (i + 1) * SLOT_SIZE] for i in range(layout.slots)]
        self.counters = [self._memory[i * CELLS * 8 : (i + 1) * CELLS * 8].cast("Q") for i in range(layout.places + 1)]

    @classmethod
    def create(cls, layout: PoolLayout) -> "Pool":
        """Make the memory, zeroed; its pages are taken only when first written. Raises OSError when memory is refused."""
        fd = create_memory("pool", layout.size)
        try:
            return cls(fd, layout)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, layout: PoolLayout) -> "Pool":
        """Map the memory behind an inherited descriptor."""
        return cls(fd, layout)

    def ring(self, place: int) -> Ring:
        """The ring of packets from the master to the worker at `place`; one end, so call it once per process and worker."""
        at = self._ring_at(place)
        return Ring(self._memory[at : at + self.layout.ring_size], self.layout.ring_entries, inline=True)

    def free_ring(self, place: int) -> Ring:
        """The ring by which the worker at `place` returns slots to the master."""
        at = self._ring_at(place) + self.layout.ring_size
        return Ring(self._memory[at : at + self.layout.free_size], self.layout.free_entries, inline=False)

    def answered(self, place: int) -> AnsweredNames:
        """What names the workers have answered addresses for, as the one at `place` writes and reads it; one for a process."""
        at = self.layout.answered_at
        parts = [self._memory[at + i * PART_SIZE : at + (i + 1) * PART_SIZE] for i in range(self.layout.places)]
        master = self.counters[-1]
        return AnsweredNames(parts, place, lambda: master[Cell.PLACES_USED])

    def reset_rings(self, place: int) -> None:
        """Zero both rings of a worker that is dead and reaped; both ends must be made anew."""
        at = self._ring_at(place)
        header_and_words = mmap.PAGESIZE + 8 * self.layout.ring_entries
        self._memory[at : at + header_and_words] = bytes(header_and_words)
        at += self.layout.ring_size
        self._memory[at : at + self.layout.free_size] = bytes(self.layout.free_size)

    def _ring_at(self, place: int) -> int:
        return self.layout.counters_size + place * (self.layout.ring_size + self.layout.free_size)

    def close(self) -> None:
        """Unmap and close. Rings taken from this pool must have been closed before."""
        for view in (*self.slots, *self.counters):
            view.release()
        self._memory.release()
        self._map.close()
        os.close(self.fd)
