"""Our data in sequence space: what is in flight, and what may be sent next.

The sender decides, the connection emits: `next_segment` returns a segment that was taken into account as sent, or None.

Losses are found by RACK (RFC 8985), which covers what RFC 6675 finds by counting SACKed bytes, and lost retransmissions too;
how much may be sent meanwhile is RFC 6675's `pipe`. An application without SACK gets NewReno (RFC 6582).
"""

import math
from collections.abc import Sequence

from workers.stack.tcp.bbr import Bbr
from workers.stack.tcp.buffer import BUFFER_NEAR, SendBuffer
from workers.stack.tcp.congestion import Cubic
from workers.stack.tcp.flight import FEW, Flight, Segment
from workers.stack.tcp.rack import Rack
from workers.stack.tcp.rtt import RoundTrip

__all__ = ["Sender"]

_DUPLICATE_ACKS = 3  # RFC 5681 3.2
_LOCAL_RTT = 0.001  # seconds; what answers faster is this machine or its LAN


class Sender:
    """The send half of one connection. Positions as in seqnum.py, sizes in bytes, times in seconds.

    una            SND.UNA: the oldest byte not acknowledged
    next           SND.NXT: the next new byte; never moves back
    window         SND.WND, not scaled
    max_segment    the most payload one segment may carry
    fin            a FIN follows the last byte of the buffer
    retransmit_at  when the timer for the oldest segment expires, or infinity
    tail_probe     that timer is the probe time-out of RFC 8985 7, not the retransmission time-out
    send_at        when the pace lets the next segment leave, if one waits for that, or infinity
    reorder_at     when RACK must look again, or infinity
    stalled_since  first time-out since the application last acknowledged anything, or infinity
    """

    __slots__ = (
        "_bbr", "_cubic", "_dup_acks", "_flight", "_must_retransmit", "_probed", "_rack", "_recovery_point", "_resent",
        "_slow_starting", "_timed", "buffer", "congestion", "fin", "max_segment", "max_window", "mss", "next", "reorder_at",
        "retransmit_at", "rtt", "sack", "send_at", "stalled_since", "tail_probe", "una", "window",
    )  # fmt: skip

    def __init__(self, buffer: SendBuffer, mss: int, max_segment: int, window: int, *, sack: bool) -> None:
        self.buffer = buffer
        self.mss = mss
        self.max_segment = max_segment
        self.una = self.next = buffer.end
        self.window = self.max_window = window
        self.sack = sack
        self.fin = False
        self._cubic = Cubic(mss)
        self._bbr: Bbr | None = None
        self.congestion: Cubic | Bbr = self._cubic
        self.rtt = RoundTrip()
        self.retransmit_at = self.reorder_at = self.send_at = self.stalled_since = math.inf
        self.tail_probe = False
        self._flight = Flight()
        self._rack = Rack(self.una)
        self._recovery_point: int | None = None  # recovery lasts until this position is acknowledged
        self._slow_starting = False  # it is the recovery after a time-out, in which the window grows
        self._must_retransmit = False  # the first retransmission of a recovery does not wait for the window
        self._resent = 0  # bytes sent again since the last reduction of the window, of which no D-SACK has come
        self._dup_acks = 0  # without SACK only
        self._timed = self.una  # one ACK per round trip is measured, the first beyond this position (RFC 6298 3)
        self._probed = False  # one probe until something new is acknowledged (RFC 8985 7.3)

    def open(self, rtt: float | None, now: float, *, local: bool) -> None:
        """The handshake took one round trip of `rtt`; None: a repeated SYN-ACK says nothing of that.

        A program on this machine (known to be `local`, or so near) needs no pace, its window alone is to hold us back: CUBIC.
        A longer path may lose packets, and what a window that shrinks with each loss can carry falls with the round trip: BBR.
        """
        if rtt is not None:
            self.rtt.sample(rtt)
        self.retransmit_at = math.inf
        if not local and (rtt is None or rtt >= _LOCAL_RTT):
            self.congestion = self._bbr = Bbr(self.mss, self.max_segment, rtt or 0.0, now)

    def _is_local(self) -> None:
        """The round trip was a long one only because somebody was busy."""
        self._cubic.window = max(self._cubic.window, self.congestion.window)
        self.congestion = self._cubic
        self._bbr = None
        self.send_at = math.inf

    # what may be sent

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
        return self._flight.lost_bytes > 0 or self.next < self.buffer.end + self.fin

    @property
    def fin_acked(self) -> bool:
        """Whether the application has acknowledged our FIN."""
        return self.una > self.buffer.end

    def pipe(self) -> int:
        """Bytes believed to be in the network (RFC 6675 4)."""
        pipe = self.next - self.una - self._flight.sacked_bytes - self._flight.lost_bytes
        return max(pipe - self._dup_acks * self.mss, 0)  # each duplicate ACK says that one segment has left

    def next_segment(self, now: float, *, override: bool = False) -> Segment | None:
        """Return the segment to send now, lost ones first; None when there is nothing or the windows forbid it.

        `override`: what waited to be sent in a larger piece has waited long enough (RFC 9293 3.8.6.2.1).
        """
        burst = self.max_segment
        if self._bbr is not None:
            if self._bbr.depart_at > now:
                self.send_at = self._bbr.depart_at
                return None
            self.send_at = math.inf
            burst = self._bbr.burst
        if self._flight.lost_bytes:
            return self._next_lost(burst, now)
        start = self.next
        waiting = self.buffer.end - start
        in_flight = start - self.una
        room = self.window - in_flight
        if waiting <= 0:
            return self._send_new(start + 1, now) if self.fin and not waiting and room > 0 else None
        if len(self._flight.segments) >= FEW and self._flight.is_full:
            return None
        pipe = self.pipe() if self._flight.sacked_bytes or self._dup_acks else in_flight
        size = min(waiting, burst)
        if size < waiting or size > room or size > self.congestion.window - pipe:
            size = min(size, room, self.congestion.window - pipe)
            if size >= self.mss:
                size -= size % self.mss
            elif size <= 0 or ((in_flight or size * 2 < self.max_window) and not override):
                return None  # silly window avoidance: a part of a segment only when nothing else will move
        end = start + size
        if self.fin and size == waiting and size < room:
            end += 1
        return self._send_new(end, now)

    def _send_new(self, end: int, now: float) -> Segment:
        segment = Segment(self.next, end, now)
        was_idle = self.next == self.una
        if self._bbr is not None:
            in_flight = self.pipe()
            self._bbr.sent(segment, in_flight, now)
            if end >= self.buffer.end and not self.buffer.is_full:
                self._bbr.ran_dry(in_flight + end - self.next)
        self._flight.segments.append(segment)
        self.next = end
        if was_idle or self._may_probe():
            self._start_timer(now)
        return segment

    def _may_probe(self) -> bool:
        """Whether to probe early for a lost tail (RFC 8985 7.2): not for a lone segment, whose ACK may be delayed.

        In recovery, too, which the RFC leaves to the time-out: there the last retransmission on its way is the tail.
        """
        return self.next - self.una > self.mss and self.sack and not self._probed

    def _start_timer(self, now: float) -> None:
        self.tail_probe = self._may_probe()
        self.retransmit_at = now + (self.rtt.probe_timeout if self.tail_probe else self.rtt.timeout)

    def _next_lost(self, burst: int, now: float) -> Segment | None:
        room = self.congestion.window - self.pipe()
        if self._must_retransmit:
            room = max(room, self.mss)
        if room < self.mss:
            return None
        segment = self._flight.first_lost(min(burst, room - room % self.mss))
        self._must_retransmit = False
        self._resent += segment.end - segment.start
        self._send_again(segment, now)
        return segment

    def _send_again(self, segment: Segment, now: float) -> None:
        if self._bbr is not None:
            self._bbr.sent(segment, self.pipe(), now)
        self._flight.unmark_lost(segment)
        segment.retransmitted = True
        segment.sent_at = now
        self._start_timer(now)

    # what the application says

    def update_window(self, window: int) -> None:
        """The application takes `window` bytes after una."""
        self.window = window
        if window > self.max_window:
            self.max_window = window
        if self.next == self.una:
            # The end of a zero window: it was backed off for, and probed by this timer.
            self.rtt.reset_backoff()
            self.retransmit_at = math.inf

    def acknowledge(self, ack: int, now: float) -> None:
        """Everything before position `ack`, una < ack <= next, has arrived."""
        before = self.next - self.una
        acked = ack - self.una
        self.una = ack
        self._probed = False
        self.stalled_since = math.inf
        if self._recovery_point is not None or self._flight.sacked_bytes or self._flight.lost_bytes:
            self._learn_from_all(ack, now)
        else:
            self._learn_from_newest(ack, acked, now)
        self.buffer.discard(ack)
        if self._bbr is not None:
            self._update_model(self._bbr, now)
        elif before * 2 >= self._cubic.window and (self._recovery_point is None or self._slow_starting):
            # A window that was not used says nothing about the path and must not grow (RFC 7661 4.2, simplified).
            self._cubic.on_ack(acked, now, self.rtt.smoothed)
            if self.buffer.limit < BUFFER_NEAR:
                self.buffer.follow(self._cubic.window)
        if self._recovery_point is not None:
            self._continue_recovery(self._recovery_point, ack, acked, now)
        else:
            self._dup_acks = 0
        self._restart_timer(now)

    def _update_model(self, bbr: Bbr, now: float) -> None:
        bbr.update(self.pipe(), now)
        self.buffer.follow(bbr.window)
        if bbr.minimum_rtt < _LOCAL_RTT:
            self._is_local()

    def _learn_from_newest(self, ack: int, acked: int, now: float) -> None:
        """The common case: nothing is known to be lost, so the newest segment stands for all."""
        segments = self._flight.segments
        newest = segments[0]
        count = 0
        for segment in segments:
            if segment.start >= ack:
                break
            newest = segment
            if segment.end > ack:
                segment.start = ack  # the kernel had cut it, and part of it has arrived
                break
            count += 1
        del segments[:count]
        if newest.retransmitted:
            self.rtt.reset_backoff()
        elif ack > self._timed:
            self._timed = self.next
            self.rtt.sample(now - newest.sent_at)
        if self._bbr is not None:
            self._bbr.arrived(newest, acked, now)
        self._rack.delivered(newest, ack, now, self.rtt.minimum)

    def _learn_from_all(self, ack: int, now: float) -> None:
        delivered = self._flight.drop_before(ack)
        for segment in delivered:
            self._arrived(segment, now)
        if delivered and not delivered[-1].retransmitted:
            self.rtt.sample(now - delivered[-1].sent_at)
        else:
            self.rtt.reset_backoff()

    def _arrived(self, segment: Segment, now: float) -> None:
        self._rack.delivered(segment, segment.end, now, self.rtt.minimum)
        if self._bbr is not None:
            self._bbr.arrived(segment, segment.end - segment.start, now)

    def _continue_recovery(self, recovery_point: int, ack: int, acked: int, now: float) -> None:
        if ack >= recovery_point:
            self._recovery_point = None
            self._slow_starting = self._must_retransmit = False
            self._dup_acks = 0
            self._rack.recovered()
            return
        self._dup_acks = max(self._dup_acks - max(acked // self.mss, 1), 0)
        if self.sack:
            self.detect_losses(now)
        elif not self._slow_starting:
            self._mark_head_lost()  # a partial acknowledgment: the next hole is lost too (RFC 6582 3.2 (5))

    def _restart_timer(self, now: float) -> None:
        """RFC 6298 (5.2), (5.3); RFC 8985 7.2."""
        if self.next == self.una:
            self.retransmit_at = self.reorder_at = self.send_at = math.inf
            self.tail_probe = False
        else:
            self._start_timer(now)

    def selectively_acknowledge(self, blocks: Sequence[tuple[int, int]], ack: int, now: float) -> None:
        """The application holds these (start, end) positions, said with `ack`. Those outside una..next are ignored (RFC 2018).

        The first may say that something came twice (D-SACK, RFC 2883 4): it lies before `ack`, or in the second.
        """
        start, end = blocks[0]
        if end <= ack or (len(blocks) > 1 and blocks[1][0] <= start and end <= blocks[1][1]):
            self._came_twice(end - start)
        is_news = False
        for start, end in sorted(blocks):  # ascending, or the order of the blocks would look like reordering
            if self.una < start < end <= self.next:
                for segment in self._flight.mark_sacked(start, end):
                    self._arrived(segment, now)
                    is_news = True
        if is_news:
            if self._bbr is not None:
                self._update_model(self._bbr, now)
            self.detect_losses(now)

    def _came_twice(self, size: int) -> None:
        """A D-SACK of `size` bytes. When all that was sent again came twice, there was reordering and no loss (RFC 3708)."""
        if size <= 0 or not self._resent:
            return  # the network has doubled it
        self._rack.was_hasty(self.una, self.next)
        self._resent = max(self._resent - size, 0)
        if not self._resent:
            self.congestion.undo()

    def duplicate_ack(self) -> None:
        """An ACK that acknowledged nothing while data was in flight; counts only without SACK, which says more."""
        if self.sack:
            return
        self._dup_acks += 1
        if self._dup_acks == _DUPLICATE_ACKS and self._recovery_point is None:
            self._mark_head_lost()
            self._enter_recovery()

    # losses and timers

    def detect_losses(self, now: float) -> None:
        """Ask RACK; to be called when something was delivered, and at `reorder_at`."""
        is_certain = self._recovery_point is not None or self._flight.sacked_bytes >= _DUPLICATE_ACKS * self.mss
        before = self._flight.lost_bytes
        self.reorder_at = self._rack.detect(self._flight, now, self.rtt, is_certain=is_certain)
        if self._flight.lost_bytes > before:
            if self._bbr is not None:
                self._bbr.lost()
            if self._recovery_point is None:
                self._enter_recovery()

    def _enter_recovery(self) -> None:
        self._recovery_point = self.next
        self._slow_starting = False
        self._must_retransmit = True
        self._resent = 0
        self.congestion.on_loss(self.next - self.una)

    def _mark_head_lost(self) -> None:
        self._flight.split(self.una + self.mss)
        self._flight.mark_lost(self._flight.segments[0])
        self._must_retransmit = True

    def probe(self, now: float) -> Segment | None:
        """The probe time-out: send new data, else the last segment again, to get the ACK that tells of losses (RFC 8985 7.3)."""
        self._probed = True
        segment = self.next_segment(now)
        if segment is None:
            self._send_again(segment := self._flight.likely_lost(self.mss), now)
        self.tail_probe = False
        self.retransmit_at = now + self.rtt.timeout
        return segment

    def time_out(self, now: float) -> None:
        """The retransmission time-out: everything not SACKed is lost (RFC 6298 (5.4)-(5.6), RFC 8985 6.3)."""
        if self.stalled_since == math.inf:
            self.stalled_since = now
            self._resent = 0
            self.congestion.on_timeout(self.next - self.una)
        self._recovery_point = self.next
        self._slow_starting = self._must_retransmit = self._probed = True
        self._dup_acks = 0
        if self._flight.segments[0].sacked:
            self._flight.forget_sacks()  # SACKed, yet never acknowledged: the application has reneged
        self._flight.mark_all_lost()
        self.rtt.back_off()
        self.reorder_at = math.inf
        self.retransmit_at = now + self.rtt.timeout

    def set_mss(self, mss: int, max_segment: int) -> None:
        """The path takes smaller segments; what is in flight did not fit and is to be sent again (RFC 1191 6.4)."""
        self.mss = mss
        self.max_segment = max_segment
        self.congestion.set_mss(mss, max_segment)
        self._flight.mark_all_lost()
        self._must_retransmit = True

    def clear(self) -> None:
        """The connection is over: give the memory back, stop the timers."""
        self.buffer.clear()
        self._flight.clear()
        self.retransmit_at = self.reorder_at = self.send_at = math.inf
