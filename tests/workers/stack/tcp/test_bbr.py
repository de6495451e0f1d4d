"""The model of BBR on a simulated path: a rate, a delay, a queue, losses. Sizes in bytes, times in seconds."""

import heapq
import random
from collections import deque

import pytest

from workers.stack.tcp.bbr import Bbr
from workers.stack.tcp.delivery import Delivery
from workers.stack.tcp.flight import Segment

MSS = 1448
RTT = 0.01
RATE = 10e6


class Path:
    """A sender that always has data, unless `supply` (bytes per second) limits it; each lost segment is known at once."""

    def __init__(self, *, rate: float = RATE, rtt: float = RTT, queue: int = 1 << 30, loss: float = 0.0) -> None:
        self.rate, self.rtt, self.queue, self.loss = rate, rtt, queue, loss
        self.supply = 0.0
        self.now = 50.0
        self.bbr = Bbr(MSS, 44 * MSS, rtt, self.now)
        self.in_flight = self.delivered = self.lost = self.sent = 0
        self.round_trips: deque[float] = deque(maxlen=1000)
        self._random = random.Random(1)
        self._free_at = 0.0  # when the link has sent all it was given
        self._arrivals: list[tuple[float, int, Segment]] = []
        self._began = self.now

    def run(self, seconds: float) -> float:
        """Let time pass; return the bytes per second that arrived."""
        end, before = self.now + seconds, self.delivered
        while self.now < end:
            self._send()
            next_at = self._arrivals[0][0] if self._arrivals else end
            if self.in_flight < self.bbr.window:
                next_at = min(next_at, max(self.bbr.depart_at, self.now + 0.0001))
            self.now = min(max(next_at, self.now), end)
            while self._arrivals and self._arrivals[0][0] <= self.now:
                self._arrive(heapq.heappop(self._arrivals)[2])
        return (self.delivered - before) / seconds

    def _send(self) -> None:
        while self.in_flight + MSS <= self.bbr.window and self.bbr.depart_at <= self.now:
            size = min(self.bbr.burst, self.bbr.window - self.in_flight)
            if self.supply and self.sent + size > self.supply * (self.now - self._began):
                self.bbr.ran_dry(self.in_flight)
                return
            segment = Segment(self.sent, self.sent + size, self.now)
            self.bbr.sent(segment, self.in_flight, self.now)
            self.in_flight += size
            self.sent += size
            queued = max(self._free_at - self.now, 0.0) * self.rate
            if queued > self.queue or self._random.random() < self.loss:
                self.lost += size
                self.in_flight -= size
                self.bbr.lost()
                continue
            self._free_at = max(self._free_at, self.now) + size / self.rate
            heapq.heappush(self._arrivals, (self._free_at + self.rtt, segment.start, segment))

    def _arrive(self, segment: Segment) -> None:
        size = segment.end - segment.start
        self.in_flight -= size
        self.delivered += size
        self.round_trips.append(self.now - segment.sent_at)
        self.bbr.arrived(segment, size, self.now)
        self.bbr.update(self.in_flight, self.now)


def test_the_rate_of_the_path_is_found_and_kept() -> None:
    path = Path()
    path.run(0.5)
    assert path.run(2.0) > 0.95 * RATE
    assert path.lost == 0


def test_the_queue_stays_short() -> None:
    path = Path()
    path.run(3.0)
    path.round_trips.clear()
    path.run(1.0)
    assert sorted(path.round_trips)[len(path.round_trips) // 2] < 1.5 * RTT


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1])
def test_random_loss_does_not_slow_it(loss: float) -> None:
    path = Path(loss=loss)
    path.run(0.5)
    assert path.run(2.0) > 0.9 * (1 - loss) * RATE


def test_a_short_queue_overflows_little() -> None:
    path = Path(queue=int(RATE * RTT / 2))
    path.run(0.5)
    lost, sent = path.lost, path.sent
    assert path.run(4.0) > 0.9 * RATE
    assert (path.lost - lost) / (path.sent - sent) < 0.05


def test_a_faster_path_is_found() -> None:
    path = Path(rate=RATE / 4)
    path.run(1.0)
    path.rate = RATE
    path.run(2.0)
    assert path.run(1.0) > 0.9 * RATE


def test_a_slower_path_is_followed_within_ten_round_trips() -> None:
    path = Path()
    path.run(1.0)
    path.rate = RATE / 4
    path.run(2.0)
    path.round_trips.clear()
    path.run(0.5)
    assert max(path.round_trips) < 4 * RTT


def test_a_longer_path_is_believed_after_ten_seconds() -> None:
    path = Path()
    path.run(1.0)
    path.rtt = 3 * RTT
    path.run(11.0)
    assert path.bbr.minimum_rtt >= 3 * RTT
    assert path.run(1.0) > 0.9 * RATE


def test_little_is_in_flight_while_the_round_trip_is_measured_again() -> None:
    path = Path()
    path.run(1.0)
    least = path.bbr.window
    for _ in range(1200):
        path.run(0.01)
        least = min(least, path.bbr.window)
    assert least <= RATE * RTT / 2
    assert path.run(1.0) > 0.9 * RATE


def test_a_sender_without_data_does_not_lower_the_estimate() -> None:
    path = Path()
    path.run(1.0)
    path.supply = (path.sent / (path.now - 50.0)) / 20
    path._began = path.now - path.sent / path.supply  # it has had nothing to spare until now
    path.run(3.0)
    path.supply = 0.0
    assert path.run(0.1) > 0.8 * RATE


def test_after_a_time_out_one_segment_leaves_and_then_more() -> None:
    path = Path()
    path.run(1.0)
    path.bbr.on_timeout(path.in_flight)
    assert path.bbr.window == MSS
    path.run(0.2)
    assert path.run(1.0) > 0.9 * RATE


def test_acknowledgments_in_bunches_leave_room_for_what_is_meanwhile_on_its_way() -> None:
    bbr = Bbr(MSS, 44 * MSS, RTT, 0.0)
    now, in_flight, position = 0.0, 0, 0
    waiting: list[Segment] = []
    for tick in range(1000):  # milliseconds; what was sent a round trip ago is acknowledged each 20 ms, all at once
        now = tick / 1000
        room = int(RATE / 1000)
        while room > 0 and in_flight + MSS <= bbr.window and bbr.depart_at <= now:
            segment = Segment(position, position + MSS, now)
            bbr.sent(segment, in_flight, now)
            waiting.append(segment)
            position += MSS
            in_flight += MSS
            room -= MSS
        if tick % 20 == 0:
            for segment in [one for one in waiting if one.sent_at <= now - RTT]:
                waiting.remove(segment)
                in_flight -= MSS
                bbr.arrived(segment, MSS, now)
            bbr.update(in_flight, now)
    assert position / now > 0.8 * RATE


# delivery rate


def test_rate_is_what_arrived_between_departure_and_acknowledgment() -> None:
    delivery = Delivery()
    first, second = Segment(0, 1000, 1.0), Segment(1000, 2000, 1.5)
    delivery.sent(first, 1.0, alone=True)
    delivery.sent(second, 1.5, alone=False)
    delivery.arrived(first, 1000, 2.0)
    assert delivery.take(0.1) == (1000.0, 0, False)  # in the second that its round trip took
    delivery.arrived(second, 1000, 2.5)
    assert delivery.take(0.1) == (2000 / 1.5, 0, False)  # both left before anything had arrived


def test_rate_of_a_bunch_of_acknowledgments_is_that_of_the_departures() -> None:
    delivery = Delivery()
    segments = [Segment(at * 1000, at * 1000 + 1000, at / 10) for at in range(11)]
    for segment in segments:
        delivery.sent(segment, segment.sent_at, alone=not segment.start)
    for segment in segments:
        delivery.arrived(segment, 1000, 1.01)
    sample = delivery.take(0.01)
    assert sample is not None and sample.rate == pytest.approx(11000 / 1.01)


def test_time_shorter_than_any_round_trip_says_nothing() -> None:
    delivery = Delivery()
    segment = Segment(0, 1000, 1.0)
    delivery.sent(segment, 1.0, alone=True)
    delivery.arrived(segment, 1000, 1.001)
    assert delivery.take(0.01) is None
    assert delivery.take(0.0) is None  # and nothing new has arrived


def test_a_sample_tells_that_there_was_no_more_to_send() -> None:
    delivery = Delivery()
    first, second = Segment(0, 1000, 1.0), Segment(1000, 2000, 1.1)
    delivery.sent(first, 1.0, alone=True)
    delivery.ran_dry(1000)
    delivery.sent(second, 1.1, alone=False)
    delivery.arrived(first, 1000, 2.0)
    sample = delivery.take(0.1)
    assert sample is not None and not sample.limited
    delivery.arrived(second, 1000, 2.1)
    sample = delivery.take(0.1)
    assert sample is not None and sample.limited
