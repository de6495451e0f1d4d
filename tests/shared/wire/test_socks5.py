"""The SOCKS5 datagram header, addresses and fragments: round trips, every cut, and garbage."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.socks5 import (
    DOMAIN,
    IPV4,
    IPV6,
    REASSEMBLY_TIMEOUT,
    Reassembler,
    encode_address,
    encode_udp_header,
    max_datagram,
    parse_address,
    parse_udp_header,
    split_datagram,
)

PEER = ip_address("192.0.2.1").packed
addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
ports = st.integers(0, 65535)


def test_the_header_is_as_in_rfc_1928() -> None:
    assert encode_udp_header(PEER, 53) == bytes.fromhex("0000 00 01 c0000201 0035")
    assert encode_udp_header(bytes(15) + b"\1", 53) == bytes.fromhex("0000 00 04 00000000000000000000000000000001 0035")


@given(addresses, ports, st.binary(max_size=50))
def test_header_round_trip(address: bytes, port: int, payload: bytes) -> None:
    datagram = encode_udp_header(address, port) + payload
    header = parse_udp_header(memoryview(datagram))
    assert header is not None
    kind = IPV4 if len(address) == 4 else IPV6
    assert header == (0, kind, address, port, len(datagram) - len(payload))


@given(addresses, ports)
def test_an_address_is_incomplete_up_to_its_last_byte(address: bytes, port: int) -> None:
    whole = encode_address(address, port)
    assert all(parse_address(whole[:n], 0) is None for n in range(len(whole)))
    assert parse_address(b"?" + whole + b"?", 1) == (whole[0], address, port, len(whole) + 1)


def test_a_name_is_parsed_as_such() -> None:
    encoded = b"\3\4host\0\x50"
    assert parse_address(encoded, 0) == (DOMAIN, b"host", 80, 8)
    assert parse_udp_header(memoryview(b"\0\0\0" + encoded + b"data")) == (0, DOMAIN, b"host", 80, 11)


@given(st.binary(max_size=40))
def test_garbage_is_none_or_a_header_within_the_datagram(datagram: bytes) -> None:
    try:
        header = parse_udp_header(memoryview(datagram))
    except ValueError:
        pytest.fail("a datagram of the network must not raise")
    assert header is None or header[4] <= len(datagram)


@pytest.mark.parametrize(
    ("address", "over_ipv6", "size"), [(PEER, False, 65_507), (bytes(16), False, 65_507), (bytes(16), True, 65_507)]
)
def test_the_largest_datagram_travels_in_fragments(address: bytes, over_ipv6: bool, size: int) -> None:
    payload = bytes(range(251)) * 261
    limit = max_datagram(over_ipv6)
    header = encode_udp_header(address, 9)
    reassembler = Reassembler()
    fragments = [header + piece for header, piece in split_datagram(header, memoryview(payload)[:size], limit)]
    assert all(len(fragment) <= limit for fragment in fragments)
    assert [fragment[2] for fragment in fragments] == [1, 2 | 0x80]
    results = []
    for fragment in fragments:
        parsed = parse_udp_header(memoryview(fragment))
        assert parsed is not None
        results.append(reassembler.add(parsed[0], parsed[2], parsed[3], memoryview(fragment)[parsed[4] :], 0.0))
    assert results == [None, payload[:size]]


def reassemble(*fragments: tuple[int, bytes, float]) -> list[bytes | None]:
    """Give (FRAG, data, now) to a fresh Reassembler; what it returned each time."""
    reassembler = Reassembler()
    results = (reassembler.add(fragment, PEER, 9, memoryview(data), now) for fragment, data, now in fragments)
    return [bytes(whole) if whole is not None else None for whole in results]


def test_fragments_join_in_order() -> None:
    assert reassemble((1, b"a", 0.0), (2, b"b", 1.0), (0x83, b"c", 2.0)) == [None, None, b"abc"]


def test_a_single_last_fragment_is_a_datagram() -> None:
    assert reassemble((0x81, b"a", 0.0)) == [b"a"]


def test_a_missing_fragment_abandons_the_queue() -> None:
    assert reassemble((1, b"a", 0.0), (0x83, b"c", 0.0), (0x82, b"b", 0.0)) == [None, None, None]


def test_a_first_fragment_begins_anew() -> None:
    assert reassemble((1, b"old", 0.0), (1, b"a", 0.0), (0x82, b"b", 0.0)) == [None, None, b"ab"]


def test_late_fragments_are_abandoned() -> None:
    assert reassemble((1, b"a", 0.0), (0x82, b"b", REASSEMBLY_TIMEOUT)) == [None, None]


def test_fragments_of_two_peers_are_not_joined() -> None:
    reassembler = Reassembler()
    assert reassembler.add(1, PEER, 9, memoryview(b"a"), 0.0) is None
    assert reassembler.add(0x82, PEER, 10, memoryview(b"b"), 0.0) is None


def test_a_queue_is_bounded_by_the_largest_datagram() -> None:
    piece = bytes(40_000)
    assert reassemble((1, piece, 0.0), (2, piece, 0.0), (0x83, b"", 0.0)) == [None, None, None]
