"""How fast data arrives at the application, from its acknowledgments (draft-cheng-iccrg-delivery-rate-estimation-02).

A segment takes a snapshot of what had arrived when it left. When it is acknowledged in turn, the difference is what arrived in
the meantime; over the longer of the times that sending and acknowledging took, that is a rate the path has carried.
"""

from typing import NamedTuple

from workers.stack.tcp.flight import Segment

__all__ = ["Delivery", "Sample"]


class Sample(NamedTuple):
    """A measurement. `limited`: there was not enough to send to find out what the path carries."""

    rate: float  # bytes per second
    before: int  # `Delivery.delivered` when the measured segment left
    limited: bool


class Delivery:
    """The estimator of one connection. `delivered`: bytes that have arrived since its beginning, in any order."""

    __slots__ = ("_at", "_first_sent_at", "_limited_until", "_newest", "delivered")

    def __init__(self) -> None:
        self.delivered = 0
        self._at = 0.0  # when `delivered` last grew
        self._first_sent_at = 0.0  # departure of the segment that the newest sample measured
        self._limited_until = 0  # what leaves before `delivered` is beyond this is limited by the data there is
        self._newest: Segment | None = None  # the segment that left last of those that have arrived since `take`

    def sent(self, segment: Segment, now: float, *, alone: bool) -> None:
        """`segment` leaves, perhaps again; `alone`: nothing else is in flight."""
        if alone:
            self._first_sent_at = self._at = now
        segment.snapshot = (self.delivered, self._at, self._first_sent_at, self.delivered < self._limited_until)

    def ran_dry(self, in_flight: int) -> None:
        """The windows would take more than there is to send."""
        self._limited_until = self.delivered + max(in_flight, 1)

    def arrived(self, segment: Segment, size: int, now: float) -> None:
        """The application holds `size` bytes of `segment` that it did not hold before."""
        self.delivered += size
        self._at = now
        newest = self._newest
        if newest is None or (segment.sent_at, segment.end) > (newest.sent_at, newest.end):
            self._newest = segment

    def take(self, minimum_rtt: float) -> Sample | None:
        """Return what the arrivals since the last call say; None when they came in too short a time to say anything."""
        newest = self._newest
        self._newest = None
        if newest is None or newest.snapshot is None:
            return None
        before, at, first_sent_at, limited = newest.snapshot
        self._first_sent_at = newest.sent_at
        # ACKs come in bunches, and data leaves in bunches: the slower of the two tells of the path.
        seconds = max(newest.sent_at - first_sent_at, self._at - at)
        if seconds <= 0 or seconds < minimum_rtt:
            return None
        return Sample((self.delivered - before) / seconds, before, limited)
