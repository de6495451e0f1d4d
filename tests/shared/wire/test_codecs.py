"""Codecs against independent builders (tests/support/packets.py), and against anything at all."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire import icmp, ip, tcp, udp
from shared.wire.checksum import checksum, ones_sum, pseudo_header_sum
from tests.support import packets

V4 = ("10.0.0.2", "203.0.113.10")
V6 = ("2001:db8::2", "2001:db8:1::10")
both_versions = pytest.mark.parametrize("addresses", [V4, V6])


@given(st.binary(max_size=200))
def test_checksum_is_that_of_the_obvious_loop(data: bytes) -> None:
    assert checksum(data) == packets.internet_checksum(data)


@given(st.binary(max_size=50), st.integers(0, 0xFFFF))
def test_sum_over_a_checksum_is_all_ones(data: bytes, start: int) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert ones_sum(even + checksum(even, start).to_bytes(2, "big"), start) == 0xFFFF


@both_versions
def test_ip_header_and_parse(addresses: tuple[str, str]) -> None:
    source, destination = map(packets.packed, addresses)
    version = 4 if len(source) == 4 else 6
    packet = ip.header(version, source, destination, 17, 5) + b"12345"
    for at in (0, 10):
        buffer = memoryview(bytes(at) + packet + b"padding")
        parsed = ip.parse(buffer, at, verify=True)
        assert parsed == (version, 17, source, destination, at + len(packet) - 5, at + len(packet), False)


@pytest.mark.parametrize("cut", [1, 15, 20, 30, 40])
@both_versions
def test_packet_cut_short_is_malformed(addresses: tuple[str, str], cut: int) -> None:
    packet = packets.udp(*addresses[:1], 1, addresses[1], 2, b"x" * 20)
    assert ip.parse(memoryview(packet[:-cut]), 0, verify=False) is None


@pytest.mark.parametrize("kind", [packets.HOP_BY_HOP, packets.ROUTING, packets.DESTINATION_OPTIONS])
def test_extension_headers_are_skipped(kind: int) -> None:
    packet = packets.ipv6(*V6, 6, b"segment", extensions=((kind, packets.extension(24)), (60, packets.extension())))
    parsed = ip.parse(memoryview(packet), 0, verify=True)
    assert parsed is not None
    assert (parsed.protocol, bytes(packet[parsed.payload_at : parsed.end])) == (6, b"segment")


def test_routing_header_that_is_not_done_is_malformed() -> None:
    contents = bytearray(packets.extension())
    contents[2] = 1  # segments left
    packet = packets.ipv6(*V6, 6, b"segment", extensions=((packets.ROUTING, bytes(contents)),))
    assert ip.parse(memoryview(packet), 0, verify=True) is None


def test_endless_extension_headers_are_malformed() -> None:
    packet = packets.ipv6(*V6, 6, b"", extensions=((60, packets.extension()),) * 9)
    assert ip.parse(memoryview(packet), 0, verify=True) is None


@pytest.mark.parametrize(("field", "is_fragment"), [(0, False), (1, True), (8, True), (9, True)])
def test_ipv6_fragment_is_seen_and_an_atomic_one_is_whole(field: int, is_fragment: bool) -> None:
    contents = struct.pack("!BHI", 0, field, 7)
    packet = packets.ipv6(*V6, 17, bytes(8), extensions=((packets.FRAGMENT, contents),))
    parsed = ip.parse(memoryview(packet), 0, verify=True)
    assert parsed is not None
    assert parsed.is_fragment is is_fragment


@given(st.binary(max_size=100), st.booleans())
def test_parse_of_anything_raises_nothing(data: bytes, verify: bool) -> None:
    parsed = ip.parse(memoryview(data), 0, verify=verify)
    assert parsed is None or parsed.payload_at <= parsed.end <= len(data)


@given(st.integers(0, 3000), st.integers(576, 1500))
def test_fragments_are_those_of_the_obvious_cut(size: int, mtu: int) -> None:
    payload = memoryview(bytes(i % 256 for i in range(size)))
    source, destination = map(packets.packed, V4)
    parts = ip.fragments(4, source, destination, 17, payload, mtu, 99)
    step = (mtu - 20) // 8 * 8
    whole = packets.ipv4(*V4, 17, bytes(payload))
    expected = packets.ipv4_fragments(whole, [step] * (size // step + 1), 99) if size else []
    assert [head + bytes(part) for head, part in parts] == expected


# TCP


@both_versions
@given(
    seq=st.integers(0, 0xFFFFFFFF),
    flags=st.integers(0, 255),
    window=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=9),
)
def test_tcp_build(addresses: tuple[str, str], seq: int, flags: int, window: int, payload: bytes) -> None:
    flow = b"".join(map(packets.packed, addresses)) + b"\0\1\0\2"
    built = tcp.build(flow, seq=seq, ack=seq ^ 1, flags=flags, window=window, options=b"\1\1\1\1", payload=payload)
    expected = packets.tun_tcp(
        addresses[0], 1, addresses[1], 2, payload,
        sequence=seq, acknowledgment=seq ^ 1, flags=flags, window=window, options=b"\1\1\1\1",
    )  # fmt: skip
    at = 10 + (20 if addresses is V4 else 0)  # the IPv4 headers differ by the don't-fragment bit
    assert built[at:] == expected[at:]


def test_flow_key_is_reversed() -> None:
    assert tcp.reverse(b"AAAABBBBaabb") == b"BBBBAAAAbbaa"
    assert tcp.reverse(b"A" * 16 + b"B" * 16 + b"aabb") == b"B" * 16 + b"A" * 16 + b"bbaa"


options = st.builds(
    tcp.Options,
    mss=st.none() | st.integers(0, 0xFFFF),
    window_scale=st.none() | st.integers(0, 14),
    sack_permitted=st.booleans(),
    timestamps=st.none() | st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)),
    sack=st.just(()),
)


@given(options)
def test_syn_options_come_back(wanted: tcp.Options) -> None:
    data = tcp.syn_options(wanted)
    assert len(data) % 4 == 0
    assert tcp.parse_options(memoryview(data)) == wanted


@given(st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)), min_size=1, max_size=4))
def test_sack_blocks_come_back(blocks: list[tuple[int, int]]) -> None:
    parsed = tcp.parse_options(memoryview(tcp.sack_option(blocks)))
    assert parsed is not None
    assert parsed.sack == tuple(blocks)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", tcp.Options()),
        (b"\0\2\4\5\xb4", tcp.Options()),  # nothing counts after the end
        (b"\1\1\2\4\5\xb4", tcp.Options(mss=1460)),
        (b"\2\3\5\2\4\5\xb4", tcp.Options(mss=1460)),  # an MSS of wrong length is skipped
        (b"\xfd\4\xf9\x89\4\2", tcp.Options(sack_permitted=True)),  # an unknown one too
        (b"\3\3\x0f", tcp.Options(window_scale=14)),  # RFC 7323 2.3
        (b"\2", None),
        (b"\2\0", None),
        (b"\2\1", None),
        (b"\2\5\5\xb4", None),
    ],
)
def test_option_lists(data: bytes, expected: tcp.Options | None) -> None:
    assert tcp.parse_options(memoryview(data)) == expected


@given(st.binary(max_size=40))
def test_options_of_anything_raise_nothing(data: bytes) -> None:
    parsed = tcp.parse_options(memoryview(data))
    assert parsed is None or len(parsed.sack) <= 4


# UDP and ICMP


@both_versions
@given(payload=st.binary(max_size=50))
def test_udp_header(addresses: tuple[str, str], payload: bytes) -> None:
    source, destination = map(packets.packed, addresses)
    expected = packets.udp(addresses[0], 5000, addresses[1], 53, payload)
    assert udp.header(source, 5000, destination, 53, payload) + payload == expected[-8 - len(payload) :]


def test_udp_checksum_is_never_zero() -> None:
    source, destination = map(packets.packed, V4)
    rest = ones_sum(udp.header(source, 1, destination, 2, b"\0\0")[:6], pseudo_header_sum(source, destination, 17, 10))
    payload = (0xFFFF - rest).to_bytes(2, "big")
    assert udp.header(source, 1, destination, 2, payload)[6:] == b"\xff\xff"


@both_versions
@given(data=st.binary(max_size=50))
def test_icmp_header(addresses: tuple[str, str], data: bytes) -> None:
    source, destination = map(packets.packed, addresses)
    version = 4 if len(source) == 4 else 6
    head = icmp.header(version, source, destination, 3, 1, 0x00010002, data)
    expected = packets.icmp(addresses[0], addresses[1], 3, 1, b"\0\1\0\2" + data)
    assert head + data == expected[-8 - len(data) :]
    assert icmp.checksum_of(version, source, destination, head + data) == 0xFFFF
