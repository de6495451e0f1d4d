"""A single-producer single-consumer ring of packet descriptors in shared memory.

    byte 0                64                 128                4096               4096 + 8 * entries      (page)
    +---------------------+------------------+------------------+-------------------+----------------------+
    | unused              | consumed (u64)   | sleeping (u64)   | word[0..entries)  | inline[0..entries)   |
    +---------------------+------------------+------------------+-------------------+----------------------+

    word = sequence (32 bits) << 32 | slot + 1 (15 bits) << 17 | length (17 bits)      slot + 1 = 0: the packet is inline

Entry n of the stream stands in word[n % entries] with sequence n / entries + 1. A word whose sequence is not the expected
one has not been written yet (or is of an earlier lap) and is not processed: the word itself says whether it is there, so
that publishing is one store and looking is one load, and no index of the producer is shared.

Ordering. CPython has no atomics over shared memory, so the argument is made here, in `push`, `pull` and `fence`:
  * An item assignment to a memoryview of format "Q" is one aligned 8-byte store; reading it is one load (CPython packs
    with a fixed-size memcpy). A word is never seen half written.
  * Payload before word: x86-64 keeps stores in order and loads in order (Intel SDM 3A, 9.2.2), so whoever sees the word
    sees the payload. arm64 does not, so there `push` fences before the store and `pull` after the load.
  * Falling asleep is Dekker's pattern: the consumer stores `sleeping` and then looks for a word; the producer stores a word
    and then looks at `sleeping`. Every machine may delay a store past a later load, so both fence between the two.
  * `fence` takes and gives back an uncontended lock. On x86-64 that is a LOCK-prefixed instruction, a full barrier. On
    arm64 once is not enough: what stands before may sink below the acquire, what stands after may rise above the release,
    and the two may pass each other in between. So it is done twice. What stands before is done by the first release (STLR,
    or a read-modify-write with release); what stands after waits for the second acquire (LDAXR, CAS with acquire); and
    a load-acquire is never done before an earlier store-release (Arm ARM, B2.3: RCsc), all the less of the same variable. So
    everything before is done when anything after is, stores followed by loads included. Which lock CPython takes does not
    matter: a semaphore of glibc, mutex and condition of macOS, or the one-byte lock of 3.13 all acquire and release.
  * Should a wake-up be lost all the same, the consumer looks again on its next tick (workers/link.py), so the cost
    of being wrong is a delay and not a stall.
"""

import platform
import threading
from mmap import PAGESIZE

__all__ = ["INLINE_MAX", "Ring", "fence", "ring_size"]

INLINE_MAX = 2048
"""Packets up to this many bytes (with virtio header) travel inside the ring, without a slot."""

_CONSUMED = 64 // 8
_SLEEPING = 128 // 8
_WORDS = PAGESIZE // 8
_LENGTH_BITS = 17
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_SLOT_MASK = 0x7FFF
_SEQUENCE_MASK = 0xFFFFFFFF

_STRONGLY_ORDERED = platform.machine() in ("x86_64", "AMD64", "i686")
_lock = threading.Lock()


def _fence_once() -> None:
    _lock.acquire()
    _lock.release()


def _fence_twice() -> None:
    _lock.acquire()
    _lock.release()
    _lock.acquire()
    _lock.release()


fence = _fence_once if _STRONGLY_ORDERED else _fence_twice
"""Full memory barrier; see the module docstring."""


def ring_size(entries: int, inline: bool) -> int:
    """Return the bytes a ring of `entries` (a power of two) takes, rounded up to whole pages."""
    size = PAGESIZE + 8 * entries + (INLINE_MAX * entries if inline else 0)
    return -(-size // PAGESIZE) * PAGESIZE


class Ring:
    """One end of a ring. The producer calls `push`, `must_wake`; the consumer `pull`, `release`, `try_sleep`, `wake`.

    `memory` is the ring's region (ring_size bytes), zeroed before first use. Not for two producers or two consumers.
    """

    def __init__(self, memory: memoryview, entries: int, *, inline: bool) -> None:
        assert entries & (entries - 1) == 0, "entries must be a power of two"
        assert memory.nbytes == ring_size(entries, inline), "memory must be ring_size(entries, inline) bytes"
        self.entries = entries
        self._mask = entries - 1
        self._shift = entries.bit_length() - 1
        self._words = memory.cast("Q")
        start = PAGESIZE + 8 * entries
        self.inline: list[memoryview] = (
            [memory[start + i * INLINE_MAX : start + (i + 1) * INLINE_MAX] for i in range(entries)] if inline else []
        )
        self._next = 0  # index in the stream of the next entry to push or pull
        self._limit = entries  # producer: `_next` may not reach this without another look at `consumed`

    def __len__(self) -> int:
        """Entries published and not yet released; exact only for an observer while both ends rest."""
        words, mask = self._words, self._mask
        consumed = words[_CONSUMED]
        count = 0
        while count <= mask and words[_WORDS + (consumed + count & mask)] >> 32 == self._sequence(consumed + count):
            count += 1
        return count

    def _sequence(self, index: int) -> int:
        # Never 0, so that zeroed memory holds no entry.
        return (index >> self._shift) % _SEQUENCE_MASK + 1

    # producer

    def push(self, length: int, slot: int) -> bool:
        """Publish a packet of `length` bytes that lies in `slot`; False when the ring is full (nothing is written)."""
        n = self._next
        if n == self._limit and not self._room():
            return False
        if not _STRONGLY_ORDERED:
            fence()
        self._words[_WORDS + (n & self._mask)] = (
            ((n >> self._shift) % _SEQUENCE_MASK + 1) << 32 | (slot + 1) << _LENGTH_BITS | length
        )
        self._next = n + 1
        return True

    def push_inline(self, packet: memoryview) -> bool:
        """Publish a copy of `packet` (at most INLINE_MAX bytes); False when the ring is full."""
        n = self._next
        if n == self._limit and not self._room():
            return False
        i = n & self._mask
        length = len(packet)
        self.inline[i][:length] = packet
        if not _STRONGLY_ORDERED:
            fence()
        self._words[_WORDS + i] = ((n >> self._shift) % _SEQUENCE_MASK + 1) << 32 | length
        self._next = n + 1
        return True

    @property
    def position(self) -> int:
        """Index in the stream of the next entry that this end pushes or pulls: equal at both ends when all is pulled."""
        return self._next

    @property
    def waiting(self) -> int:
        """Entries pushed by this end that the consumer has not given back yet."""
        return self._next - self._words[_CONSUMED]

    def _room(self) -> bool:
        self._limit = self._words[_CONSUMED] + self.entries
        return self._next < self._limit

    def must_wake(self) -> bool:
        """Whether the consumer sleeps and this producer is now the one to ring its doorbell. Call after a batch of pushes."""
        fence()
        words = self._words
        if words[_SLEEPING]:
            words[_SLEEPING] = 0  # the doorbell is on its way: later batches need not ring again
            return True
        return False

    # consumer

    def pull(self) -> tuple[int, int, int] | None:
        """Return (index in the ring, length, slot) of the next entry, slot -1 if it is inline; None when there is none.

        The packet stays valid until `release`.
        """
        n = self._next
        word = self._words[_WORDS + (n & self._mask)]
        if word >> 32 != (n >> self._shift) % _SEQUENCE_MASK + 1:
            return None
        if not _STRONGLY_ORDERED:
            fence()
        self._next = n + 1
        return n & self._mask, word & _LENGTH_MASK, (word >> _LENGTH_BITS & _SLOT_MASK) - 1

    def release(self) -> None:
        """Give every entry pulled so far back to the producer. Call once per batch."""
        if not _STRONGLY_ORDERED:
            fence()
        self._words[_CONSUMED] = self._next

    def try_sleep(self) -> bool:
        """Announce sleep. True: sleep, the doorbell will ring. False: an entry has come meanwhile, go on pulling."""
        words = self._words
        words[_SLEEPING] = 1
        fence()
        n = self._next
        if words[_WORDS + (n & self._mask)] >> 32 == (n >> self._shift) % _SEQUENCE_MASK + 1:
            words[_SLEEPING] = 0
            return False
        return True

    def wake(self) -> None:
        """The consumer has woken up by itself: the producer need not ring."""
        self._words[_SLEEPING] = 0

    def close(self) -> None:
        """Let go of the memory; the ring is not to be used afterwards."""
        for view in self.inline:
            view.release()
        self.inline.clear()
        self._words.release()
