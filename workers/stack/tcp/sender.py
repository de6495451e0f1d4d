"""Our data in sequence space: what is in flight, what of it is lost, and what may be sent next.

The sender decides, the connection emits: `next_segment` returns a segment that was taken into account as sent, or None.

Loss detection is RACK (RFC 8985): a segment is lost when one sent later has been delivered and the time for reordering has
passed. That covers what RFC 6675 finds by counting SACKed bytes, and lost retransmissions too. An application without SACK
gets NewReno (RFC 6582). `pipe` is RFC 6675's estimate of the bytes in the network.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable
from operator import attrgetter

from workers.stack.tcp.buffer import SendBuffer
from workers.stack.tcp.congestion import Cubic
from workers.stack.tcp.rtt import RoundTrip

__all__ = ["Segment", "Sender"]

_DUPLICATE_ACKS = 3  # RFC 5681 3.2

_start_of = attrgetter("start")


class Segment:
    """Positions start..end, sent together at `sent_at`. With offload one segment here is many on the wire."""

    __slots__ = ("end", "lost", "retransmitted", "sacked", "sent_at", "start")

    def __init__(self, start: int, end: int, sent_at: float) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at
        self.retransmitted = False
        self.sacked = False
        self.lost = False


class Sender:
    """The send half of one connection. Positions as in seqnum.py, sizes in bytes, times in seconds.

    una           SND.UNA: the oldest byte not acknowledged
    next          SND.NXT: the next new byte; never moves back
    window        SND.WND, not scaled
    max_segment   the most payload one segment may carry
    retransmit_at when the timer for the oldest segment expires, or infinity
    tail_probe    that timer is the probe time-out of RFC 8985 7, not the retransmission time-out
    """

    __slots__ = (
        "_dup_acks", "_flight", "_lost_bytes", "_must_retransmit", "_newest_delivered", "_newest_rtt", "_probed",
        "_recovery_point", "_reordering", "_sacked_bytes", "_slow_starting", "_top_delivered", "buffer", "congestion", "fin",
        "max_segment", "max_window", "mss", "next", "reorder_at", "retransmit_at", "rtt", "sack", "stalled_since",
        "tail_probe", "una", "window",
    )  # fmt: skip

    def __init__(self, buffer: SendBuffer, mss: int, max_segment: int, window: int, *, sack: bool) -> None:
        self.buffer = buffer
        self.mss = mss
        self.max_segment = max_segment
        self.una = self.next = buffer.end
        self.window = self.max_window = window
        self.sack = sack
        self.fin = False  # a FIN follows the last byte of the buffer
        self.congestion = Cubic(mss)
        self.rtt = RoundTrip()
        self.retransmit_at = math.inf
        self.reorder_at = math.inf  # RFC 8985 6.2: when segments must be looked at again
        self.tail_probe = False
        self.stalled_since = math.inf  # first time-out since the application last acknowledged something new
        self._flight: list[Segment] = []  # ascending, without gaps from una to next
        self._sacked_bytes = 0
        self._lost_bytes = 0
        self._recovery_point: int | None = None  # recovery lasts until this position is acknowledged
        self._slow_starting = False  # recovery after a time-out, in which the window grows
        self._must_retransmit = False  # the first retransmission of a recovery does not wait for the window
        self._dup_acks = 0  # without SACK only
        self._probed = False  # one probe until something new is acknowledged (RFC 8985 7.3)
        self._newest_delivered = (-1.0, 0)  # RACK.xmit_ts, RACK.end_seq
        self._newest_rtt = 0.0  # RACK.rtt
        self._top_delivered = self.una  # RACK.fack
        self._reordering = False  # RACK.reordering_seen

    # what may be sent

    def pipe(self) -> int:
        """Bytes believed to be in the network (RFC 6675 4)."""
        pipe = self.next - self.una - self._sacked_bytes - self._lost_bytes
        if self._dup_acks:
            pipe -= min(self._dup_acks * self.mss, pipe)  # each duplicate ACK says that one segment has left
        return pipe

    def next_segment(self, now: float, *, override: bool = False) -> Segment | None:
        """Return the segment to send now, lost ones first; None when there is nothing or the windows forbid it.

        `override`: what waited to be sent in a larger piece has waited long enough (RFC 9293 3.8.6.2.1).
        """
        if self._lost_bytes:
            return self._next_lost(now)
        start = self.next
        waiting = self.buffer.end - start
        if waiting <= 0:
            return self._next_fin(now) if self.fin and not waiting else None
        flight = start - self.una
        room = min(self.window - flight, self.congestion.window - self.pipe())
        size = min(waiting, self.max_segment)
        if size > room:
            size = room
            if size < self.mss:
                # Silly window avoidance (RFC 9293 3.8.6.2.1): a part of a segment only when nothing else will move.
                if size <= 0 or ((flight or size * 2 < self.max_window) and not override):
                    return None
            else:
                size -= size % self.mss
        elif size < waiting and size > self.mss:
            size -= size % self.mss
        end = start + size
        if self.fin and end == self.buffer.end and room > size:
            end += 1
        return self._sent(end, now)

    def _next_fin(self, now: float) -> Segment | None:
        if self.next - self.una >= self.window and self.next != self.una:
            return None
        return self._sent(self.next + 1, now)

    def _sent(self, end: int, now: float) -> Segment:
        segment = Segment(self.next, end, now)
        was_idle = self.next == self.una
        self._flight.append(segment)
        self.next = end
        if self._may_probe():
            self.tail_probe = True
            self.retransmit_at = now + self.rtt.probe_timeout
        elif was_idle:
            self.retransmit_at = now + self.rtt.timeout
        return segment

    def _may_probe(self) -> bool:
        """Whether to probe early for a lost tail (RFC 8985 7.2): not for a lone segment, whose ACK may be delayed."""
        return self.next - self.una > self.mss and self.sack and self._recovery_point is None and not self._probed

    def _next_lost(self, now: float) -> Segment | None:
        room = self.congestion.window - self.pipe()
        if self._must_retransmit:
            room = max(room, self.mss)
        if room < self.mss:
            return None
        index = next(i for i, segment in enumerate(self._flight) if segment.lost)
        segment = self._flight[index]
        size = min(segment.end - segment.start, self.max_segment, room - room % self.mss)
        if segment.start + size < segment.end:
            self._split(segment.start + size)
        segment.lost = False
        segment.retransmitted = True
        segment.sent_at = now
        self._lost_bytes -= size
        self._must_retransmit = False
        self.tail_probe = False
        self.retransmit_at = now + self.rtt.timeout
        return segment

    @property
    def in_flight(self) -> bool:
        """Whether anything waits for its acknowledgment."""
        return self.next != self.una

    @property
    def has_unsent(self) -> bool:
        """Whether data or a FIN has not been sent even once."""
        return self.next < self.buffer.end + self.fin

    @property
    def has_work(self) -> bool:
        """Whether `next_segment` is worth a call."""
        return self._lost_bytes > 0 or self.next < self.buffer.end + self.fin

    @property
    def fin_acked(self) -> bool:
        """Whether the application has acknowledged our FIN."""
        return self.una > self.buffer.end

    # what the application says

    def update_window(self, window: int) -> None:
        """The application takes `window` bytes after una."""
        self.window = window
        if window > self.max_window:
            self.max_window = window

    def acknowledge(self, ack: int, now: float) -> None:
        """Everything before position `ack`, una < ack <= next, has arrived."""
        before = self.next - self.una
        acked = ack - self.una
        self.una = ack
        self._drop_acknowledged(ack, now)
        self.buffer.discard(ack)
        self.stalled_since = math.inf
        if self._dup_acks:
            self._dup_acks = (
                max(self._dup_acks - max(acked // self.mss, 1), 0) if self._recovery_point is not None else 0
            )
        if self._recovery_point is not None:
            self._acknowledge_in_recovery(ack, acked, now)
        elif before * 2 >= self.congestion.window:
            # A window that was not used says nothing about the path and must not grow (RFC 7661 4.2, simplified).
            self.congestion.on_ack(acked, now, self.rtt.smoothed)
        self._restart_timer(now)

    def _drop_acknowledged(self, ack: int, now: float) -> None:
        flight = self._flight
        count = 0
        newest = None
        for segment in flight:
            if segment.end > ack:
                if segment.start < ack:
                    self._trim(segment, ack)
                    newest = segment
                break
            count += 1
            if segment.sacked:
                self._sacked_bytes -= segment.end - segment.start
                continue
            if segment.lost:
                self._lost_bytes -= segment.end - segment.start
            newest = segment
            self._delivered(segment, ack, now)
        del flight[:count]
        if newest is None or newest.retransmitted:
            self.rtt.reset_backoff()
        else:
            self.rtt.sample(now - newest.sent_at)

    def _trim(self, segment: Segment, ack: int) -> None:
        """Forget the acknowledged front of a segment: the kernel cut it, or the application took a part."""
        size = ack - segment.start
        segment.start = ack
        if segment.lost:
            self._lost_bytes -= size
        elif segment.sacked:
            self._sacked_bytes -= size

    def _acknowledge_in_recovery(self, ack: int, acked: int, now: float) -> None:
        assert self._recovery_point is not None, "only called in recovery"
        if ack >= self._recovery_point:
            self._recovery_point = None
            self._slow_starting = self._must_retransmit = False
            self._dup_acks = 0
            return
        if self._slow_starting:
            self.congestion.on_ack(acked, now, self.rtt.smoothed)
        if self.sack:
            self.detect_losses(now)
        elif not self._slow_starting:
            self._mark_head_lost()  # a partial acknowledgment: the next hole is lost too (RFC 6582 3.2 (5))

    def _restart_timer(self, now: float) -> None:
        if not self._flight:
            self.retransmit_at = self.reorder_at = math.inf
            self.tail_probe = False
            return
        self._probed = False
        self.tail_probe = self._may_probe()
        self.retransmit_at = now + (self.rtt.probe_timeout if self.tail_probe else self.rtt.timeout)

    def selectively_acknowledge(self, blocks: Iterable[tuple[int, int]], now: float) -> None:
        """The application holds these (start, end) positions. Blocks outside una..next are ignored (RFC 2018 5, RFC 2883)."""
        changed = False
        for start, end in blocks:
            if not self.una < start < end <= self.next:
                continue
            self._split(start)
            self._split(end)
            first = bisect_right(self._flight, start - 1, key=_start_of)
            for segment in self._flight[first:]:
                if segment.end > end:
                    break
                if not segment.sacked:
                    self._mark_sacked(segment, now)
                    changed = True
        if changed:
            self.detect_losses(now)

    def _mark_sacked(self, segment: Segment, now: float) -> None:
        size = segment.end - segment.start
        if segment.lost:
            segment.lost = False
            self._lost_bytes -= size
        segment.sacked = True
        self._sacked_bytes += size
        self._delivered(segment, segment.end, now)

    def duplicate_ack(self, now: float) -> None:
        """An ACK that acknowledged nothing, while data was in flight, from an application without SACK."""
        if self.sack:
            return  # its SACK blocks say more
        self._dup_acks += 1
        if self._dup_acks == _DUPLICATE_ACKS and self._recovery_point is None:
            self._mark_head_lost()
            self._enter_recovery()

    # losses

    def _delivered(self, segment: Segment, end: int, now: float) -> None:
        """RFC 8985 6.2, steps 1 to 3: learn from a segment that has just been delivered up to `end`."""
        end = min(end, segment.end)
        if not segment.retransmitted and end < self._top_delivered:
            self._reordering = True
        self._top_delivered = max(self._top_delivered, end)
        rtt = now - segment.sent_at
        if segment.retransmitted and rtt < self.rtt.minimum:
            return  # the ACK is for the first transmission
        if (segment.sent_at, end) > self._newest_delivered:
            self._newest_delivered = (segment.sent_at, end)
            self._newest_rtt = rtt

    def detect_losses(self, now: float) -> None:
        """RFC 8985 6.2, step 5: mark as lost what was sent before the newest delivered segment, reordering considered."""
        window = 0.0
        if self._reordering or (self._recovery_point is None and self._sacked_bytes < _DUPLICATE_ACKS * self.mss):
            window = min(self.rtt.minimum / 4, self.rtt.smoothed)
        again_at = math.inf
        any_lost = False
        newest, patience = self._newest_delivered, self._newest_rtt + window
        for segment in self._flight:
            if segment.sacked or segment.lost or (segment.sent_at, segment.end) >= newest:
                continue
            due_at = segment.sent_at + patience
            if due_at > now:
                again_at = min(again_at, due_at)
                continue
            segment.lost = any_lost = True
            self._lost_bytes += segment.end - segment.start
        self.reorder_at = again_at
        if any_lost and self._recovery_point is None:
            self._enter_recovery()

    def _enter_recovery(self) -> None:
        self._recovery_point = self.next
        self._slow_starting = False
        self._must_retransmit = True
        self.congestion.on_loss(self.next - self.una)

    def _mark_head_lost(self) -> None:
        self._split(self.una + self.mss)
        head = self._flight[0]
        if not head.lost:
            head.lost = True
            self._lost_bytes += head.end - head.start
            self._must_retransmit = True

    def _split(self, position: int) -> None:
        """Make `position` a boundary between two segments of the flight."""
        index = bisect_right(self._flight, position, key=_start_of) - 1
        if index < 0:
            return
        segment = self._flight[index]
        if not segment.start < position < segment.end:
            return
        rest = Segment(position, segment.end, segment.sent_at)
        rest.retransmitted, rest.sacked, rest.lost = segment.retransmitted, segment.sacked, segment.lost
        segment.end = position
        self._flight.insert(index + 1, rest)

    # timers

    def probe(self, now: float) -> Segment | None:
        """The probe time-out: send new data, else the last segment again, to get the ACK that tells of losses (RFC 8985 7.3)."""
        self._probed = True
        segment = self.next_segment(now)
        if segment is None:
            self._split(self.next - self.mss)
            segment = self._flight[-1]
            if segment.sacked or segment.lost:
                segment = None
            else:
                segment.retransmitted = True
                segment.sent_at = now
        self.tail_probe = False
        self.retransmit_at = now + self.rtt.timeout
        return segment

    def time_out(self, now: float) -> None:
        """The retransmission time-out: everything not SACKed is lost (RFC 6298 (5.4)-(5.6), RFC 8985 6.3)."""
        if self.stalled_since == math.inf:
            self.stalled_since = now
        if self._recovery_point is None or not self._slow_starting:
            self.congestion.on_timeout(self.pipe() or self.mss)
        self._recovery_point = self.next
        self._slow_starting = self._must_retransmit = True
        self._dup_acks = 0
        if self._flight and self._flight[0].sacked:
            self._forget_sacks()
        self.mark_all_lost()
        self.rtt.back_off()
        self.reorder_at = math.inf
        self.retransmit_at = now + self.rtt.timeout

    def _forget_sacks(self) -> None:
        """The oldest byte was SACKed, yet never acknowledged: the application has dropped it again (RFC 2018 8)."""
        for segment in self._flight:
            segment.sacked = False
        self._sacked_bytes = 0

    def mark_all_lost(self) -> None:
        """Nothing in flight but what is SACKed will arrive."""
        for segment in self._flight:
            if not segment.sacked and not segment.lost:
                segment.lost = True
                self._lost_bytes += segment.end - segment.start

    def set_mss(self, mss: int, max_segment: int) -> None:
        """The path takes smaller segments; what is in flight did not fit and is to be sent again (RFC 1191 6.4)."""
        self.mss = mss
        self.max_segment = max_segment
        self.congestion.set_mss(mss)
        self.mark_all_lost()
        self._must_retransmit = True

    def clear(self) -> None:
        """The connection is over: give the memory back, stop the timers."""
        self.buffer.clear()
        self._flight.clear()
        self._sacked_bytes = self._lost_bytes = 0
        self.retransmit_at = self.reorder_at = math.inf
