"""D-SACK (RFC 2883): what was sent again in vain makes the sender patient and gives it its window back."""

from array import array

import pytest

from shared.metrics import CELLS
from workers.stack.tcp.buffer import ChunkPool, SendBuffer
from workers.stack.tcp.sender import Sender

MSS = 1000
RTT = 0.1
HELD_BACK = 0.07  # seconds: more than a quarter of the round trip, RACK's first patience


@pytest.fixture
def sender() -> Sender:
    """A sender that has measured a round trip and has eight segments in flight, sent at time 1."""
    made = Sender(SendBuffer(ChunkPool(array("Q", [0] * CELLS)), 0, 1 << 20, MSS), MSS, MSS, 1 << 20, sack=True)
    made.rtt.sample(RTT)
    fly(made, 8, now=1.0)
    return made


def fly(sender: Sender, count: int, now: float) -> None:
    """Send `count` new segments."""
    for _ in range(count):
        assert sender.buffer.space() is not None
        sender.buffer.commit(MSS)
        segment = sender.next_segment(now)
        assert segment is not None and not segment.retransmitted


def overtake(sender: Sender, una: int, now: float) -> None:
    """All in flight but the first arrives; RACK looks again when it said; what it takes for lost is sent again."""
    sender.selectively_acknowledge([(una + MSS, sender.next)], una, now)
    if sender.reorder_at <= now + HELD_BACK:
        sender.detect_losses(sender.reorder_at)
    while sender.has_work and sender.next_segment(now + HELD_BACK) is not None:
        pass


def test_duplicate_of_all_that_was_sent_again_gives_the_window_back(sender: Sender) -> None:
    window = sender.congestion.window
    overtake(sender, 0, now=1.0 + RTT)
    assert sender.congestion.window < window
    sender.acknowledge(8 * MSS, 1.2)
    sender.selectively_acknowledge([(0, MSS)], 8 * MSS, 1.2)
    assert sender.congestion.window >= window


def test_duplicate_made_by_the_network_changes_nothing(sender: Sender) -> None:
    overtake(sender, 0, now=1.0 + RTT)
    sender.acknowledge(8 * MSS, 1.2)
    sender.selectively_acknowledge([(0, MSS)], 8 * MSS, 1.2)
    window = sender.congestion.window
    sender.selectively_acknowledge([(MSS, 2 * MSS)], 8 * MSS, 1.2)
    assert sender.congestion.window == window


def test_block_that_was_news_when_it_was_sent_is_no_duplicate(sender: Sender) -> None:
    overtake(sender, 0, now=1.0 + RTT)
    window = sender.congestion.window
    sender.acknowledge(8 * MSS, 1.2)
    sender.selectively_acknowledge([(MSS, 8 * MSS)], 0, 1.2)  # an overtaken ACK
    assert sender.congestion.window == window


def test_what_comes_late_again_and_again_is_waited_for(sender: Sender) -> None:
    una, now = 0, 1.0
    for _ in range(4):
        overtake(sender, una, now + RTT)
        una, now = sender.next, now + 2 * RTT
        sender.acknowledge(una, now)
        sender.selectively_acknowledge([(una - 8 * MSS, una - 7 * MSS)], una, now)
        fly(sender, 8, now)
    before = sender.congestion.window
    overtake(sender, una, now + RTT)
    assert sender.congestion.window == before and not sender.has_work
