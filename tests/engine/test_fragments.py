"""engine/fragments.py: whole datagrams out of any order, and nothing held beyond its bounds."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.flow import Fragment, Malformed, flow_key
from engine.fragments import MAX_DATAGRAMS, MAX_PIECES, TIMEOUT, Reassembler
from tests.support.packets import (
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
    UDP,
    VIRTIO_NONE,
    extension,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    udp,
)

A4, B4 = "192.0.2.1", "198.51.100.7"
A6, B6 = "2001:db8::1", "2001:db8:ffff::7"

extension_chains = st.lists(
    st.tuples(st.sampled_from([HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS]), st.sampled_from([8, 16, 24]).map(extension)),
    max_size=3,
).map(tuple)
piece_sizes = st.lists(st.integers(1, 60).map(lambda n: n * 8), min_size=1, max_size=12)


def add(reassembler: Reassembler, packet: bytes, now: float = 0.0) -> bytes | None:
    """Give one fragment as the engine does: with virtio header; return the whole packet without it."""
    whole = reassembler.add(memoryview(VIRTIO_NONE + packet), now)
    if whole is None:
        return None
    assert whole[:10] == VIRTIO_NONE
    return whole[10:]


def add_all(reassembler: Reassembler, fragments: list[bytes], now: float = 0.0) -> list[bytes]:
    return [whole for packet in fragments if (whole := add(reassembler, packet, now)) is not None]


def piece4(at: int, payload: bytes, *, more: bool = True, identification: int = 7) -> bytes:
    return ipv4(A4, B4, UDP, payload, identification=identification, fragment_field=at // 8 | (0x2000 if more else 0))


def piece6(at: int, payload: bytes, *, more: bool = True, identification: int = 7, following: int = UDP) -> bytes:
    return ipv6(A6, B6, following, payload, extensions=((FRAGMENT, struct.pack("!BHI", 0, at | more, identification)),))


# whole datagrams


@given(payload=st.binary(min_size=9, max_size=3000), sizes=piece_sizes, options=st.binary(max_size=12), data=st.data())
def test_any_order_of_ipv4_fragments_gives_the_packet(
    payload: bytes, sizes: list[int], options: bytes, data: st.DataObject
) -> None:
    packet = ipv4(A4, B4, UDP, payload, options=options, identification=0x1234, ttl=17)
    fragments = data.draw(st.permutations(ipv4_fragments(packet, sizes, 0x1234)))
    reassembler = Reassembler()
    if len(fragments) > 1:
        assert add_all(reassembler, fragments) == [packet]
    assert reassembler.bytes_held == reassembler.dropped == 0


@given(payload=st.binary(min_size=9, max_size=3000), sizes=piece_sizes, chain=extension_chains, data=st.data())
def test_any_order_of_ipv6_fragments_gives_the_packet(
    payload: bytes, sizes: list[int], chain: tuple[tuple[int, bytes], ...], data: st.DataObject
) -> None:
    fragments = data.draw(st.permutations(ipv6_fragments(A6, B6, UDP, payload, sizes, 99, extensions=chain)))
    reassembler = Reassembler()
    assert add_all(reassembler, fragments) == [ipv6(A6, B6, UDP, payload, extensions=chain)]
    assert reassembler.bytes_held == reassembler.dropped == 0


@given(seed=st.integers(0, 2**32 - 1))
def test_interleaved_datagrams_do_not_mix(seed: int) -> None:
    """Same addresses, other identification; same identification, other protocol; and both versions at once."""
    chooser = random.Random(seed)
    packets = [
        ipv4(A4, B4, protocol, chooser.randbytes(500), identification=number)
        for number in (1, 2)
        for protocol in (UDP, 132)
    ]
    fragments = [piece for packet in packets for piece in ipv4_fragments(packet, [64, 200], packet[5])]
    payloads6 = [chooser.randbytes(400) for _ in range(2)]
    for number, payload in enumerate(payloads6):
        fragments += ipv6_fragments(A6, B6, UDP, payload, [160], number)
        packets.append(ipv6(A6, B6, UDP, payload))
    chooser.shuffle(fragments)
    assert sorted(add_all(Reassembler(), fragments)) == sorted(packets)


def test_largest_datagram_of_each_version_is_reassembled() -> None:
    packet = udp(A4, 1, B4, 2, random.Random(1).randbytes(65507))
    assert len(packet) == 65535
    assert add_all(Reassembler(), ipv4_fragments(packet, [1480] * 44, 1)) == [
        packet[:4] + b"\0\1" + packet[6:10] + internet_sum_with_id(packet) + packet[12:]
    ]
    packet = udp(A6, 1, B6, 2, random.Random(2).randbytes(65527))
    assert len(packet) == 40 + 65535
    assert add_all(Reassembler(), ipv6_fragments(A6, B6, UDP, packet[40:], [1232] * 53, 1)) == [packet]


def internet_sum_with_id(packet: bytes) -> bytes:
    """Header checksum of an IPv4 packet whose identification is changed from 0 to 1."""
    return ipv4(packet[12:16], packet[16:20], packet[9], packet[20:], identification=1)[10:12]


def test_whole_packet_has_the_flow_of_its_datagram() -> None:
    packet = udp(A6, 5353, B6, 53, bytes(2000))
    (whole,) = add_all(Reassembler(), ipv6_fragments(A6, B6, UDP, packet[40:], [1232], 5))
    assert flow_key(memoryview(VIRTIO_NONE + whole)) == flow_key(memoryview(VIRTIO_NONE + packet))


def test_atomic_fragment_is_whole_and_leaves_others_of_its_number_alone() -> None:
    """RFC 6946 (4): offset 0 and no more fragments, with the identification of a datagram under way."""
    reassembler = Reassembler()
    assert add(reassembler, piece6(0, b"a" * 16)) is None
    assert add(reassembler, piece6(0, b"atomic!!!", more=False)) == ipv6(A6, B6, UDP, b"atomic!!!")
    assert add(reassembler, piece6(16, b"b" * 5, more=False)) == ipv6(A6, B6, UDP, b"a" * 16 + b"b" * 5)


def test_exact_duplicate_does_no_harm() -> None:
    reassembler = Reassembler()
    packet = ipv4(A4, B4, UDP, bytes(range(200)), identification=3)
    first, second, third = ipv4_fragments(packet, [64, 64], 3)
    assert add_all(reassembler, [first, first, third, third, first, second]) == [packet]
    assert (reassembler.bytes_held, reassembler.dropped) == (0, 3)


def test_identification_is_free_again_after_completion() -> None:
    reassembler = Reassembler()
    for filler in (b"x", b"y"):
        packet = ipv4(A4, B4, UDP, filler * 100, identification=3)
        assert add_all(reassembler, ipv4_fragments(packet, [80], 3)) == [packet]


# what is refused


@pytest.mark.parametrize("piece", [piece4, piece6])
@pytest.mark.parametrize(("at", "size"), [(0, 64), (8, 8), (56, 16), (64, 8), (120, 64), (0, 200)])
def test_overlap_condemns_the_datagram(piece, at: int, size: int) -> None:  # type: ignore[no-untyped-def]
    reassembler = Reassembler()
    assert add_all(reassembler, [piece(0, b"A" * 64), piece(64, b"B" * 64), piece(at, b"C" * size)]) == []
    assert reassembler.bytes_held == 0
    assert reassembler.dropped == 3
    assert add_all(reassembler, [piece(0, b"A" * 64), piece(64, b"B" * 64), piece(128, b"D", more=False)]) == []
    assert reassembler.dropped == 6, "fragments of a condemned datagram are dropped too"


@pytest.mark.parametrize("piece", [piece4, piece6])
def test_piece_behind_the_end_is_never_part_of_the_packet(piece) -> None:  # type: ignore[no-untyped-def]
    """Holes whose bytes are made up for by a piece beyond the last one: the sum of sizes agrees, the places do not."""
    pieces = [piece(0, b"A" * 800), piece(2000, b"X" * 400), piece(1200, b"L" * 100, more=False)]
    for order in (pieces, pieces[::-1], [pieces[2], pieces[0], pieces[1]]):
        reassembler = Reassembler()
        assert add_all(reassembler, order) == []
        assert reassembler.bytes_held == 0


@pytest.mark.parametrize(
    "fragments",
    [
        pytest.param([piece4(0, b"A" * 65)], id="more to come, but no multiple of 8"),
        pytest.param([piece4(64, b"")], id="no payload"),
        pytest.param([piece4(65528, b"B" * 2000, more=False)], id="beyond 65,535 bytes"),
        pytest.param([piece4(64, b"C" * 8, more=False), piece4(80, b"D" * 8, more=False)], id="two ends"),
        pytest.param([piece6(0, b"A" * 12)], id="IPv6: more to come, but no multiple of 8"),
        pytest.param([piece6(65528, b"B" * 100, more=False)], id="IPv6: beyond 65,535 bytes"),
    ],
)
def test_contradiction_is_counted_and_not_held(fragments: list[bytes]) -> None:
    reassembler = Reassembler()
    assert add_all(reassembler, fragments) == []
    assert reassembler.bytes_held == 0
    assert reassembler.dropped == len(fragments)


def test_ipv4_packet_longer_than_its_length_field_can_say_is_dropped() -> None:
    """Offset and size are legal each; with the header it is 65,536 bytes."""
    reassembler = Reassembler()
    payload = bytes(65516)
    fragments = [piece4(at, payload[at : at + 8000], more=at < 64000) for at in range(0, 65516, 8000)]
    assert add_all(reassembler, fragments) == []
    assert (reassembler.bytes_held, reassembler.dropped) == (0, len(fragments))


def test_truncated_fragment_header_is_dropped() -> None:
    reassembler = Reassembler()
    whole = piece6(0, b"A" * 16)
    for size in range(40, 48):
        cut = whole[:4] + (size - 40).to_bytes(2, "big") + whole[6:size]
        assert add(reassembler, cut) is None
    assert reassembler.dropped == 8


# bounds


@pytest.mark.parametrize("piece", [piece4, piece6])
def test_hole_expires(piece) -> None:  # type: ignore[no-untyped-def]
    reassembler = Reassembler()
    assert add_all(reassembler, [piece(0, b"A" * 64), piece(128, b"C", more=False)], now=100.0) == []
    reassembler.expire(100.0 + TIMEOUT - 0.001)
    assert reassembler.bytes_held == 65
    reassembler.expire(100.0 + TIMEOUT)
    assert (reassembler.bytes_held, reassembler.dropped) == (0, 2)
    assert add(reassembler, piece(64, b"B" * 64), now=100.0 + TIMEOUT) is None, "it must not meet the old pieces"


def test_bytes_held_stay_below_the_bound_and_the_newest_survive() -> None:
    reassembler = Reassembler(max_bytes=10_000)
    for number in range(100):
        add(reassembler, piece4(0, b"A" * 1000, identification=number), now=float(number) / 10)
        assert reassembler.bytes_held <= 10_000
    assert reassembler.dropped == 90
    assert add(reassembler, piece4(1000, b"Z", more=False, identification=99), now=10.0) is not None
    assert add(reassembler, piece4(1000, b"Z", more=False, identification=0), now=10.0) is None


def test_number_of_datagrams_is_bounded_even_when_they_hold_nothing() -> None:
    """Refused datagrams are remembered, but hold no bytes: the bound on bytes would let them grow without end."""
    reassembler = Reassembler()
    for number in range(3 * MAX_DATAGRAMS):
        add(reassembler, piece6(8, b"", identification=number))
        assert len(reassembler._datagrams) <= MAX_DATAGRAMS
    assert reassembler.bytes_held == 0


def test_number_of_pieces_is_bounded() -> None:
    reassembler = Reassembler()
    add_all(reassembler, [piece4(8 * n, b"A" * 8) for n in range(MAX_PIECES)])
    assert reassembler.bytes_held == 8 * MAX_PIECES
    add(reassembler, piece4(8 * MAX_PIECES, b"A" * 8))
    assert (reassembler.bytes_held, reassembler.dropped) == (0, MAX_PIECES + 1)


# fuzzing: whatever flow_key calls a fragment, the reassembler survives


@st.composite
def mutated_fragments(draw: st.DrawFn) -> bytes:
    packet = bytearray(
        draw(
            st.one_of(
                st.builds(piece4, st.integers(0, 0x1FFF).map(lambda n: n * 8), st.binary(max_size=80), more=st.booleans()),
                st.builds(piece6, st.integers(0, 0x1FFF).map(lambda n: n * 8), st.binary(max_size=80), more=st.booleans()),
                extension_chains.map(
                    lambda chain: ipv6_fragments(A6, B6, UDP, bytes(100), [48], 7, extensions=chain)[0]
                ),
            )
        )
    )  # fmt: skip
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(packet) - 1), st.integers(0, 255)), max_size=4)):
        packet[at] = value
    return bytes(packet[: draw(st.integers(0, len(packet)))] if draw(st.booleans()) else packet)


@settings(max_examples=300, deadline=None)
@given(packets=st.lists(mutated_fragments(), max_size=12), step=st.floats(0, 20))
def test_fuzzed_fragments_raise_nothing_and_are_given_back(packets: list[bytes], step: float) -> None:
    reassembler = Reassembler(max_bytes=200)
    now = 0.0
    for packet in packets:
        now += step
        try:
            flow_key(memoryview(VIRTIO_NONE + packet))
        except Malformed:
            continue
        except Fragment:
            whole = add(reassembler, packet, now)
            assert whole is None or len(whole) <= 40 + 65535
        assert 0 <= reassembler.bytes_held <= 200
    reassembler.expire(now + TIMEOUT)
    assert reassembler.bytes_held == 0
