"""D-SACK (RFC 2883): what was sent again in vain makes the sender patient and gives it its window back; and we tell of it."""

from array import array

import pytest

from shared.metrics import CELLS
from tests.support.stack_bed import Bed
from tests.support.tcp_peer import ACK, TcpPeer, read_segment
from workers.stack.tcp.buffer import ChunkPool, SendBuffer
from workers.stack.tcp.sender import Sender

MSS = 1000
RTT = 0.1
HELD_BACK = 0.07  # seconds: more than a quarter of the round trip, RACK's first patience


@pytest.fixture
def sender() -> Sender:
    """A sender that has measured a round trip and has eight segments in flight, sent at time 1."""
    made = Sender(
        SendBuffer(ChunkPool(array("Q", [0] * CELLS), 1 << 30, 10), 0, 1 << 20, 60 * MSS), MSS, MSS, 1 << 20, sack=True
    )
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


# what we tell of duplicates


def told(bed: Bed, peer: TcpPeer, payload: bytes, at: int, flags: int = ACK) -> list[tuple[int, int]]:
    """Have the client send `payload` at a stream offset; return the blocks of the one ACK that answers, as offsets."""
    peer.emit(payload, peer.wire(at), flags, now=bed.now)
    [answer] = bed.give(peer.sent.pop())
    base = peer.wire(0)
    return [(left - base, right - base) for left, right in read_segment(answer).sack]


def test_text_that_came_before_is_told_once() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert told(bed, peer, b"a" * 100, 0, ACK) == []
    assert told(bed, peer, b"a" * 100, 0) == [(0, 100)]
    assert told(bed, peer, b"b" * 100, 100) == []
    assert upstream.received == b"a" * 100 + b"b" * 100


def test_text_that_is_partly_old_tells_the_old_part() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    told(bed, peer, b"a" * 100, 0)
    assert told(bed, peer, b"a" * 50 + b"b" * 50, 50) == [(50, 100)]
    assert upstream.received == b"a" * 100 + b"b" * 50


def test_text_that_is_held_already_is_told_before_the_block_that_holds_it() -> None:
    bed = Bed()
    peer, _ = bed.established()
    assert told(bed, peer, b"c" * 300, 1000) == [(1000, 1300)]
    assert told(bed, peer, b"d" * 100, 2000) == [(2000, 2100), (1000, 1300)]
    assert told(bed, peer, b"c" * 100, 1100) == [(1100, 1200), (1000, 1300), (2000, 2100)]
    assert told(bed, peer, b"d" * 100, 2100) == [(2000, 2200), (1000, 1300)]


def test_application_without_sack_is_told_nothing() -> None:
    bed = Bed()
    peer, _ = bed.established(sack=False)
    told(bed, peer, b"a" * 100, 0)
    assert told(bed, peer, b"a" * 100, 0) == []


def test_each_segment_out_of_order_is_acknowledged() -> None:
    bed = Bed()
    peer, _ = bed.established()
    for at in (100, 200, 300):
        peer.emit(b"x" * 100, peer.wire(at), ACK, now=bed.now)
    batch, peer.sent = peer.sent, []
    answers = [read_segment(packet) for packet in bed.give(*batch)]
    assert [answer.ack for answer in answers] == [peer.wire(0)] * 3
    assert [len(answer.sack) for answer in answers] == [1, 1, 1]
    assert [answer.sack[0][1] for answer in answers] == [peer.wire(200), peer.wire(300), peer.wire(400)]
