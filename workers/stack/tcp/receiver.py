"""The application's data: what has come, what is missing, what may still be sent to us (RFC 9293 3.8.6, RFC 2018)."""

import math
from bisect import bisect_right
from operator import itemgetter

from workers.stack.tcp.buffer import ChunkPool
from workers.stack.tcp.seqnum import MASK

__all__ = ["RANGES_MAX", "RANGE_COST", "Receiver"]

RANGES_MAX = 256
"""Out-of-order ranges a connection keeps; more are dropped and come again. Bounds what 1-byte segments with gaps cost."""

RANGE_COST = 160
"""Bytes of memory that a range takes beside its content. They count, or 1-byte segments would cost 100 times what is seen."""

_start_of = itemgetter(0)

_RECENT_MAX = 8  # some may have been delivered before they are told again
_SACK_BLOCKS = 3  # as many as fit beside timestamps (RFC 2018 3)


class Receiver:
    """The receive half of one connection. Positions as in seqnum.py.

    next      RCV.NXT: position of the next byte expected
    acked     RCV.NXT as our last segment told it
    edge      right edge of the window as our last segment told it; never moves back (RFC 9293 3.8.6.2.2)
    backlog   in-order bytes that the upstream has not taken
    duplicate (start, end) of what came twice, to be told in the next ACK (RFC 2883), else None
    fin_at    position of the application's FIN once it was seen, else None
    ack_now   an ACK is to be sent when the batch is over
    ack_at    when the delayed ACK is due, or infinity
    """

    __slots__ = (
        "_pool", "_ranges", "_recent", "ack_at", "ack_now", "acked", "backlog", "duplicate", "edge", "fin_at", "limit", "mss",
        "next", "out_of_order", "scale", "ts_recent",
    )  # fmt: skip

    def __init__(self, position: int, limit: int, mss: int, pool: ChunkPool, *, scales: bool) -> None:
        """`limit`: bytes to hold at most, `mss`: payload bytes of the application's usual segments, `pool`: tells of shortness.

        `scales`: the application understands scaled windows; without that, 65,535 bytes are all we can offer (RFC 7323 2.3).
        """
        self.next = self.acked = position
        self.scale = max(limit.bit_length() - 16, 0) if scales else 0
        self.limit = min(limit, 0xFFFF << self.scale)
        self.mss = mss
        self._pool = pool
        self.edge = position + min(limit, 0xFFFF)  # the SYN-ACK's window is not scaled (RFC 7323 2.2)
        self.backlog = bytearray()
        self.out_of_order = 0  # bytes of memory in _ranges
        self._ranges: list[tuple[int, bytearray]] = []  # (position, bytes): ascending, neither overlapping nor touching
        self._recent: list[int] = []  # positions in the ranges that changed last, newest first
        self.duplicate: tuple[int, int] | None = None
        self.fin_at: int | None = None
        self.ts_recent = 0  # RFC 7323 4.3
        self.ack_now = False
        self.ack_at = math.inf

    def settle_ack(self) -> None:
        """A segment is being sent, and tells all there is to acknowledge."""
        self.acked = self.next
        self.ack_at = math.inf
        self.ack_now = False

    def window_field(self) -> int:
        """Return the window to put in a segment that is being sent now, and remember its edge."""
        window = self.limit
        if self.backlog:
            window -= len(self.backlog)  # what is held out of order lies within the window, whose room it has
            promised = max(self.edge - self.next, 0)  # a FIN is taken at the edge itself
            if window < promised + self._worth() or self._pool.is_short(len(self.backlog)):
                # Less than was promised, not enough more, or no memory for it: the edge stays. Rounded down it may seem to
                # move back by less than 2**scale bytes, as RFC 7323 2.4 allows, but `edge` keeps what was promised. Rounded
                # up, it would creep on with every segment, and the backlog with it.
                window = promised
        field = window >> self.scale
        edge = self.next + (field << self.scale)
        if edge > self.edge:
            self.edge = edge
        return field

    def _worth(self) -> int:
        """Bytes by which the window must grow to be worth telling (RFC 9293 3.8.6.2.2, SHLD-15)."""
        return min(2 * self.mss, self.limit // 2)

    def may_open_window(self) -> bool:
        """Whether a window update is due: the upstream took enough since the last segment we sent."""
        if self.backlog and self._pool.is_short(len(self.backlog)):
            return False
        return self.next + self.limit - len(self.backlog) - self.edge >= self._worth()

    def note_timestamps(self, position: int, timestamps: tuple[int, int] | None) -> None:
        """Remember the timestamp of an acceptable segment at `position`, to echo it (RFC 7323 4.3 (2))."""
        if timestamps is not None and position <= self.acked:
            self.ts_recent = timestamps[0]

    def is_inside(self, position: int, length: int) -> bool:
        """Whether a segment of `length` bytes (SYN and FIN counted) is acceptable (RFC 9293 3.10.7.4, first step).

        With a window of 0 the segment at its edge still is, for its ACK or RST; its text will be cut to nothing.
        """
        if length:
            return position <= self.edge and position + length > self.next
        return self.next <= position <= self.edge

    def store(self, position: int, data: memoryview) -> int | None:
        """Keep a copy of bytes that came ahead of `next`; return how much more memory is held now. None: there are too many gaps.

        What lies in ranges already held is not replaced.
        """
        before_bytes = self.out_of_order
        end = position + len(data)
        ranges = self._ranges
        index = bisect_right(ranges, position, key=_start_of)
        if index and (before := ranges[index - 1])[0] + len(before[1]) >= position:
            index -= 1
            start, held = before
            if start + len(held) >= end:
                self.duplicate = (position, end)
        elif len(ranges) >= RANGES_MAX:
            return None
        else:
            start, held = position, bytearray()
            ranges.insert(index, (start, held))
            self.out_of_order += RANGE_COST
        self._extend(index, start, held, position, end, data)
        others = [recent for recent in self._recent if not start <= recent < start + len(held)]
        self._recent = [position, *others[: _RECENT_MAX - 1]]
        return self.out_of_order - before_bytes

    def _extend(self, index: int, start: int, held: bytearray, position: int, end: int, data: memoryview) -> None:
        """Add data[position..end] to the range at `index`, which reaches at least to `position`; swallow those it meets."""
        ranges = self._ranges
        while True:
            reach = start + len(held)
            has_next = index + 1 < len(ranges)
            stop = min(end, ranges[index + 1][0]) if has_next else end
            if stop > reach:
                held += data[reach - position : stop - position]
                self.out_of_order += stop - reach
                reach = stop
            if not has_next or reach < ranges[index + 1][0]:
                return
            held += ranges.pop(index + 1)[1]
            self.out_of_order -= RANGE_COST

    @property
    def is_plain(self) -> bool:
        """Whether nothing is held, nothing is known to be missing, and no FIN was seen."""
        return not (self.backlog or self.out_of_order or self.fin_at is not None)

    def note_fin(self, position: int) -> None:
        """A FIN was seen at `position`. One that contradicts an earlier one, or text that is held beyond it, is a lie."""
        farthest = self._ranges[-1][0] + len(self._ranges[-1][1]) if self._ranges else self.next
        if self.fin_at is None and farthest <= position <= self.edge:
            self.fin_at = position

    def pop_ready(self) -> tuple[int, memoryview] | None:
        """Return the range that begins at `next` or before it: memory it took, and bytes after `next`. None: a gap remains."""
        ranges = self._ranges
        if not ranges or ranges[0][0] > self.next:
            return None
        start, held = ranges.pop(0)
        memory = len(held) + RANGE_COST
        self.out_of_order -= memory
        return memory, memoryview(held)[self.next - start :]

    def sack_blocks(self) -> list[tuple[int, int]]:
        """Return the blocks to report as wire numbers: what came twice, once (RFC 2883 4), then those that changed last.

        So each is told in several ACKs, of which some may be lost (RFC 2018 4).
        """
        blocks: list[tuple[int, int]] = []
        if self.duplicate is not None:
            blocks.append(self.duplicate)
            self.duplicate = None
        for position in self._recent:
            index = bisect_right(self._ranges, position, key=_start_of) - 1
            if index >= 0 and len(blocks) < _SACK_BLOCKS:
                start, held = self._ranges[index]
                if position < start + len(held):
                    blocks.append((start, start + len(held)))
        return [(start & MASK, end & MASK) for start, end in blocks]

    def clear(self) -> None:
        """Drop all that is held; the connection is over."""
        # A new object: the old one may be exported to a handler that is on the call stack.
        self.backlog = bytearray()
        self._ranges = []
        self.out_of_order = 0
        self.settle_ack()
