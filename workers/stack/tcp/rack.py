"""RACK loss detection (RFC 8985 6): what was sent before something that has been delivered is lost, unless it is only late."""

import math

from workers.stack.tcp.flight import Flight, Segment
from workers.stack.tcp.rtt import RoundTrip

__all__ = ["Rack"]


class Rack:
    """What is known of the newest delivered segment, in the terms of RFC 8985 5.2."""

    __slots__ = ("_newest", "_reordering", "_rtt", "_top")

    def __init__(self, position: int) -> None:
        self._newest = (-1.0, position)  # RACK.xmit_ts, RACK.end_seq
        self._rtt = 0.0  # RACK.rtt
        self._top = position  # RACK.fack
        self._reordering = False  # RACK.reordering_seen

    def delivered(self, segment: Segment, end: int, now: float, minimum_rtt: float) -> None:
        """Steps 1 to 3: learn from a segment that was just acknowledged or SACKed, as far as `end`."""
        if end > self._top:
            self._top = end
        elif end < self._top and not segment.retransmitted:
            self._reordering = True
        rtt = now - segment.sent_at
        if segment.retransmitted and rtt < minimum_rtt:
            return  # the acknowledgment is for the first transmission
        if (segment.sent_at, end) > self._newest:
            self._newest = (segment.sent_at, end)
            self._rtt = rtt

    def detect(self, flight: Flight, now: float, rtt: RoundTrip, *, is_certain: bool) -> tuple[bool, float]:
        """Steps 4 and 5: mark losses. Return whether there were any, and when to look again (or infinity).

        `is_certain`: recovery has begun, or as much was SACKed as 3 duplicate ACKs say: without reordering ever seen, no
        time is allowed for it.
        """
        window = 0.0 if is_certain and not self._reordering else min(rtt.minimum / 4, rtt.smoothed)
        patience = self._rtt + window
        again_at = math.inf
        any_lost = False
        for segment in flight.segments:
            if segment.sacked or segment.lost or (segment.sent_at, segment.end) >= self._newest:
                continue
            due_at = segment.sent_at + patience
            if due_at > now:
                again_at = min(again_at, due_at)
            else:
                flight.mark_lost(segment)
                any_lost = True
        return any_lost, again_at
