"""Congestion control by a model of the path: BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control-00, Linux' tcp_bbr.c).

Bandwidth is the largest delivery rate of the last ten round trips, and delay the smallest round trip of ten seconds. Their
product is what the path holds. Data leaves at the bandwidth (pacing), a little faster or slower in turn to see whether it has
changed, and twice the product bounds what is in flight. A loss says nothing about the model, so a path that loses packets at
random is filled nevertheless; losses by overflow show as a bandwidth that does not grow.

Windows in bytes, rates in bytes per second, times in seconds.
"""

import math
from collections import deque
from enum import Enum, auto

from workers.stack.tcp.congestion import initial_window
from workers.stack.tcp.delivery import Delivery
from workers.stack.tcp.flight import Segment

__all__ = ["Bbr"]

_HIGH_GAIN = 2.89  # 2/ln 2: the least gain that doubles the rate each round trip
_CYCLE = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # gains of the rate while the bandwidth is known, a round trip each
_DRAINING = 1  # index of the gain that drains what the one before it has queued
_WINDOW_GAIN = 2.0
_MARGIN = 0.99  # of the bandwidth, so that a queue can drain
_FILTER_ROUNDS = 10
_FULL_GROWTH, _FULL_ROUNDS = 1.25, 3  # the pipe is full when three round trips have brought less growth than this
_RTT_VALID = 10.0  # seconds that a smallest round trip is believed
_PROBE_RTT = 0.2  # seconds that little is in flight, to measure it again
_WINDOW_MIN = 4  # segments
_BURST = 0.001  # seconds' worth of data that leave in one segment: what a timer can tell apart,
_BURSTS_MIN = 4  # but not more than this part of a round trip: three bursts are in flight beyond what the path holds
_CREDIT = (
    0.004  # seconds that a departure may be late and yet count as punctual: the worker is not always there in time
)
_EXTRA_MAX = 0.1  # seconds' worth of data, of acknowledgments that came in a bunch


class _Phase(Enum):
    STARTUP = auto()
    DRAIN = auto()
    PROBE_BANDWIDTH = auto()
    PROBE_RTT = auto()


class _Maximum:
    """The largest value of the last `_FILTER_ROUNDS` round trips."""

    __slots__ = ("_values", "value")

    def __init__(self) -> None:
        self._values: deque[tuple[int, float]] = deque()  # (round, value): rounds ascend, values descend
        self.value = 0.0

    def add(self, round_count: int, value: float) -> None:
        values = self._values
        while values and values[-1][1] <= value:
            values.pop()
        values.append((round_count, value))
        while values[0][0] <= round_count - _FILTER_ROUNDS:
            values.popleft()
        self.value = values[0][1]


class Bbr:
    """The model of one connection.

    window     bytes that may be in flight
    burst      bytes that may leave in one segment
    depart_at  when the next segment may leave
    """

    __slots__ = (
        "_aggregate", "_aggregate_at", "_aggregated", "_bandwidth", "_before", "_cycle_at", "_cycle_index", "_delivery",
        "_full", "_full_bandwidth", "_full_rounds", "_lost", "_max_segment", "_minimum_at", "_mss", "_phase", "_probe_end",
        "_rate", "_round", "_round_end", "burst", "depart_at", "minimum_rtt", "window",
    )  # fmt: skip

    def __init__(self, mss: int, max_segment: int, rtt: float, now: float) -> None:
        """`rtt` of the handshake, 0 when it is not known; `max_segment`: the most payload of one segment."""
        self._mss = mss
        self._max_segment = max_segment
        self.window = initial_window(mss)
        self.minimum_rtt = rtt or math.inf
        self._minimum_at = now
        self._delivery = Delivery()
        self._phase = _Phase.STARTUP
        self._bandwidth = _Maximum()
        self._round = 0
        self._round_end = 0  # the round trip is over when something that left beyond this has arrived
        self._before = 0  # delivered before the present ACK
        self._full = False  # the bandwidth has stopped to grow
        self._full_bandwidth = 0.0
        self._full_rounds = 0
        self._cycle_index = 0
        self._cycle_at = now
        self._lost = False  # anything, in the present phase of the cycle
        self._probe_end = math.inf  # of PROBE_RTT, once little is in flight
        self._aggregated = _Maximum()  # bytes that were acknowledged ahead of the bandwidth
        self._aggregate = 0  # bytes acknowledged since _aggregate_at
        self._aggregate_at = now
        self.depart_at = now
        self._set_rate(_HIGH_GAIN * self.window / rtt if rtt else math.inf)

    # departures

    def sent(self, segment: Segment, in_flight: int, now: float) -> None:
        """`segment` leaves, and `in_flight` bytes were in the network before it."""
        self._delivery.sent(segment, now, alone=not in_flight)
        if not in_flight and self._phase is _Phase.PROBE_BANDWIDTH:
            self._set_rate(self._bandwidth.value * _MARGIN)  # after a pause: neither probe nor drain
        self.depart_at = max(self.depart_at, now - _CREDIT) + (segment.end - segment.start) / self._rate

    def ran_dry(self, in_flight: int) -> None:
        """All there is has been sent, and the window would take more."""
        if in_flight < self.window:
            self._delivery.ran_dry(in_flight)

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        segments = int(min(rate * min(_BURST, self.minimum_rtt / _BURSTS_MIN), self._max_segment)) // self._mss
        self.burst = max(segments, 1) * self._mss

    # arrivals

    def arrived(self, segment: Segment, size: int, now: float) -> None:
        """The application holds `size` bytes of `segment` that it did not hold before. `update` follows."""
        if not segment.retransmitted:
            rtt = now - segment.sent_at
            expired = now - self._minimum_at > _RTT_VALID
            if rtt < self.minimum_rtt or expired:
                self.minimum_rtt = rtt
                self._minimum_at = now
                if expired and self._phase is not _Phase.PROBE_RTT:
                    self._phase = _Phase.PROBE_RTT
                    self._probe_end = math.inf
        self._delivery.arrived(segment, size, now)

    def update(self, in_flight: int, now: float) -> None:
        """An ACK has been processed that told of arrivals, and leaves `in_flight` bytes: learn and decide anew."""
        delivery = self._delivery
        acked = delivery.delivered - self._before
        self._before = delivery.delivered
        sample = delivery.take(self.minimum_rtt)
        is_round = False
        if sample is not None:
            if sample.before >= self._round_end:
                is_round = True
                self._round += 1
                self._round_end = delivery.delivered
            if not sample.limited or sample.rate >= self._bandwidth.value:
                self._bandwidth.add(self._round, sample.rate)
            if is_round and not sample.limited:
                self._look_whether_full()
        self._note_aggregation(acked, now)
        if self._phase is _Phase.STARTUP and self._full:
            self._phase = _Phase.DRAIN
        if self._phase is _Phase.DRAIN and in_flight <= self._product(1.0):
            self._cruise(now)
        elif self._phase is _Phase.PROBE_BANDWIDTH:
            self._turn_cycle(in_flight + acked, now)
        elif self._phase is _Phase.PROBE_RTT:
            self._probe_rtt(in_flight, now)
        self._decide(acked)

    def _look_whether_full(self) -> None:
        if self._full:
            return
        if self._bandwidth.value >= self._full_bandwidth * _FULL_GROWTH:
            self._full_bandwidth = self._bandwidth.value
            self._full_rounds = 0
        else:
            self._full_rounds += 1
            self._full = self._full_rounds >= _FULL_ROUNDS

    def _note_aggregation(self, acked: int, now: float) -> None:
        """Wi-Fi, and whoever is busy, acknowledges in bunches: so much more must be in flight as comes at once."""
        expected = self._bandwidth.value * (now - self._aggregate_at)
        if self._aggregate <= expected:
            self._aggregate = 0
            self._aggregate_at = now
            expected = 0.0
        self._aggregate += acked
        self._aggregated.add(self._round, min(self._aggregate - expected, self.window))

    # the cycle

    def _cruise(self, now: float) -> None:
        """Begin the cycle anywhere but with its drain, so that flows that began together do not probe together."""
        self._phase = _Phase.PROBE_BANDWIDTH
        index = self._delivery.delivered // self._mss % (len(_CYCLE) - 1)
        self._set_gain(index + (index >= _DRAINING), now)

    def _set_gain(self, index: int, now: float) -> None:
        self._cycle_index = index % len(_CYCLE)
        self._cycle_at = now
        self._lost = False

    def _turn_cycle(self, in_flight: int, now: float) -> None:
        gain = _CYCLE[self._cycle_index]
        is_over = now - self._cycle_at > self.minimum_rtt
        if gain > 1.0:
            # Until the faster rate has had its effect, unless the path has no room for it.
            is_over = is_over and (self._lost or in_flight >= self._product(gain))
        elif gain < 1.0:
            is_over = is_over or in_flight <= self._product(1.0)
        if is_over:
            self._set_gain(self._cycle_index + 1, now)

    def _probe_rtt(self, in_flight: int, now: float) -> None:
        if self._probe_end == math.inf:
            if in_flight <= self._small_window():
                self._probe_end = now + _PROBE_RTT
        elif now >= self._probe_end:
            self._minimum_at = now
            if self._full:
                self._cruise(now)
            else:
                self._phase = _Phase.STARTUP

    # what follows from the model

    def _product(self, gain: float) -> float:
        """`gain` times what the path holds, and what it takes to keep both ends busy (Linux' quantization budget)."""
        return gain * self._bandwidth.value * self.minimum_rtt + 3 * self.burst

    def _small_window(self) -> int:
        return max(int(self._bandwidth.value * self.minimum_rtt / 2), _WINDOW_MIN * self._mss)

    def _decide(self, acked: int) -> None:
        bandwidth = self._bandwidth.value
        if not bandwidth:
            self.window += acked
            return
        if self._phase is _Phase.STARTUP:
            gain = window_gain = _HIGH_GAIN
        elif self._phase is _Phase.DRAIN:
            gain, window_gain = 1 / _HIGH_GAIN, _HIGH_GAIN
        else:
            gain = _CYCLE[self._cycle_index] if self._phase is _Phase.PROBE_BANDWIDTH else 1.0
            window_gain = _WINDOW_GAIN
        rate = gain * bandwidth * _MARGIN
        if self._full or rate > self._rate or self._rate == math.inf:
            self._set_rate(rate)
        target = self._product(window_gain) + min(self._aggregated.value, bandwidth * _EXTRA_MAX)
        if self._full:
            self.window = min(self.window + acked, int(target))
        elif self.window < target:
            self.window += acked
        self.window = max(self.window, _WINDOW_MIN * self._mss)
        if self._phase is _Phase.PROBE_RTT:
            self.window = min(self.window, self._small_window())

    # losses

    def lost(self) -> None:
        """Something was lost, as may happen at random; but a probe for more bandwidth has seen enough."""
        self._lost = True

    def on_loss(self, flight: int) -> None:
        """A recovery begins. The window follows from the model, not from this."""

    def on_timeout(self, flight: int) -> None:
        """The retransmission timer expired: send one segment, and grow from there as acknowledgments come."""
        self.window = self._mss

    def undo(self) -> None:
        """Nothing had been lost, and nothing was reduced."""

    def set_mss(self, mss: int, max_segment: int) -> None:
        """The path takes smaller segments now."""
        self._mss = mss
        self._max_segment = max_segment
        self._set_rate(self._rate)
