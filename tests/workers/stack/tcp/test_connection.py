"""Dialogues with one connection. `bed` plays tun, upstream and clock; `peer` is a simple client (tests/support)."""

import struct
from itertools import pairwise

import pytest

from shared.metrics import Cell
from tests.support import packets
from tests.support.stack_bed import Bed, pattern
from tests.support.tcp_peer import ACK, FIN, PSH, RST, SYN, Segment, TcpPeer, read_segment
from workers.stack import CloseReason, Refusal
from workers.stack.tcp.connection import CHALLENGE_INTERVAL, DELAYED_ACK, GIVE_UP
from workers.stack.tcp.flight import FEW
from workers.stack.tcp.receiver import RANGE_COST
from workers.stack.tcp.silence import TIME_WAIT
from workers.stack.tcp.states import State

V6 = {"source": "2001:db8::2", "destination": "2001:db8:1::10"}
URG = 0x20


def segments(sent: list[bytes]) -> list[Segment]:
    return [read_segment(packet) for packet in sent]


def only(sent: list[bytes]) -> Segment:
    assert len(sent) == 1
    return read_segment(sent[0])


def say(bed: Bed, peer: TcpPeer, payload: bytes = b"", seq: int = 0, flags: int = ACK, **fields: int) -> list[bytes]:
    """Have the client send one segment whose stream offset is `seq`; returns the stack's answers."""
    peer.emit(payload, peer.wire(seq), flags, now=bed.now, **fields)  # type: ignore[arg-type]
    return bed.give(peer.sent.pop())


# handshake


@pytest.mark.parametrize("addresses", [{}, V6])
@pytest.mark.parametrize("offload", [False, True])
def test_syn_is_answered_only_after_accept(addresses: dict[str, str], offload: bool) -> None:
    bed = Bed(accepts=False, offload=offload)
    peer = TcpPeer(**addresses, iss=77)
    peer.connect(bed.now)
    syn = peer.sent.pop()
    assert bed.give(syn) == []
    assert bed.give(syn) == []  # a retransmission while dialing
    assert len(bed.upstreams) == 1
    connection = bed.upstreams[0].connection
    assert connection.state is State.DIALING
    assert (connection.source, connection.source_port) == (peer.source, peer.port)
    assert (connection.destination, connection.destination_port) == (peer.destination, 443)
    connection.accept(bed.now)
    answer = only(bed.take())
    assert answer.flags == SYN | ACK
    assert answer.ack == 78
    assert answer.mss == 1500 - (60 if addresses else 40)
    assert answer.sack_permitted
    assert answer.scale == 5  # the smallest that 1 MiB fits
    assert answer.timestamps is not None


def test_options_that_were_not_offered_are_not_answered() -> None:
    bed = Bed()
    peer = TcpPeer(timestamps=False, sack=False)
    peer.emit(b"", peer.iss, SYN, options=b"")
    answer = only(bed.give(peer.sent.pop()))
    assert (answer.scale, answer.sack_permitted, answer.timestamps) == (None, False, None)
    assert answer.window == 65535


def test_refused_upstream_resets() -> None:
    bed = Bed(accepts=False)
    peer = TcpPeer()
    peer.connect(bed.now)
    bed.give(peer.sent.pop())
    bed.upstreams[0].connection.refuse(Refusal.REFUSED, bed.now)
    answer = only(bed.take())
    assert answer.flags == RST | ACK
    assert answer.ack == peer.iss + 1
    assert bed.upstreams[0].closed is CloseReason.ABORTED
    assert bed.stack.connections == {}


@pytest.mark.parametrize("addresses", [{}, V6])
def test_unreachable_upstream_is_told_by_icmp_that_quotes_the_syn(addresses: dict[str, str]) -> None:
    bed = Bed(accepts=False)
    peer = TcpPeer(**addresses)
    peer.connect(bed.now)
    syn = peer.sent.pop()
    bed.give(syn)
    bed.upstreams[0].connection.refuse(Refusal.HOST_UNREACHABLE, bed.now)
    (packet,) = bed.take()
    at = 10 + (40 if addresses else 20)
    assert tuple(packet[at : at + 2]) == ((1, 3) if addresses else (3, 1))
    assert packet[at + 8 :] == syn[10:]
    assert bed.count(Cell.ICMP_ERRORS_SENT) == 1


def test_reset_while_dialing_closes() -> None:
    bed = Bed(accepts=False)
    peer = TcpPeer()
    peer.connect(bed.now)
    bed.give(peer.sent.pop())
    assert say(bed, peer, flags=RST) == []
    assert bed.upstreams[0].closed is CloseReason.RESET
    bed.upstreams[0].connection.accept(bed.now)  # the upstream connects too late
    assert bed.take() == []


def test_new_syn_on_the_same_ports_while_dialing_replaces_the_old_attempt() -> None:
    bed = Bed(accepts=False)
    first, second = TcpPeer(iss=5), TcpPeer(iss=5_000_000)
    first.connect(bed.now)
    second.connect(bed.now)
    bed.give(first.sent.pop(), second.sent.pop())
    assert [upstream.closed for upstream in bed.upstreams] == [CloseReason.RESET, None]


def test_syn_ack_is_sent_again_until_it_is_given_up() -> None:
    bed = Bed()
    peer = TcpPeer()
    peer.connect(bed.now)
    bed.give(peer.sent.pop())
    again = segments(bed.advance(200))
    assert [segment.flags for segment in again] == [SYN | ACK] * 3 + [RST | ACK]
    assert bed.upstreams[0].closed is CloseReason.TIMEOUT


def test_wrong_ack_of_the_syn_ack_is_reset_and_the_connection_stays() -> None:
    bed = Bed()
    peer = TcpPeer()
    peer.connect(bed.now)
    bed.give(peer.sent.pop())
    answer = only(say(bed, peer, ack=12345))
    assert (answer.flags, answer.seq) == (RST, 12345)
    assert bed.upstreams[0].connection.state is State.SYN_RECEIVED


def test_upstream_that_speaks_first_waits_for_the_handshake() -> None:
    bed = Bed(accepts=False)
    peer = TcpPeer()
    peer.connect(bed.now)
    bed.give(peer.sent.pop())
    upstream = bed.upstreams[0]
    upstream.connection.accept(bed.now)
    upstream.send(b"220 ready\r\n", bed.now)
    (syn_ack,) = bed.take()
    peer.receive(syn_ack, bed.now)
    bed.exchange(peer)
    assert peer.received == b"220 ready\r\n"


# data from the application


def test_request_is_acknowledged_by_the_answer() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert say(bed, peer, b"GET /", flags=ACK | PSH) == []
    assert upstream.received == b"GET /"
    upstream.send(b"200", bed.now)
    answer = only(bed.take())
    assert (answer.payload, answer.ack) == (b"200", peer.wire(5))
    assert bed.advance(DELAYED_ACK * 2) == []


def test_lone_segment_is_acknowledged_after_a_delay_and_then_at_once() -> None:
    bed = Bed()
    peer, _ = bed.established()
    assert say(bed, peer, b"one", flags=ACK | PSH) == []
    assert only(bed.advance(DELAYED_ACK)).ack == peer.wire(3)
    assert only(say(bed, peer, b"two", seq=3, flags=ACK | PSH)).ack == peer.wire(6)


def test_batch_of_segments_gets_one_ack() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    data = pattern(1400 * 6)
    for at in range(0, len(data), 1400):
        peer.emit(data[at : at + 1400], peer.wire(at), ACK, now=bed.now)
    assert only(bed.give(*peer.sent)).ack == peer.wire(len(data))
    assert upstream.received == data


def test_gap_is_reported_by_sack_and_closed() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    first = only(say(bed, peer, b"cc", seq=2))
    assert (first.ack, first.sack) == (peer.wire(0), [(peer.wire(2), peer.wire(4))])
    second = only(say(bed, peer, b"ee", seq=6))
    assert second.sack == [(peer.wire(6), peer.wire(8)), (peer.wire(2), peer.wire(4))]  # the newest first
    assert upstream.received == b""
    assert only(say(bed, peer, b"bb", seq=0)).ack == peer.wire(4)
    last = only(say(bed, peer, b"dd", seq=4))
    assert (last.ack, last.sack) == (peer.wire(8), [])
    assert upstream.received == b"bbccddee"
    assert bed.count(Cell.BUFFER_BYTES) == 0


def test_duplicate_and_overlapping_data_is_delivered_once() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    say(bed, peer, b"abcd")
    assert only(say(bed, peer, b"abcd")).ack == peer.wire(4)
    say(bed, peer, b"cdef", seq=2)
    assert upstream.received == b"abcdef"


def test_urgent_data_is_data() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    say(bed, peer, b"!", flags=ACK | URG)
    assert upstream.received == b"!"


def test_slow_upstream_closes_the_window_and_resume_opens_it() -> None:
    bed = Bed(receive_buffer=8000)
    peer, upstream = bed.established()
    upstream.capacity = 1000
    data = pattern(9000)
    answers = [only(say(bed, peer, data[at : at + 1000], seq=at)) for at in range(0, 9000, 1000)]
    assert answers[-1].window == 0
    assert upstream.received == data[:1000]
    held = 8000
    assert bed.count(Cell.BUFFER_BYTES) == held
    # A window probe of one byte is answered, not taken.
    probe = only(say(bed, peer, b"x", seq=9000))
    assert (probe.ack, probe.window) == (peer.wire(9000), 0)
    # Too little to be worth an update (RFC 9293 3.8.6.2.2), then enough.
    upstream.capacity = 500
    upstream.connection.resume(bed.now)
    assert bed.take() == []
    upstream.capacity = 7500
    upstream.connection.resume(bed.now)
    assert only(bed.take()).window == 8000
    assert upstream.received == data
    assert bed.count(Cell.BUFFER_BYTES) == 0


def test_promised_window_is_never_taken_back() -> None:
    bed = Bed(receive_buffer=100_000)
    peer, upstream = bed.established()
    upstream.capacity = 0
    edge = 0
    for at in range(0, 60_000, 7):
        for answer in segments(say(bed, peer, b"1234567", seq=at)):
            scaled = answer.window << 1
            assert scaled <= 100_000
            assert answer.ack + scaled >= edge - 1  # one unit of the scale (RFC 7323 2.4)
            edge = max(edge, answer.ack + scaled)
    assert edge <= peer.wire(100_000)


def test_eof_waits_for_the_backlog() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.capacity = 2
    answer = only(say(bed, peer, b"last", flags=ACK | FIN))
    assert answer.ack == peer.wire(5)
    assert (upstream.received, upstream.eof) == (b"la", False)
    upstream.capacity = 10
    upstream.connection.resume(bed.now)
    assert (upstream.received, upstream.eof) == (b"last", True)


def test_fin_before_missing_data_waits_for_it() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    say(bed, peer, b"cd", seq=2, flags=ACK | FIN)
    assert not upstream.eof
    assert only(say(bed, peer, b"ab")).ack == peer.wire(5)
    assert (upstream.received, upstream.eof) == (b"abcd", True)


def test_handler_that_aborts_within_on_data() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.on_data = lambda data: upstream.connection.abort(bed.now) or 0  # type: ignore[method-assign,func-returns-value]
    assert only(say(bed, peer, b"poison")).flags == RST | ACK
    assert upstream.closed is CloseReason.ABORTED
    assert bed.count(Cell.BUFFER_BYTES) == 0


# data to the application


def test_gso_segment_carries_all_that_the_window_allows() -> None:
    bed = Bed(offload=True)
    _, upstream = bed.established()
    data = pattern(10_000)
    upstream.send(data[:4096], bed.now)
    packet = bed.take()[0]
    assert packet[1] == 1  # GSO_TCPV4
    assert int.from_bytes(packet[4:6], "little") == 1448  # gso_size: MSS without the timestamps
    assert read_segment(packet).payload == data[:4096]


def test_segments_without_offload_are_at_most_one_mss() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.send(pattern(4000), bed.now)
    assert [len(segment.payload) for segment in segments(bed.take())] == [1448, 1448, 1104]


def test_small_writes_go_out_at_once_and_share_a_chunk() -> None:
    bed = Bed()
    _, upstream = bed.established()
    for _ in range(3):
        upstream.send(b"tick", bed.now)
    assert [segment.payload for segment in segments(bed.take())] == [b"tick"] * 3
    assert bed.count(Cell.BUFFER_BYTES) == 4096


def test_full_send_buffer_asks_again_when_there_is_space() -> None:
    bed = Bed(send_buffer=65536)
    peer, upstream = bed.established()
    data = pattern(500_000)
    upstream.send(data, bed.now)
    assert upstream.connection.send_buffer() is None
    assert bed.count(Cell.BUFFER_BYTES) <= 65536 + 4096
    bed.exchange(peer, rounds=1000)
    assert peer.received == data
    assert bed.count(Cell.BUFFER_BYTES) == 0


def test_space_given_back_unused_is_not_held() -> None:
    bed = Bed()
    _, upstream = bed.established()
    assert upstream.connection.send_buffer() is not None
    upstream.connection.commit(0, bed.now)
    assert bed.count(Cell.BUFFER_BYTES) == 0


def test_lost_segment_is_found_by_sack_and_sent_again_once() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.send(pattern(1448 * 8), bed.now)
    flight = bed.take()
    bed.now += 0.01
    peer.receive(flight[0], bed.now)
    for packet in flight[2:]:
        peer.receive(packet, bed.now)
    again = segments(bed.give(*peer.sent))
    lost = read_segment(flight[1])
    assert [segment.seq for segment in again] == [lost.seq]
    assert again[0].payload == lost.payload
    assert bed.count(Cell.TCP_RETRANSMITS) == 1


def test_lost_segment_is_found_by_duplicate_acks_without_sack() -> None:
    bed = Bed()
    peer, upstream = bed.established(sack=False)
    upstream.send(pattern(1448 * 8), bed.now)
    flight = bed.take()
    bed.now += 0.01
    for packet in flight[1:]:
        peer.receive(packet, bed.now)
    again = segments(bed.give(*peer.sent))
    assert again[0].seq == read_segment(flight[0]).seq
    assert bed.count(Cell.TCP_RETRANSMITS) == 1


def test_lost_tail_is_probed_before_the_retransmission_timeout() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.send(pattern(4000), bed.now)
    flight = bed.take()
    assert len(flight) == 3
    probe = only(bed.advance(0.1))
    assert probe.seq == read_segment(flight[2]).seq


def test_unacknowledged_data_is_retransmitted_with_back_off_and_given_up() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.send(b"hello?", bed.now)
    bed.take()
    at: list[float] = []
    while upstream.closed is None:
        deadline = bed.stack.next_timeout()
        assert deadline is not None
        at += [bed.now for segment in segments(bed.advance(deadline - bed.now)) if segment.payload]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert all(later == pytest.approx(2 * earlier) for earlier, later in pairwise(gaps) if later < 60)
    assert upstream.closed is CloseReason.TIMEOUT
    assert GIVE_UP <= bed.now - at[0] <= GIVE_UP + 61


def test_zero_window_is_probed_until_it_opens() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    say(bed, peer, window=0)
    upstream.send(b"when you are ready", bed.now)
    probes = segments(bed.advance(2))
    assert len(probes) >= 2
    assert all(probe.payload == b"" and probe.seq + 1 == peer.ack for probe in probes)
    assert [segment.payload for segment in segments(say(bed, peer, window=1000))] == [b"when you are ready"]


def test_silly_window_is_not_filled_at_once() -> None:
    bed = Bed()
    peer, upstream = bed.established(scale=0)
    say(bed, peer, window=100)
    upstream.send(pattern(5000), bed.now)
    assert bed.take() == []
    assert [len(segment.payload) for segment in segments(bed.advance(0.3))] == [100]


def test_packet_too_big_lowers_the_segment_size() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.send(pattern(2000), bed.now)
    flight = bed.take()
    error = packets.icmp("10.0.0.1", "203.0.113.10", 3, 4, b"\0\0" + (1000).to_bytes(2, "big") + flight[0][10:38])
    again = segments(bed.give(packets.VIRTIO_NONE + error))
    assert b"".join(segment.payload for segment in again) == pattern(2000)
    assert max(len(segment.payload) for segment in again) == 1000 - 52


def test_packet_too_big_with_a_wrong_number_is_ignored() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.send(pattern(2000), bed.now)
    flight = bed.take()
    quoted = bytearray(flight[0][10:38])
    quoted[24:28] = ((int.from_bytes(quoted[24:28], "big") + 100_000) & 0xFFFFFFFF).to_bytes(4, "big")
    error = packets.icmp("10.0.0.1", "203.0.113.10", 3, 4, b"\0\0" + (1000).to_bytes(2, "big") + bytes(quoted))
    assert bed.give(packets.VIRTIO_NONE + error) == []


# closing


def test_application_closes_first() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    peer.close(bed.now)
    bed.exchange(peer)
    assert (upstream.eof, upstream.connection.state) == (True, State.CLOSE_WAIT)
    upstream.send(b"bye", bed.now, shutdown=True)
    bed.exchange_from(peer)
    assert (bytes(peer.received), peer.eof) == (b"bye", True)
    assert upstream.closed is CloseReason.FINISHED
    assert bed.stack.connections == {}
    assert bed.stack.next_timeout() is None


def test_upstream_closes_first() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.send(b"bye", bed.now, shutdown=True)
    bed.exchange_from(peer)
    assert (peer.eof, upstream.connection.state, upstream.closed) == (True, State.FIN_WAIT_2, None)
    peer.write(b"still here", bed.now)
    peer.close(bed.now)
    bed.exchange(peer)
    assert upstream.received == b"still here"
    assert (upstream.connection.state, upstream.closed) == (State.TIME_WAIT, CloseReason.FINISHED)
    assert (bed.count(Cell.TCP_ACTIVE), bed.count(Cell.TCP_CLOSED)) == (0, 1)
    bed.advance(TIME_WAIT)
    assert bed.stack.connections == {}


def test_both_close_at_once() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.connection.shutdown(bed.now)
    (fin,) = bed.take()
    answer = only(say(bed, peer, flags=ACK | FIN))
    assert answer.ack == peer.wire(1)
    assert upstream.connection.state is State.CLOSING
    peer.next = peer.una = 1  # the client has sent its FIN by hand
    peer.receive(fin, bed.now)
    bed.give(*peer.sent)
    assert upstream.connection.state is State.TIME_WAIT
    assert upstream.closed is CloseReason.FINISHED


def test_fin_again_in_time_wait_is_acknowledged_and_restarts_the_wait() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.connection.shutdown(bed.now)
    bed.exchange_from(peer)
    fin = say(bed, peer, flags=ACK | FIN)
    assert only(fin).ack == peer.wire(1)
    bed.advance(TIME_WAIT / 2)
    assert only(say(bed, peer, flags=ACK | FIN)).ack == peer.wire(1)
    bed.advance(TIME_WAIT * 0.75)
    assert len(bed.stack.connections) == 1
    bed.advance(TIME_WAIT)
    assert bed.stack.connections == {}


def test_reset_in_time_wait_costs_the_upstream_nothing() -> None:
    """RFC 1337: an old duplicate that we acknowledge makes an application that has closed send one."""
    bed = Bed()
    peer, upstream = bed.established()
    upstream.capacity = 0
    say(bed, peer, b"last words")
    upstream.connection.shutdown(bed.now)
    bed.exchange_from(peer)
    say(bed, peer, flags=ACK | FIN, seq=10)
    assert upstream.connection.state is State.TIME_WAIT
    assert say(bed, peer, flags=RST, seq=11) == []
    upstream.capacity = 100
    upstream.connection.resume(bed.now)
    assert upstream.received == b"last words"
    assert upstream.eof and upstream.closed is CloseReason.FINISHED


def test_new_syn_in_time_wait_opens_a_new_connection_with_higher_numbers() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.connection.shutdown(bed.now)
    bed.exchange_from(peer)
    peer.close(bed.now)
    bed.exchange(peer)
    old_next = upstream.connection.sender.next
    bed.now += 1
    again = TcpPeer(iss=peer.iss + 500_000)
    again.connect(bed.now)
    bed.exchange(again)
    assert again.open
    assert len(bed.upstreams) == 2
    assert (bed.upstreams[1].connection.sender.una - old_next) & 0xFFFFFFFF < 0x20000


def test_lost_fin_is_sent_again() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.connection.shutdown(bed.now)
    bed.take()
    assert only(bed.advance(0.3)).flags == ACK | PSH | FIN


def test_abort_resets() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.send(b"unsaid", bed.now)
    bed.take()
    upstream.connection.abort(bed.now)
    reset = only(bed.take())
    assert reset.flags == RST | ACK
    assert upstream.closed is CloseReason.ABORTED
    assert bed.count(Cell.BUFFER_BYTES) == 0
    assert bed.stack.next_timeout() is None
    assert only(say(bed, peer, b"?")).flags == RST


def test_half_closed_connection_that_stays_silent_is_reset() -> None:
    bed = Bed(half_close_timeout=5)
    peer, upstream = bed.established()
    upstream.connection.shutdown(bed.now)
    bed.exchange_from(peer)
    assert RST | ACK in [segment.flags for segment in segments(bed.advance(6))]
    assert upstream.closed is CloseReason.TIMEOUT


def test_silent_connection_is_probed_and_given_up() -> None:
    bed = Bed(keepalive_idle=60)
    peer, upstream = bed.established()
    (probe,) = bed.advance(61)
    peer.receive(probe, bed.now)
    answered = only(peer.sent)
    assert answered.ack == read_segment(probe).seq + 1
    bed.give(peer.sent.pop())
    assert [segment.flags for segment in segments(bed.advance(10 * 75))] == [ACK] * 9 + [RST | ACK]
    assert upstream.closed is CloseReason.TIMEOUT


# what an attacker may send (RFC 5961, RFC 7323)


def test_reset_with_the_exact_number_closes() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert say(bed, peer, flags=RST) == []
    assert upstream.closed is CloseReason.RESET
    assert bed.stack.connections == {}


def test_reset_within_the_window_is_challenged() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert only(say(bed, peer, seq=1, flags=RST)).flags == ACK
    assert say(bed, peer, seq=2, flags=RST) == []  # limited in rate
    bed.advance(CHALLENGE_INTERVAL)
    assert only(say(bed, peer, seq=2, flags=RST)).flags == ACK
    assert upstream.closed is None
    assert bed.count(Cell.TCP_CHALLENGE_ACKS) == 2


def test_reset_outside_the_window_is_dropped() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert say(bed, peer, seq=-1, flags=RST) == []
    assert say(bed, peer, seq=1 << 30, flags=RST) == []
    assert upstream.closed is None


@pytest.mark.parametrize("seq", [-1, 0, 1000, 1 << 30])
def test_syn_on_an_open_connection_is_challenged(seq: int) -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert only(say(bed, peer, seq=seq, flags=SYN)).flags == ACK
    assert upstream.closed is None


def test_data_that_acknowledges_what_was_never_sent_is_challenged_and_dropped() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    assert only(say(bed, peer, b"evil", ack=peer.ack + 1)).flags == ACK
    assert upstream.received == b""


def test_old_timestamp_is_answered_and_dropped() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    say(bed, peer, b"new")
    peer.emit(b"old", peer.wire(3), ACK, now=bed.now - 50)
    assert only(bed.give(peer.sent.pop())).ack == peer.wire(3)
    assert upstream.received == b"new"


def test_segment_without_the_timestamps_that_were_agreed_on_is_dropped() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    peer.emit(b"data", peer.wire(0), ACK, options=b"")
    assert bed.give(peer.sent.pop()) == []
    assert upstream.received == b""


def test_data_beyond_the_window_is_cut() -> None:
    bed = Bed(receive_buffer=3000)
    peer, upstream = bed.established()
    assert only(say(bed, peer, b"x" * 5000)).ack == peer.wire(3000)
    assert len(upstream.received) == 3000


def test_data_beyond_a_fin_that_waits_is_not_delivered() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    peer.emit(b"", peer.wire(4), ACK | FIN, now=bed.now)
    bed.give(peer.sent.pop())
    say(bed, peer, b"dataFORGED")
    assert upstream.received == b"data"
    assert upstream.eof


def test_fin_before_data_that_is_held_is_a_lie() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    say(bed, peer, b"more", seq=4)
    peer.emit(b"", peer.wire(2), ACK | FIN, now=bed.now)
    bed.give(peer.sent.pop())
    say(bed, peer, b"data")
    assert upstream.received == b"datamore"
    assert not upstream.eof
    assert bed.count(Cell.BUFFER_BYTES) == 0


def test_fin_at_the_edge_of_a_closed_window_is_taken() -> None:
    bed = Bed(receive_buffer=3000)
    peer, upstream = bed.established()
    upstream.capacity = 0
    say(bed, peer, b"x" * 3000)
    peer.emit(b"", peer.wire(3000), ACK | FIN, now=bed.now)
    answer = only(bed.give(peer.sent.pop()))
    assert (answer.ack, answer.window) == (peer.wire(3001), 0)
    upstream.capacity = 3000
    upstream.connection.resume(bed.now)
    assert upstream.eof and len(upstream.received) == 3000


def test_out_of_order_ranges_are_bounded() -> None:
    bed = Bed()
    peer, _ = bed.established()
    for at in range(1, 2001, 2):
        say(bed, peer, b"x", seq=at)
    assert bed.count(Cell.BUFFER_BYTES) == 256 * (1 + RANGE_COST)
    assert bed.count(Cell.DROP_BUFFER_LIMIT) == 1000 - 256


def test_short_of_memory_a_slow_upstream_is_promised_no_more() -> None:
    bed = Bed(max_buffers=10_000, max_tcp_flows=2)
    peer, slow = bed.established()
    slow.capacity = 0
    for at in range(0, 20_000, 1000):
        say(bed, peer, pattern(1000), seq=at)
    assert bed.count(Cell.BUFFER_BYTES) == 6_000, (
        "what there was, then no more than its share, though more was promised"
    )
    assert bed.count(Cell.DROP_BUFFER_LIMIT) == 14
    other, quick = bed.established(port=4001)
    say(bed, other, b"those that hold nothing do not notice")
    assert quick.received == b"those that hold nothing do not notice"
    slow.capacity = 1 << 20
    slow.connection.resume(bed.now)
    assert bed.count(Cell.BUFFER_BYTES) == 0
    update = only(bed.take())
    assert (update.ack, update.window << 5 > 60_000) == (peer.wire(6_000), True)
    for at in range(6_000, 20_000, 1000):
        say(bed, peer, pattern(1000), seq=at)
    assert slow.received == pattern(1000) * 20


def test_those_who_hold_much_for_ever_leave_the_others_their_share() -> None:
    mib = 1 << 20
    bed = Bed(max_buffers=2 * mib, max_tcp_flows=32, offload=True)
    hogs = [bed.established(port=5000 + number, window=0)[1] for number in range(31)]
    for hog in hogs:
        hog.send(pattern(mib), bed.now)  # to a client that takes nothing
    assert mib <= bed.count(Cell.BUFFER_BYTES) <= 2 * mib
    share = mib // 32
    peer, upstream = bed.established(port=4000)
    upstream.send(pattern(mib), bed.now)
    sender = upstream.connection.sender
    assert share - 4096 <= sender.buffer.end - sender.una <= share
    assert bed.count(Cell.BUFFER_BYTES) <= 2 * mib
    bed.exchange_from(peer)
    assert peer.received == pattern(mib)


def test_who_never_reads_gets_a_small_buffer() -> None:
    bed = Bed(offload=True)
    _, upstream = bed.established(window=0)
    upstream.send(pattern(1 << 20), bed.now)
    assert bed.count(Cell.BUFFER_BYTES) <= 64 * 1024


def test_text_that_is_let_come_again_is_not_acknowledged() -> None:
    bed = Bed(max_buffers=2000)
    peer, upstream = bed.established()
    upstream.capacity = 100
    assert only(say(bed, peer, pattern(1400), flags=ACK)).ack == peer.wire(1400)
    answer = only(say(bed, peer, pattern(1400), seq=1400, flags=ACK))
    assert answer.ack == peer.wire(1400)
    assert only(say(bed, peer, b"fin", seq=2800, flags=ACK | FIN)).ack == peer.wire(1400)
    upstream.capacity = 1 << 20
    upstream.connection.resume(bed.now)
    say(bed, peer, pattern(1400), seq=1400)
    say(bed, peer, b"fin", seq=2800, flags=ACK | FIN)
    assert upstream.received == pattern(1400) * 2 + b"fin" and upstream.eof


def test_short_of_memory_the_application_gets_one_chunk_at_a_time() -> None:
    bed = Bed(max_buffers=-1)
    peer, upstream = bed.established()
    text = pattern(50_000)
    while len(peer.received) < len(text):
        sent = len(peer.received)
        upstream.send(text[sent : sent + 4096], bed.now)
        assert bed.count(Cell.BUFFER_BYTES) <= 4096
        for packet in bed.take():
            peer.receive(packet, bed.now)
        for packet in peer.sent:
            bed.give(packet)
        peer.sent.clear()
    assert bytes(peer.received) == text


def test_text_that_trickles_out_is_gathered_while_many_segments_wait_for_acknowledgment() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    text = pattern(1000)
    for at in range(len(text)):
        upstream.send(text[at : at + 1], bed.now)
    sent = bed.take()
    assert len(sent) == FEW
    for packet in sent:
        peer.receive(packet, bed.now)
    bed.exchange(peer)
    assert peer.received == text


def test_application_that_sacks_every_other_byte_costs_little() -> None:
    bed = Bed(offload=True)
    peer, upstream = bed.established(scale=7)
    upstream.send(pattern(14_000), bed.now)
    bed.take()
    sender = upstream.connection.sender
    base = peer.wire(0) - peer.iss + sender.una - 1
    for at in range(1, 6000, 2):
        block = struct.pack("!II", base + at & 0xFFFFFFFF, base + at + 1 & 0xFFFFFFFF)
        peer.emit(b"", peer.wire(0), ACK, options=peer._options(bed.now) + b"\1\1\5\x0a" + block, now=bed.now)
        bed.give(peer.sent.pop())
    assert len(sender._flight.segments) <= FEW + 14_000 // 512 + 2
    assert sender._flight.sacked_bytes == sum(s.end - s.start for s in sender._flight.segments if s.sacked) > 0


def test_sack_of_all_without_an_acknowledgment_is_survived() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.send(pattern(5000), bed.now)
    bed.take()
    sender = upstream.connection.sender
    block = struct.pack("!II", sender.una & 0xFFFFFFFF, sender.next & 0xFFFFFFFF)
    peer.emit(b"", peer.wire(0), ACK, options=peer._options(bed.now) + b"\1\1\5\x0a" + block, now=bed.now)
    bed.give(peer.sent.pop())
    for packet in bed.advance(3):
        peer.receive(packet, bed.now)
    bed.exchange(peer)
    bed.advance(3)
    assert peer.received[:1000] == pattern(1000)


def test_tiny_mss_is_not_obeyed() -> None:
    bed = Bed()
    _, upstream = bed.established(mss=1)
    upstream.send(pattern(1000), bed.now)
    assert len(bed.take()) <= 14


def test_view_of_a_packet_is_dead_after_the_call() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    upstream.capacity = 3
    say(bed, peer, b"abcdef")  # give() overwrites the packet after the call
    say(bed, peer, b"ijkl", seq=8)
    say(bed, peer, b"gh", seq=6)
    upstream.capacity = 100
    upstream.connection.resume(bed.now)
    assert upstream.received == b"abcdefghijkl"
