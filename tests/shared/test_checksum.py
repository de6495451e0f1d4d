"""shared/wire/checksum.py against the loop of RFC 1071, and against its example."""

from hypothesis import given
from hypothesis import strategies as st

from shared.wire.checksum import checksum, ones_sum, pseudo_header_sum
from tests.support.packets import TCP, UDP, internet_checksum, packed, tcp, udp

ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


def folded(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_example_of_rfc_1071() -> None:
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@given(data=st.binary(max_size=3000), initial=st.integers(0, 0xFFFF))
def test_sum_equals_the_loop(data: bytes, initial: int) -> None:
    expected = folded((internet_checksum(data) ^ 0xFFFF) + initial)
    for form in (data, bytearray(data), memoryview(b"x" + data)[1:]):
        assert ones_sum(form, initial) == expected
        assert checksum(form, initial) == expected ^ 0xFFFF


def test_sum_of_nothing_but_zeros_is_zero_and_of_all_ones_is_not() -> None:
    assert ones_sum(bytes(20)) == 0
    assert ones_sum(b"\xff" * 20) == 0xFFFF
    assert ones_sum(b"\0\1\xff\xfe") == 0xFFFF
    assert ones_sum(b"") == 0


@given(data=st.binary(min_size=2, max_size=500))
def test_data_with_its_checksum_sums_to_all_ones(data: bytes) -> None:
    data = data[: len(data) & ~1]
    assert ones_sum(data + checksum(data).to_bytes(2, "big")) == 0xFFFF


@given(data=st.binary(max_size=200), more=st.binary(max_size=200), initial=st.integers(0, 0xFFFF))
def test_sum_may_be_made_in_parts_at_even_places(data: bytes, more: bytes, initial: int) -> None:
    data = data[: len(data) & ~1]
    assert ones_sum(more, ones_sum(data, initial)) == ones_sum(data + more, initial)


@given(source=ADDRESSES, payload=st.binary(max_size=100), data=st.data())
def test_pseudo_header_completes_the_checksum_of_a_segment(source: bytes, payload: bytes, data: st.DataObject) -> None:
    destination = data.draw(st.binary(min_size=len(source), max_size=len(source)))
    header = 20 if len(source) == 4 else 40
    for packet, protocol in (
        (tcp(source, 1, destination, 2, payload), TCP),
        (udp(source, 1, destination, 2, payload), UDP),
    ):
        segment = packet[header:]
        assert ones_sum(segment, pseudo_header_sum(source, destination, protocol, len(segment))) == 0xFFFF


def test_damage_is_seen() -> None:
    packet = tcp("192.0.2.1", 1, "192.0.2.2", 2, b"payload")
    initial = pseudo_header_sum(packed("192.0.2.1"), packed("192.0.2.2"), TCP, len(packet) - 20)
    for at in range(20, len(packet)):
        damaged = bytearray(packet)
        damaged[at] ^= 0x10
        assert ones_sum(damaged[20:], initial) != 0xFFFF
