"""One direction of a bad link: what happens to packets, from a seed. Does no I/O and asks no clock.

Two directions have random generators of their own, and every packet takes the same number of draws from its one: with the
same seed, the n-th packet of a direction always meets the same fate.
"""

import heapq
import math
import random
from collections.abc import Iterator
from itertools import count

import msgspec

__all__ = ["Counts", "Impairment", "Lane"]


class Impairment(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to packets, in each direction. Probabilities of a packet; times in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    flip: float = 0.0
    """One bit, anywhere in the packet."""
    reorder: float = 0.0
    """Held back by `reorder_delay`, so that later ones overtake it."""
    reorder_delay: float = 0.007
    delay: float = 0.005
    jitter: float = 0.0
    """The delay grows by up to so much, differently for each packet; the order stays."""
    rate: float | None = None
    """Bytes per second; None: no limit."""
    queue: float = 0.1
    """Time that a packet may wait for a link with a rate; one that would wait longer is dropped."""


class Counts(msgspec.Struct):
    """Packets of one direction."""

    arrived: int = 0
    lost: int = 0
    duplicated: int = 0
    flipped: int = 0
    reordered: int = 0
    overflowed: int = 0
    """Dropped at the queue of a link with a rate."""
    refused: int = 0
    """Flipped so that the kernel saw no IP version in them: it takes no such packet from a tun."""


class Lane:
    """One direction: packets go in, and come out again when their time has come. Does no I/O."""

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self.counts = Counts()
        self._impairment = impairment
        self._random = random.Random(seed)
        self._in_flight: list[tuple[float, int, bytes]] = []
        self._number = count()  # keeps packets that are due at the same time in order
        self._sent_at = self._due_at = -math.inf  # when the newest packet had left for the link, and will arrive

    @property
    def next_at(self) -> float:
        """When the next packet is due, or infinity."""
        return self._in_flight[0][0] if self._in_flight else math.inf

    def put(self, packet: bytes, now: float) -> None:
        """A packet enters at time `now`."""
        impairment, counts, draw = self._impairment, self.counts, self._random.random
        is_lost, is_duplicated, is_flipped, is_late = (
            draw() < impairment.loss, draw() < impairment.duplicate, draw() < impairment.flip, draw() < impairment.reorder,
        )  # fmt: skip
        bit, jitter = int(draw() * len(packet) * 8), draw() * impairment.jitter
        counts.arrived += 1
        if is_lost:
            counts.lost += 1
            return
        self._sent_at = max(self._sent_at, now)
        if impairment.rate is not None:
            if self._sent_at - now > impairment.queue:
                counts.overflowed += 1
                return
            self._sent_at += len(packet) / impairment.rate
        if is_flipped:
            counts.flipped += 1
            damaged = bytearray(packet)
            damaged[bit // 8] ^= 1 << bit % 8
            packet = bytes(damaged)
        due_at = self._due_at = max(self._due_at, self._sent_at + impairment.delay + jitter)
        if is_late:
            counts.reordered += 1
            due_at += impairment.reorder_delay
        heapq.heappush(self._in_flight, (due_at, next(self._number), packet))
        if is_duplicated:
            counts.duplicated += 1
            heapq.heappush(self._in_flight, (due_at, next(self._number), packet))

    def take(self, now: float) -> Iterator[bytes]:
        """Give the packets that are due, and forget them."""
        while self._in_flight and self._in_flight[0][0] <= now:
            yield heapq.heappop(self._in_flight)[2]
