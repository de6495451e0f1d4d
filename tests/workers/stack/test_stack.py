"""The stack as a whole: which packet goes where, limits, and that nothing a packet says can hurt it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import Cell
from tests.support import packets
from tests.support.packets import VIRTIO_NONE, tun_tcp, tun_udp
from tests.support.stack_bed import Bed
from tests.support.tcp_peer import ACK, FIN, RST, SYN, TcpPeer, read_segment
from workers.stack import CloseReason, Refusal, udp

APP, REMOTE = "10.0.0.2", "203.0.113.10"
APP6, REMOTE6 = "2001:db8::2", "2001:db8:1::10"
NEEDS_CSUM = b"\1" + bytes(9)

both_versions = pytest.mark.parametrize(("app", "remote"), [(APP, REMOTE), (APP6, REMOTE6)])


@both_versions
def test_segment_of_no_connection_is_reset(app: str, remote: str) -> None:
    bed = Bed()
    (packet,) = bed.give(tun_tcp(app, 1, remote, 2, b"abc", sequence=7, acknowledgment=99, flags=ACK))
    answer = read_segment(packet)
    assert (answer.flags, answer.seq) == (RST, 99)
    (packet,) = bed.give(tun_tcp(app, 1, remote, 2, b"abc", sequence=7, flags=FIN))
    answer = read_segment(packet)
    assert (answer.flags, answer.seq, answer.ack) == (RST | ACK, 0, 11)
    assert bed.count(Cell.TCP_RESETS_SENT) == 2


def test_reset_of_no_connection_is_not_answered() -> None:
    bed = Bed()
    assert bed.give(tun_tcp(APP, 1, REMOTE, 2, flags=RST | ACK)) == []


@both_versions
def test_damaged_segment_is_dropped_unless_the_kernel_vouches(app: str, remote: str) -> None:
    bed = Bed()
    good = tun_tcp(app, 1, remote, 2, b"abc")
    damaged = good[:-1] + b"x"
    assert bed.give(damaged) == []
    assert bed.count(Cell.DROP_CHECKSUM) == 1
    assert len(bed.give(NEEDS_CSUM + damaged[10:])) == 1
    assert len(bed.give(good)) == 1


def test_damaged_ipv4_header_is_dropped() -> None:
    bed = Bed()
    packet = bytearray(tun_tcp(APP, 1, REMOTE, 2))
    packet[18] ^= 1  # TTL
    assert bed.give(bytes(packet)) == []
    assert bed.count(Cell.DROP_CHECKSUM) == 1


def test_bytes_after_the_packet_are_ignored() -> None:
    bed = Bed()
    peer, upstream = bed.established()
    peer.emit(b"data", peer.wire(0), ACK, now=bed.now)
    bed.give(peer.sent.pop() + b"padding")
    assert upstream.received == b"data"


def test_ipv4_options_are_skipped() -> None:
    bed = Bed()
    syn = packets.tcp(APP, 1, REMOTE, 2, flags=SYN)
    bed.give(VIRTIO_NONE + packets.ipv4(APP, REMOTE, packets.TCP, syn[20:], options=b"\1\1\1\1"))
    assert len(bed.upstreams) == 1


def test_ipv6_extension_headers_are_skipped() -> None:
    bed = Bed()
    syn = packets.tcp(APP6, 1, REMOTE6, 2, flags=SYN)
    extensions = ((packets.HOP_BY_HOP, packets.extension()), (packets.DESTINATION_OPTIONS, packets.extension(16)))
    bed.give(VIRTIO_NONE + packets.ipv6(APP6, REMOTE6, packets.TCP, syn[40:], extensions=extensions))
    assert len(bed.upstreams) == 1


@pytest.mark.parametrize("field", [0x2000, 0x0001, 0x2001])
def test_fragment_is_dropped(field: int) -> None:
    bed = Bed()
    packet = packets.ipv4(APP, REMOTE, packets.TCP, packets.tcp(APP, 1, REMOTE, 2)[20:], fragment_field=field)
    assert bed.give(VIRTIO_NONE + packet) == []
    assert bed.count(Cell.DROP_FRAGMENT) == 1


def test_unknown_protocol_is_counted() -> None:
    bed = Bed()
    assert bed.give(VIRTIO_NONE + packets.ipv4(APP, REMOTE, 132, bytes(40))) == []
    assert bed.count(Cell.DROP_UNSUPPORTED) == 1


def test_syn_beyond_the_flow_limit_is_refused() -> None:
    bed = Bed(accepts=False, max_tcp_flows=2)
    answers = [bed.give(tun_tcp(APP, port, REMOTE, 2, sequence=port, flags=SYN)) for port in (1, 2, 3)]
    assert answers[:2] == [[], []]
    refusal = read_segment(answers[2][0])
    assert (refusal.flags, refusal.ack) == (RST | ACK, 4)
    assert len(bed.upstreams) == 2
    assert bed.count(Cell.DROP_FLOW_LIMIT) == 1
    assert bed.count(Cell.TCP_ACTIVE) == 2


def test_datagram_left_to_be_cut_may_be_empty() -> None:
    bed = Bed()
    bed.give(struct.pack("=BBHHHH", 1, 5, 28, 200, 20, 6) + tun_udp(APP, 1, REMOTE, 2)[10:])
    assert [datagram[-1] for datagram in bed.datagrams] == [b""]


def knock(bed: Bed, port: int) -> None:
    """Send a SYN, and the same again after a second, as every application does."""
    for _ in range(2):
        bed.give(tun_tcp(APP, port, REMOTE, 2, flags=SYN))
        bed.advance(1.0)


def test_oldest_half_open_connection_is_evicted() -> None:
    bed = Bed(max_half_open=2, accepts=False)
    for port in (1, 2, 3):
        knock(bed, port)
    assert [upstream.closed for upstream in bed.upstreams] == [CloseReason.EVICTED, None, None]
    assert bed.count(Cell.DROP_HALF_OPEN) == 1


def test_connection_whose_syn_was_answered_is_the_last_to_be_evicted() -> None:
    bed = Bed(max_half_open=2, accepts=False)
    knock(bed, 1)
    knock(bed, 2)
    bed.upstreams[0].connection.accept(bed.now)
    knock(bed, 3)
    assert [upstream.closed for upstream in bed.upstreams] == [None, CloseReason.EVICTED, None]
    assert bed.count(Cell.TCP_HALF_OPEN) == 2


def test_syn_flood_that_is_not_answered_costs_half_the_limit_and_honest_applications_a_second() -> None:
    bed = Bed(max_half_open=100, accepts=False)
    for number in range(5000):
        bed.give(tun_tcp(f"10.9.{number >> 8}.{number & 255}", 1, REMOTE, 2, flags=SYN))
    assert len(bed.upstreams) == 50
    assert bed.count(Cell.DROP_SYN_FLOOD) == 4950
    knock(bed, 7)
    assert len(bed.upstreams) == 51
    assert bed.upstreams[-1].connection.source_port == 7


def test_syn_flood_that_is_refused_costs_few_dials_a_second() -> None:
    bed = Bed(accepts=False)
    for number in range(5000):
        bed.give(tun_tcp(f"10.9.{number >> 8}.{number & 255}", 1, REMOTE, 2, flags=SYN))
        if bed.upstreams[-1].closed is None:
            bed.upstreams[-1].connection.refuse(Refusal.REFUSED, bed.now)
    assert len(bed.upstreams) == 250
    bed.advance(2.5)  # no failure for more than a second: the flood is over
    bed.give(tun_tcp(APP, 1, REMOTE, 2, flags=SYN))
    assert len(bed.upstreams) == 251


def test_initial_numbers_differ_by_flow_and_grow_with_time() -> None:
    def iss(port: int, now: float) -> int:
        bed = Bed()
        bed.now = now
        (packet,) = bed.give(tun_tcp(APP, port, REMOTE, 2, flags=SYN))
        return read_segment(packet).seq

    assert (iss(1, 101.0) - iss(1, 100.0)) & 0xFFFFFFFF == 250_000  # RFC 6528: 4 us a step
    assert abs(iss(1, 100.0) - iss(2, 100.0)) > 1000


def test_close_resets_every_connection() -> None:
    bed = Bed()
    for port in (1, 2):
        bed.established(port=port)
    bed.stack.close(bed.now)
    assert [read_segment(packet).flags for packet in bed.take()] == [RST | ACK] * 2
    assert [upstream.closed for upstream in bed.upstreams] == [CloseReason.ABORTED] * 2
    assert bed.stack.connections == {}
    assert (bed.count(Cell.TCP_ACTIVE), bed.count(Cell.TCP_CLOSED)) == (0, 2)


# datagrams


@both_versions
def test_datagram_both_ways(app: str, remote: str) -> None:
    bed = Bed()
    bed.give(tun_udp(app, 5353, remote, 53, b"query"))
    version = 6 if ":" in app else 4
    assert bed.datagrams == [(version, packets.packed(app), 5353, packets.packed(remote), 53, b"query")]
    bed.stack.send_datagram(version, packets.packed(remote), 53, packets.packed(app), 5353, b"answer")
    assert bed.take() == [
        tun_udp(remote, 53, app, 5353, b"answer")[:10] + _df(packets.udp(remote, 53, app, 5353, b"answer"))
    ]


def _df(packet: bytes) -> bytes:
    """The same packet with the don't-fragment bit, which we set on what we make."""
    return (
        packets.ipv4(packet[12:16], packet[16:20], 17, packet[20:], fragment_field=0x4000)
        if packet[0] == 0x45
        else packet
    )


@both_versions
def test_headers_remembered_for_peers_are_bounded_and_right(app: str, remote: str) -> None:
    """As with a question to a DNS server, from a port of its own each time, beside a call that goes on."""
    bed = Bed()
    version = 6 if ":" in app else 4
    for port in range(1, 3000):
        for to in port, 5000:
            bed.stack.send_datagram(version, packets.packed(remote), 53, packets.packed(app), to, b"answer")
            (packet,) = bed.take()
            assert packet[10:] == _df(packets.udp(remote, 53, app, to, b"answer")), to
    assert len(bed.stack.udp._templates) + len(bed.stack.udp._older) <= 2 * udp.TEMPLATES_MAX


def test_datagram_without_checksum_is_taken_over_ipv4_only() -> None:
    bed = Bed()
    packet = bytearray(packets.udp(APP, 1, REMOTE, 2, b"x"))
    packet[26:28] = b"\0\0"
    bed.give(VIRTIO_NONE + bytes(packet))
    assert len(bed.datagrams) == 1
    packet = bytearray(packets.udp(APP6, 1, REMOTE6, 2, b"x"))
    packet[46:48] = b"\0\0"
    bed.give(VIRTIO_NONE + bytes(packet))
    assert len(bed.datagrams) == 1
    assert bed.count(Cell.DROP_CHECKSUM) == 1


@both_versions
@pytest.mark.parametrize("vouched", [True, False])
def test_damaged_or_lying_datagram(app: str, remote: str, vouched: bool) -> None:
    bed = Bed()
    at = 10 + (40 if ":" in app else 20)
    packet = bytearray(tun_udp(app, 1, remote, 2, b"0123456789"))
    packet[0] = vouched
    packet[at + 4 : at + 6] = (4).to_bytes(2, "big")  # shorter than its own header
    bed.give(bytes(packet))
    packet[at + 4 : at + 6] = (40).to_bytes(2, "big")  # longer than the packet
    bed.give(bytes(packet))
    assert bed.datagrams == []
    assert bed.count(Cell.DROP_MALFORMED) == 2


def test_datagrams_that_the_kernel_left_to_us_to_cut() -> None:
    bed = Bed()
    packet = packets.udp(APP, 1, REMOTE, 2, b"aaaabbbbcc")
    virtio = struct.pack("=BBHHHH", 1, 5, 28, 4, 20, 6)
    bed.give(virtio + packet)
    assert [datagram[5] for datagram in bed.datagrams] == [b"aaaa", b"bbbb", b"cc"]


@both_versions
@pytest.mark.parametrize("size", [1472, 1473, 20_000, 65_507])
def test_large_datagram_goes_out_in_fragments(app: str, remote: str, size: int) -> None:
    from scapy.layers.inet import IP, UDP, defragment
    from scapy.layers.inet6 import IPv6, defragment6

    payload = bytes(range(256)) * 256
    payload = payload[:size]
    bed = Bed(mtu=1500)
    version = 6 if ":" in app else 4
    bed.stack.send_datagram(version, packets.packed(remote), 53, packets.packed(app), 9, payload)
    pieces = [packet[10:] for packet in bed.take()]
    if version == 4:
        (whole,) = defragment([IP(piece) for piece in pieces])
    else:
        whole = defragment6([IPv6(piece) for piece in pieces]) if len(pieces) > 1 else IPv6(pieces[0])
    field = whole[UDP].chksum
    assert bytes(whole[UDP].payload) == payload
    del whole[UDP].chksum
    assert (IP if version == 4 else IPv6)(bytes(whole))[UDP].chksum == field


# ICMP


@both_versions
@pytest.mark.parametrize("size", [0, 56, 1400])
def test_echo_is_answered(app: str, remote: str, size: int) -> None:
    bed = Bed()
    (packet,) = bed.give(VIRTIO_NONE + packets.icmp_echo(app, remote, 7, 3, b"p" * size))
    kind = 129 if ":" in app else 0
    expected = packets.icmp(remote, app, kind, 0, struct.pack("!HH", 7, 3) + b"p" * size)
    at = 40 if ":" in app else 20
    assert packet[10 + at :] == expected[at:]
    assert bed.count(Cell.ICMP_ECHO_REPLIES) == 1


def test_largest_echo_is_answered_in_fragments() -> None:
    from scapy.layers.inet import ICMP, IP, defragment

    bed = Bed()
    sent = bed.give(VIRTIO_NONE + packets.icmp_echo(APP, REMOTE, 7, 3, b"p" * 65_000))
    (whole,) = defragment([IP(packet[10:]) for packet in sent])
    assert bytes(whole[ICMP].payload) == b"p" * 65_000
    assert packets.internet_checksum(bytes(whole)[20:]) == 0


@both_versions
def test_damaged_echo_is_dropped(app: str, remote: str) -> None:
    bed = Bed()
    packet = packets.icmp_echo(app, remote, 7)
    assert bed.give(VIRTIO_NONE + packet[:-1] + b"?") == []
    assert bed.count(Cell.DROP_CHECKSUM) == 1


@both_versions
def test_unreachable_quotes_the_datagram_and_is_limited_in_rate(app: str, remote: str) -> None:
    from workers.stack import Refusal

    bed = Bed()
    version = 6 if ":" in app else 4
    source, destination = packets.packed(app), packets.packed(remote)
    at, whole = (40, 1280) if version == 6 else (20, 576)
    bed.give(tun_udp(app, 1, remote, 2, b"x"))
    for _ in range(60):
        bed.stack.send_unreachable(Refusal.PORT_UNREACHABLE, version, source, 1, destination, 2, b"x" * 2000)
    sent = bed.take()
    assert len(sent) == 50
    assert (bed.count(Cell.ICMP_ERRORS_SENT), bed.count(Cell.DROP_RATE_LIMIT)) == (50, 10)
    assert tuple(sent[0][10 + at : 12 + at]) == ((1, 4) if version == 6 else (3, 3))
    assert len(sent[0]) == 10 + whole
    offending = _df(packets.udp(app, 1, remote, 2, b"x" * 2000))
    assert sent[0][10 + at + 8 :] == offending[: whole - at - 8]
    expected = packets.icmp(remote, app, *((1, 4) if version == 6 else (3, 3)), bytes(4) + offending[: whole - at - 8])
    assert sent[0][10 + at :] == expected[at:]  # the checksum too


def test_unreachable_about_a_segment_is_a_soft_error() -> None:
    bed = Bed()
    _, upstream = bed.established()
    upstream.send(b"x", bed.now)
    (sent,) = bed.take()
    assert bed.give(VIRTIO_NONE + packets.icmp_error("10.0.0.1", REMOTE, sent[10:38])) == []
    assert upstream.closed is None


# anything at all


@given(st.binary(max_size=120))
def test_random_bytes_raise_nothing(data: bytes) -> None:
    bed = Bed()
    bed.give(data)


def _valid_packets() -> list[bytes]:
    return [
        packets.tcp(APP, 40000, REMOTE, 443, b"data", sequence=1001, options=b"\2\4\5\xb4\4\2\3\3\7\1\1\1"),
        packets.tcp(APP, 40000, REMOTE, 443, sequence=1001, flags=SYN, options=b"\1\1\x08\x0a" + bytes(8)),
        packets.tcp(APP6, 40000, REMOTE6, 443, b"data"),
        packets.udp(APP, 1, REMOTE, 2, b"data"),
        packets.udp(APP6, 1, REMOTE6, 2, b"data"),
        packets.icmp_echo(APP, REMOTE, 1),
        packets.icmp_echo(APP6, REMOTE6, 1),
        packets.icmp_error(APP, REMOTE, packets.tcp(REMOTE, 443, APP, 40000)[:28]),
        packets.icmp(APP, REMOTE, 3, 4, b"\0\0\2\0" + packets.tcp(REMOTE, 443, APP, 40000)[:28]),
        packets.icmp(APP6, REMOTE6, 2, 0, b"\0\0\5\0" + packets.tcp(REMOTE6, 443, APP6, 40000)[:48]),
        packets.ipv6(APP6, REMOTE6, 6, bytes(20), extensions=((0, packets.extension()), (43, packets.extension()))),
    ]


@given(
    st.sampled_from(_valid_packets()),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 1, 4, 5]),
    st.integers(0, 2000),
)
def test_damaged_packets_raise_nothing(
    packet: bytes, damage: list[tuple[int, int]], cut: int, flags: int, gso_type: int, gso_size: int
) -> None:
    bed = Bed()
    _, upstream = bed.established()
    buffer = bytearray(packet)
    for at, value in damage:
        if at < len(buffer):
            buffer[at] = value
    bed.give(struct.pack("=BBHHHH", flags, gso_type, 0, gso_size, 0, 0) + bytes(buffer[: max(len(buffer) - cut, 0)]))
    bed.advance(1)
    assert upstream.closed in (None, CloseReason.RESET)


def test_transfer_in_both_directions_at_once() -> None:
    bed = Bed(offload=True, mtu=65535)
    peer = TcpPeer(mss=65495)
    peer.connect(bed.now)
    bed.exchange(peer)
    upstream = bed.upstreams[0]
    data = bytes(range(256)) * 4000
    peer.write(data, bed.now)
    upstream.send(data[::-1], bed.now)
    bed.exchange(peer, rounds=1000)
    assert upstream.received == data
    assert peer.received == data[::-1]
