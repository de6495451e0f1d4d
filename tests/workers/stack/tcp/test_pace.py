"""When and how fast data leaves: at the pace of the path, or, to a program on this machine, as fast as its window allows."""

from itertools import pairwise

from shared.metrics import Cell
from shared.wire.virtio import F_NEEDS_CSUM
from tests.support.stack_bed import Bed, Upstream, pattern
from tests.support.tcp_peer import TcpPeer, read_segment
from workers.stack.tcp.bbr import Bbr
from workers.stack.tcp.congestion import Cubic

RTT = 0.01
SIZE = 400_000


def opened(rtt: float, bed: Bed, *, local: bool = False) -> tuple[TcpPeer, Upstream]:
    """A connection whose handshake took `rtt`; `local`: its SYN has no checksum yet."""
    peer = TcpPeer(mss=1460, scale=7)
    peer.connect(bed.now)
    syn = bytearray(peer.sent.pop())
    syn[0] = F_NEEDS_CSUM if local else 0
    [syn_ack] = bed.give(bytes(syn))
    bed.now += rtt
    peer.receive(syn_ack, bed.now)
    bed.give(peer.sent.pop())
    return peer, bed.upstreams[-1]


def departures(bed: Bed, peer: TcpPeer, rtt: float, seconds: float) -> list[tuple[float, int]]:
    """Carry packets for a while over a path of `rtt` without any other limit; (time, payload bytes) of each segment."""
    seen: list[tuple[float, int]] = []
    on_the_way: list[tuple[float, bytes]] = []
    end = bed.now + seconds
    while bed.now < end:
        sent = bed.take()
        while on_the_way and on_the_way[0][0] <= bed.now:
            peer.receive(on_the_way.pop(0)[1], bed.now)
        sent += bed.give(*peer.sent)
        peer.sent.clear()
        for packet in sent:
            if size := len(read_segment(packet).payload):
                seen.append((bed.now, size))
            on_the_way.append((bed.now + rtt, packet))
        bed.out = bed.advance(0.0001)
    return seen


def test_first_window_to_a_distant_application_is_spread_over_the_round_trip() -> None:
    bed = Bed(offload=True)
    peer, upstream = opened(RTT, bed)
    upstream.send(pattern(SIZE), bed.now)
    left = departures(bed, peer, RTT, RTT)
    assert sum(size for _, size in left) == 10 * 1448
    assert max(size for _, size in left) <= 14600 / 3
    assert left[-1][0] - left[0][0] > RTT / 4


def test_distant_application_gets_every_byte_at_a_pace_that_grows() -> None:
    bed = Bed(offload=True)
    peer, upstream = opened(RTT, bed)
    upstream.send(pattern(SIZE), bed.now)
    left = departures(bed, peer, RTT, 0.3)
    assert peer.received == pattern(SIZE)
    assert isinstance(upstream.connection.sender.congestion, Bbr)
    rates = [sum(size for at, size in left if begin <= at - left[0][0] < begin + RTT) for begin in (0.0, 2 * RTT)]
    assert rates[1] > 2 * rates[0]
    assert max(size for _, size in left) > 3 * max(size for at, size in left if at < left[0][0] + RTT)
    assert bed.count(Cell.TCP_RETRANSMITS) == 0
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(left)]
    assert max(gaps) < RTT


def test_program_on_this_machine_gets_what_its_window_allows_at_once() -> None:
    bed = Bed(offload=True)
    peer, upstream = opened(0.0002, bed)
    upstream.send(pattern(SIZE), bed.now)
    assert 9 * 1448 < sum(len(read_segment(packet).payload) for packet in bed.out) <= 10 * 1448
    assert isinstance(upstream.connection.sender.congestion, Cubic)
    bed.exchange_from(peer)
    assert peer.received == pattern(SIZE)


def test_program_on_this_machine_is_known_by_its_syn_however_busy_it_is() -> None:
    bed = Bed(offload=True)
    peer, upstream = opened(0.3, bed, local=True)
    upstream.send(pattern(SIZE), bed.now)
    assert isinstance(upstream.connection.sender.congestion, Cubic)
    assert sum(len(read_segment(packet).payload) for packet in bed.out) > 9 * 1448
    bed.exchange_from(peer)
    assert peer.received == pattern(SIZE)


def test_program_that_was_only_busy_at_first_is_taken_for_a_near_one_later() -> None:
    bed = Bed(offload=True)
    peer, upstream = opened(0.005, bed)
    upstream.send(pattern(SIZE), bed.now)
    departures(bed, peer, 0.0002, 0.02)
    assert isinstance(upstream.connection.sender.congestion, Cubic)
    bed.exchange(peer)
    departures(bed, peer, 0.0002, 0.02)
    assert peer.received == pattern(SIZE)


def test_application_that_needed_a_second_syn_ack_is_taken_for_a_distant_one() -> None:
    bed = Bed(offload=True)
    peer = TcpPeer()
    peer.connect(bed.now)
    bed.give(peer.sent.pop())
    [again] = bed.advance(1.5)
    peer.receive(again, bed.now)
    bed.give(peer.sent.pop())
    assert isinstance(bed.upstreams[-1].connection.sender.congestion, Bbr)
    bed.upstreams[-1].send(pattern(SIZE), bed.now)
    departures(bed, peer, RTT, 0.3)
    assert peer.received == pattern(SIZE)


def test_pace_sets_the_timer_of_whoever_drives_the_stack() -> None:
    bed = Bed(offload=True)
    _, upstream = opened(RTT, bed)
    deadlines: list[float] = []
    bed.stack.timers.on_earlier = deadlines.append
    upstream.send(pattern(SIZE), bed.now)
    assert deadlines and bed.now < deadlines[-1] < bed.now + RTT


def test_window_of_zero_stops_a_paced_sender_until_it_opens() -> None:
    bed = Bed(offload=True)
    peer, upstream = opened(RTT, bed)
    peer.window = 0
    peer.acknowledge(bed.now)
    bed.give(peer.sent.pop())
    upstream.send(pattern(SIZE), bed.now)
    assert departures(bed, peer, RTT, 1.0) == []
    peer.window = 0xFFFF
    peer.acknowledge(bed.now)
    bed.out = bed.give(peer.sent.pop())
    departures(bed, peer, RTT, 0.5)
    assert peer.received == pattern(SIZE)
