"""engine/flow.py: packets of one flow have one key, in every shape; garbage is Malformed, never another exception."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.flow import EXTENSIONS_MAX, Fragment, Malformed, flow_key
from tests.support.packets import (
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    ICMPV6,
    ROUTING,
    TCP,
    UDP,
    VIRTIO_NONE,
    extension,
    icmp,
    icmp_echo,
    icmp_error,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    packed,
    tcp,
    udp,
)

A4, B4, C4 = "192.0.2.1", "198.51.100.7", "203.0.113.99"
A6, B6, C6 = "2001:db8::1", "2001:db8:ffff::7", "2001:db8:eeee::3"
PAIRS = pytest.mark.parametrize(("here", "there", "router"), [(A4, B4, C4), (A6, B6, C6)], ids=["IPv4", "IPv6"])


def key(packet: bytes) -> bytes:
    return flow_key(memoryview(VIRTIO_NONE + packet))


def refusal(packet: bytes) -> type[Exception] | None:
    """The documented exception that `packet` raises, if it does. Any other one fails the test."""
    try:
        key(packet)
    except (Malformed, Fragment) as error:
        return type(error)
    return None


# the key


@PAIRS
def test_tcp_key_is_the_four_tuple(here: str, there: str, router: str) -> None:
    first = key(tcp(here, 1000, there, 443, flags=2))
    assert first == packed(here) + packed(there) + (1000).to_bytes(2, "big") + (443).to_bytes(2, "big")
    assert key(tcp(here, 1000, there, 443, b"data", sequence=99)) == first
    others = [(here, 1001, there, 443), (here, 1000, there, 444), (here, 1000, router, 443), (router, 1000, there, 443)]
    assert first not in [key(tcp(*four)) for four in others]


@PAIRS
def test_udp_key_is_the_source_alone(here: str, there: str, router: str) -> None:
    first = key(udp(here, 5000, there, 53))
    assert first == key(udp(here, 5000, router, 123, b"elsewhere"))
    assert first not in [key(udp(here, 5001, there, 53)), key(udp(router, 5000, there, 53))]


@PAIRS
def test_echo_key_is_addresses_and_identifier(here: str, there: str, router: str) -> None:
    first = key(icmp_echo(here, there, 7, sequence=1))
    assert first == key(icmp_echo(here, there, 7, sequence=2, data=b"other"))
    assert first not in [key(icmp_echo(here, there, 8)), key(icmp_echo(here, router, 7))]


@PAIRS
@pytest.mark.parametrize("cut", [1500, 64, 44])
def test_error_has_the_key_of_the_flow_it_quotes(here: str, there: str, router: str, cut: int) -> None:
    """The application's host complains about a packet that came out of the tun: from `there`, to `here`."""
    quoted_tcp, quoted_udp = tcp(there, 443, here, 1000, bytes(100)), udp(there, 53, here, 5000, bytes(100))
    assert key(icmp_error(here, there, quoted_tcp[:cut])) == key(tcp(here, 1000, there, 443))
    assert key(icmp_error(here, there, quoted_udp[:cut])) == key(udp(here, 5000, there, 53))


def test_ipv4_error_quotes_header_and_eight_bytes_at_least() -> None:
    quoted = tcp(B4, 443, A4, 1000)
    assert key(icmp_error(A4, B4, quoted[:28])) == key(tcp(A4, 1000, B4, 443))
    assert refusal(icmp_error(A4, B4, quoted[:23])) is Malformed


@PAIRS
def test_error_about_a_fragment_goes_by_its_addresses(here: str, there: str, router: str) -> None:
    datagram = udp(there, 53, here, 5000, bytes(200))
    cut = ipv4_fragments(datagram, [80], 7) if "." in here else ipv6_fragments(there, here, UDP, datagram[40:], [80], 7)
    assert key(icmp_error(here, there, cut[1])) == packed(here) + packed(there)


def test_error_within_an_error_goes_by_its_addresses() -> None:
    inner = icmp_error(B4, A4, tcp(A4, 1, B4, 2))
    assert key(icmp_error(A4, B4, inner)) == packed(A4) + packed(B4)


@PAIRS
def test_error_about_an_echo_reply_has_the_key_of_the_echo(here: str, there: str, router: str) -> None:
    kind = 0 if "." in here else 129
    reply = icmp(there, here, kind, 0, bytes((0, 7, 0, 1)))
    assert key(icmp_error(here, there, reply)) == key(icmp_echo(here, there, 7))


@PAIRS
def test_other_protocols_go_by_their_addresses(here: str, there: str, router: str) -> None:
    build = ipv4 if "." in here else ipv6
    for protocol in (2, 50, 132):
        assert key(build(here, there, protocol, bytes(40))) == packed(here) + packed(there)


@given(options=st.binary(max_size=40))
def test_ipv4_options_do_not_change_the_key(options: bytes) -> None:
    plain = tcp(A4, 1000, B4, 443)
    assert key(ipv4(A4, B4, TCP, plain[20:], options=options)) == key(plain)


extension_chains = st.lists(
    st.tuples(st.sampled_from([HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS]), st.integers(1, 40).map(lambda n: extension(n * 8))),
    max_size=EXTENSIONS_MAX - 1,
).map(tuple)  # fmt: skip


@given(chain=extension_chains)
def test_extension_headers_do_not_change_the_key(chain: tuple[tuple[int, bytes], ...]) -> None:
    for plain, protocol in (
        (tcp(A6, 1000, B6, 443), TCP),
        (udp(A6, 5000, B6, 53), UDP),
        (icmp_echo(A6, B6, 7), ICMPV6),
    ):
        assert key(ipv6(A6, B6, protocol, plain[40:], extensions=chain)) == key(plain)


# fragments and garbage


@PAIRS
def test_every_fragment_is_told_from_a_whole_packet(here: str, there: str, router: str) -> None:
    datagram = udp(here, 5000, there, 53, bytes(300))
    if "." in here:
        fragments = ipv4_fragments(datagram, [80, 80], 7)
    else:
        fragments = ipv6_fragments(
            here, there, UDP, datagram[40:], [80, 80], 7, extensions=((HOP_BY_HOP, extension(16)),)
        )
    assert [refusal(fragment) for fragment in fragments] == [Fragment] * 3


def test_dont_fragment_and_reserved_flags_make_no_fragment() -> None:
    segment = tcp(A4, 1, B4, 2)[20:]
    assert refusal(ipv4(A4, B4, TCP, segment, fragment_field=0xC000)) is None


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="empty"),
        pytest.param(tcp(A4, 1, B4, 2)[:19], id="IPv4 header cut"),
        pytest.param(b"\x44" + tcp(A4, 1, B4, 2)[1:], id="IPv4 header of 16 bytes"),
        pytest.param(b"\x4f" + tcp(A4, 1, B4, 2)[1:], id="IPv4 header longer than the packet"),
        pytest.param(tcp(A4, 1, B4, 2, b"data")[:-1], id="IPv4 total length beyond the packet"),
        pytest.param(tcp(A4, 1, B4, 2)[:2] + b"\0\x13" + tcp(A4, 1, B4, 2)[4:], id="IPv4 total length below the header"),
        pytest.param(ipv4(A4, B4, TCP, b"abc"), id="IPv4 ports cut"),
        pytest.param(ipv4(A4, B4, ICMP, b"\x08\0\0\0\0\0\0"), id="ICMP cut"),
        pytest.param(icmp_error(A4, B4, b""), id="ICMP error that quotes nothing"),
        pytest.param(icmp_error(A4, B4, b"\x55" + bytes(60)), id="ICMP error that quotes IP version 5"),
        pytest.param(b"\x55" + bytes(60), id="IP version 5"),
        pytest.param(tcp(A6, 1, B6, 2)[:39], id="IPv6 header cut"),
        pytest.param(tcp(A6, 1, B6, 2, b"data")[:-1], id="IPv6 payload length beyond the packet"),
        pytest.param(ipv6(A6, B6, UDP, b"abc"), id="IPv6 ports cut"),
        pytest.param(ipv6(A6, B6, HOP_BY_HOP, b"\x06\0\0\0\0\0\0"), id="IPv6 extension header cut"),
        pytest.param(ipv6(A6, B6, HOP_BY_HOP, b"\x06\xff" + bytes(6)), id="IPv6 extension header beyond the packet"),
        pytest.param(ipv6(A6, B6, ROUTING, b""), id="IPv6 extension header behind the end"),
        pytest.param(ipv6(A6, B6, HOP_BY_HOP, bytes((ROUTING, 255)) + bytes(6)), id="IPv6 chain that leaves the packet"),
        pytest.param(
            ipv6(A6, B6, TCP, bytes(20), extensions=((ROUTING, extension()),) * (EXTENSIONS_MAX + 1)), id="endless chain"
        ),
    ],
)  # fmt: skip
def test_garbage_is_malformed(packet: bytes) -> None:
    assert refusal(packet) is Malformed


def test_chain_that_names_a_fragment_beyond_the_packet_is_no_other_error() -> None:
    assert refusal(ipv6(A6, B6, HOP_BY_HOP, bytes((FRAGMENT, 255)) + bytes(6))) in (Malformed, Fragment)


SEEDS = [
    tcp(A4, 1, B4, 2, b"data"),
    udp(A4, 1, B4, 2, b"data"),
    icmp_echo(A4, B4, 3),
    icmp_error(A4, B4, tcp(B4, 2, A4, 1)),
    icmp(A4, B4, 11, 0, bytes(4) + udp(B4, 2, A4, 1)),
    ipv4(A4, B4, TCP, bytes(20), options=bytes(40)),
    *ipv4_fragments(udp(A4, 1, B4, 2, bytes(64)), [32], 7),
    tcp(A6, 1, B6, 2, b"data"),
    udp(A6, 1, B6, 2, b"data"),
    icmp_error(A6, B6, tcp(B6, 2, A6, 1)),
    icmp_error(A6, B6, ipv6(B6, A6, TCP, bytes(20), extensions=((HOP_BY_HOP, extension(16)),))),
    ipv6(A6, B6, UDP, bytes(8), extensions=((HOP_BY_HOP, extension(24)), (ROUTING, extension()))),
    *ipv6_fragments(A6, B6, UDP, bytes(64), [32], 7, extensions=((DESTINATION_OPTIONS, extension(16)),)),
]


# Most bytes mean nothing, a few make a chain of headers.
values = st.integers(0, 255) | st.sampled_from([HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS, ICMPV6, TCP, UDP])


@settings(max_examples=500)
@given(
    packet=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 200), values), max_size=6),
    size=st.integers(0, 200),
)
def test_mutated_packet_raises_only_the_documented_exceptions(
    packet: bytes, changes: list[tuple[int, int]], size: int
) -> None:
    mutated = bytearray(packet)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    refusal(bytes(mutated))
    refusal(bytes(mutated[:size]))


@settings(max_examples=300)
@given(first=st.sampled_from([0x45, 0x46, 0x4F, 0x60, 0x6F]), rest=st.binary(max_size=200))
def test_random_bytes_raise_only_the_documented_exceptions(first: int, rest: bytes) -> None:
    refusal(bytes((first,)) + rest)
    refusal(bytes((first,)) + rest[:6] + bytes((HOP_BY_HOP,)) + rest[7:])


@given(size=st.integers(0, 9))
def test_packet_shorter_than_its_virtio_header_is_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        flow_key(memoryview(bytes(size)))
