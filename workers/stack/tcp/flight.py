"""The scoreboard: which bytes in flight are SACKed, lost or sent again (RFC 2018 8, RFC 6675 3)."""

from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter

__all__ = ["FEW", "Flight", "Segment"]

FEW = 128
"""Segments that may always be told apart; beyond it one for each _SPAN bytes in flight. Text that trickles out a byte at a time,
or an application that SACKs every other byte (CVE-2019-11478), would cost memory and time without bound."""
_SPAN = 512

_start_of = attrgetter("start")


class Segment:
    """Positions start..end, sent together at `sent_at`. With offload one segment here is many on the wire.

    `snapshot`: what had arrived when it left (delivery.py: bytes, when the last came, departure of the newest, limited).
    """

    __slots__ = ("end", "lost", "retransmitted", "sacked", "sent_at", "snapshot", "start")

    def __init__(self, start: int, end: int, sent_at: float) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.retransmitted = False
        self.sacked = False
        self.lost = False
        self.snapshot: tuple[int, float, float, bool] | None = None

    def cut(self, position: int) -> "Segment":
        """End at `position` from now on; return what was after it, as a segment like this one."""
        rest = Segment(position, self.end, self.sent_at)
        rest.retransmitted, rest.sacked, rest.lost = self.retransmitted, self.sacked, self.lost
        rest.snapshot = self.snapshot
        self.end = position
        return rest


class Flight:
    """All segments between SND.UNA and SND.NXT, ascending and without gaps.

    sacked_bytes  of segments the application holds though something before them is missing
    lost_bytes    of segments taken for lost and not sent again yet
    """

    __slots__ = ("lost_bytes", "sacked_bytes", "segments")

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.sacked_bytes = 0
        self.lost_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more segments may be told apart."""
        segments = self.segments
        return len(segments) >= FEW and len(segments) >= FEW + (segments[-1].end - segments[0].start) // _SPAN

    def split(self, position: int) -> None:
        """Make `position` a boundary between two segments, if there are not too many of them."""
        if self.is_full:
            return
        index = bisect_right(self.segments, position, key=_start_of) - 1
        if index < 0:
            return
        segment = self.segments[index]
        if not segment.start < position < segment.end:
            return
        self.segments.insert(index + 1, segment.cut(position))

    def drop_before(self, position: int) -> list[Segment]:
        """Remove what was acknowledged, up to `position`; return what was not known to be delivered already."""
        segments = self.segments
        delivered, rest = [], []
        count = 0
        for segment in segments:
            if segment.start >= position:
                break
            count += 1
            if segment.end > position:
                rest.append(segment.cut(position))
            if segment.sacked:
                self.sacked_bytes -= segment.end - segment.start
            else:
                self.unmark_lost(segment)
                delivered.append(segment)
        segments[:count] = rest
        return delivered

    def mark_sacked(self, start: int, end: int) -> Iterator[Segment]:
        """The application holds start..end: yield each segment that this is news of."""
        self.split(start)
        self.split(end)
        first = bisect_right(self.segments, start - 1, key=_start_of)
        for segment in self.segments[first:]:
            if segment.end > end:
                break
            if not segment.sacked:
                self.unmark_lost(segment)
                segment.sacked = True
                self.sacked_bytes += segment.end - segment.start
                yield segment

    def mark_lost(self, segment: Segment) -> None:
        """Take `segment` for lost, unless it is SACKed or lost already."""
        if not segment.sacked and not segment.lost:
            segment.lost = True
            self.lost_bytes += segment.end - segment.start

    def unmark_lost(self, segment: Segment) -> None:
        """`segment` was delivered, or is being sent again."""
        if segment.lost:
            segment.lost = False
            self.lost_bytes -= segment.end - segment.start

    def mark_all_lost(self) -> None:
        """Nothing in flight but what is SACKed will arrive."""
        for segment in self.segments:
            self.mark_lost(segment)

    def first_lost(self, size: int) -> Segment:
        """Return the first lost segment, cut to at most `size` bytes if it can be (split). There must be one."""
        segment = next(segment for segment in self.segments if segment.lost)
        if segment.end - segment.start > size:
            self.split(segment.start + size)
        return segment

    def likely_lost(self, size: int) -> Segment:
        """Return `size` bytes, or less, to ask after: the first that are missing before others that are SACKed, else the last."""
        if self.sacked_bytes:
            # All SACKed and yet not acknowledged: a lie, or the application has reneged (RFC 2018 8).
            segment = next((segment for segment in self.segments if not segment.sacked), self.segments[0])
            self.split(segment.start + size)
            return segment
        self.split(self.segments[-1].end - size)
        return self.segments[-1]

    def forget_sacks(self) -> None:
        """The application has dropped what it had SACKed (RFC 2018 8)."""
        for segment in self.segments:
            segment.sacked = False
        self.sacked_bytes = 0

    def clear(self) -> None:
        """The connection is over."""
        self.segments.clear()
        self.sacked_bytes = self.lost_bytes = 0
