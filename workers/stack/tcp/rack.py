"""RACK loss detection (RFC 8985 6): what was sent before something that has been delivered is lost, unless it is only late."""

import math

from workers.stack.tcp.flight import Flight, Segment
from workers.stack.tcp.rtt import RoundTrip

__all__ = ["Rack"]

_PERSISTENCE = 16  # recoveries without D-SACK after which the patience is that of the beginning, RFC 8985 6.2 step 4


class Rack:
    """What is known of the newest delivered segment, in the terms of RFC 8985 5.2."""

    __slots__ = ("_newest", "_patience", "_patient_recoveries", "_reordering", "_round_end", "_rtt", "_top")

    def __init__(self, position: int) -> None:
        self._newest = (-1.0, position)  # RACK.xmit_ts, RACK.end_seq
        self._rtt = 0.0  # RACK.rtt
        self._top = position  # RACK.fack
        self._reordering = False  # RACK.reordering_seen
        self._patience = 1  # RACK.reo_wnd_mult
        self._patient_recoveries = 0  # RACK.reo_wnd_persist
        self._round_end = position  # RACK.dsack_round

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

    def was_hasty(self, una: int, next: int) -> None:
        """A D-SACK says that something was sent again in vain: allow more for reordering, one step a round trip."""
        self._reordering = True
        if una >= self._round_end:
            self._round_end = next
            self._patience += 1
            self._patient_recoveries = _PERSISTENCE

    def recovered(self) -> None:
        """A recovery is over: one step back to the patience of the beginning."""
        if self._patience > 1:
            self._patient_recoveries -= 1
            if self._patient_recoveries <= 0:
                self._patience = 1

    def detect(self, flight: Flight, now: float, rtt: RoundTrip, *, is_certain: bool) -> float:
        """Steps 4 and 5: mark losses. Return when to look again, or infinity.

        `is_certain`: recovery has begun, or as much was SACKed as 3 duplicate ACKs say: without reordering ever seen, no
        time is allowed for it.
        """
        window = 0.0 if is_certain and not self._reordering else min(self._patience * rtt.minimum / 4, rtt.smoothed)
        patience = self._rtt + window
        again_at = math.inf
        for segment in flight.segments:
            if segment.sacked or segment.lost or (segment.sent_at, segment.end) >= self._newest:
                continue
            due_at = segment.sent_at + patience
            if due_at > now:
                again_at = min(again_at, due_at)
            else:
                flight.mark_lost(segment)
        return again_at
