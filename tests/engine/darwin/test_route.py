"""Messages to the kernel against those of a C program; messages from it, and dumps, made here as the kernel makes them."""

import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.darwin.gateway import DefaultRoute, default_route
from engine.darwin.route import (
    RTF_IFSCOPE,
    RTM_ADD,
    RTM_DELETE,
    RTM_GET,
    RTM_IFINFO,
    RTM_NEWADDR,
    Message,
    encode_default_query,
    encode_query,
    encode_route,
    parse_messages,
)
from engine.darwin.sockaddr import LinkAddress, encode_link
from tests.support.darwin.messages import link, route_message, sin, sin6, trimmed_mask

METRICS = 56 * "00"


def message(text: str) -> bytes:
    """The notation of the worked examples: words of hex, `Z56` for the metrics."""
    return bytes.fromhex(text.replace("Z56", METRICS).replace("\n", " "))


HALF = "10020000 80000000 0000000000000000"
TUN = "10020000 c6120001 0000000000000000"
ANY = "10020000 00000000 0000000000000000"

SENT = {
    "A": (
        encode_route(RTM_ADD, "0.0.0.0/1", "198.18.0.1", sequence=1),
        f"8c000501 0000 0000 03080000 07000000 00000000 01000000 00000000 00000000 00000000 Z56 {ANY} {TUN} {HALF}",
    ),
    "B, scoped": (
        encode_route(RTM_ADD, "0.0.0.0/1", "198.18.0.1", scope=15, sequence=1),
        f"8c000501 0f00 0000 03080001 07000000 00000000 01000000 00000000 00000000 00000000 Z56 {ANY} {TUN} {HALF}",
    ),
    "C, delete": (
        encode_route(RTM_DELETE, "0.0.0.0/1", "198.18.0.1", sequence=1),
        f"8c000502 0000 0000 02080000 07000000 00000000 01000000 00000000 00000000 00000000 Z56 {ANY} {TUN} {HALF}",
    ),
    "D": (
        encode_route(RTM_ADD, "1.0.0.0/8", "198.18.0.1", sequence=1),
        "8c000501 0000 0000 03080000 07000000 00000000 01000000 00000000 00000000 00000000 Z56"
        f"10020000 01000000 0000000000000000 {TUN} 10020000 ff000000 0000000000000000",
    ),
    "E, IPv6": (
        encode_route(RTM_ADD, "8000::/1", "fd00::1", sequence=1),
        "b0000501 0000 0000 03080000 07000000 00000000 01000000 00000000 00000000 00000000 Z56"
        "1c1e0000 00000000 80000000000000000000000000000000 00000000"
        "1c1e0000 00000000 fd000000000000000000000000000001 00000000"
        "1c1e0000 00000000 80000000000000000000000000000000 00000000",
    ),
    "F, host": (
        encode_route(RTM_ADD, "203.0.113.9/32", "192.168.1.1", sequence=1),
        "7c000501 0000 0000 07080000 03000000 00000000 01000000 00000000 00000000 00000000 Z56"
        "10020000 cb007109 0000000000000000   10020000 c0a80101 0000000000000000",
    ),
    "G, by interface": (
        encode_route(RTM_ADD, "128.0.0.0/1", LinkAddress(15, "utun8"), sequence=1),
        f"90000501 0000 0000 01080000 07000000 00000000 01000000 00000000 00000000 00000000 Z56 {HALF}"
        f"14120f00 01050000 7574756e38 00000000000000 {HALF}",
    ),
    "H, query": (
        encode_query("203.0.113.9", sequence=7),
        "80000504 0000 0000 03000000 11000000 00000000 07000000 00000000 00000000 00000000 Z56"
        "10020000 cb007109 0000000000000000   14120000 00000000 000000000000000000000000",
    ),
    "query of the default route": (
        encode_default_query(4, sequence=8),
        "84000504 0000 0000 03000000 15000000 00000000 08000000 00000000 00000000 00000000 Z56"
        f"{ANY} 00000000 14120000 00000000 000000000000000000000000",
    ),
}


@pytest.mark.parametrize(("sent", "expected"), SENT.values(), ids=SENT)
def test_message_to_the_kernel(sent: bytes, expected: str) -> None:
    assert sent.hex(" ", 4) == message(expected).hex(" ", 4)


def test_link_local_gateway_carries_its_scope_within_the_address() -> None:
    sent = encode_route(RTM_ADD, "2001:db8::9/128", "fe80::1%4", sequence=1)
    assert bytes.fromhex("fe800004 00000000 00000000 00000001 00000000") in sent


@pytest.mark.parametrize("destination", ["1.0.0.0/8", "203.0.113.9/32", "8000::/1", "2001:db8::9/128"])
@pytest.mark.parametrize("gateway", ["v", LinkAddress(15, "utun8")])
def test_what_is_sent_can_be_read_back(destination: str, gateway: Any) -> None:
    if gateway == "v":
        gateway = "198.18.0.1" if "." in destination else "fe80::1%4"
    (read,) = parse_messages(encode_route(RTM_ADD, destination, gateway, scope=15, sequence=3))
    assert (read.kind, read.index, read.sequence, read.flags & RTF_IFSCOPE) == (RTM_ADD, 15, 3, RTF_IFSCOPE)
    assert read.destination == ip_network(destination)
    assert read.gateway == (gateway if isinstance(gateway, LinkAddress) else ip_address(gateway))


# from the kernel


@pytest.mark.parametrize(
    ("prefix", "mask_length"),
    [("0.0.0.0/0", 0), ("10.0.0.0/8", 5), ("10.1.0.0/16", 6), ("192.168.1.0/24", 7), ("192.168.1.128/25", 8)],
)
def test_trimmed_mask(prefix: str, mask_length: int) -> None:
    mask = trimmed_mask(prefix)
    assert len(mask) == mask_length
    network = ip_network(prefix)
    data = route_message(RTM_GET, dst=sin(str(network.network_address)), gateway=sin("192.168.1.1"), mask=mask)
    (read,) = parse_messages(data)
    assert read.destination == network
    assert read.gateway == ip_address("192.168.1.1")


def test_family_of_a_mask_is_not_believed() -> None:
    data = route_message(RTM_GET, dst=sin("192.168.1.0"), gateway=sin("192.168.1.1"), mask=b"\x07\xff\0\0\xff\xff\xff")
    assert [read.destination for read in parse_messages(data)] == [ip_network("192.168.1.0/24")]


@pytest.mark.parametrize("prefix", ["::/0", "2000::/3", "2001:db8::/32", "fe80::/64"])
def test_trimmed_mask_of_ipv6(prefix: str) -> None:
    network = ip_network(prefix)
    data = route_message(
        RTM_GET, dst=sin6(str(network.network_address)), gateway=link(4, "en0"), mask=trimmed_mask(prefix)
    )
    (read,) = parse_messages(data)
    assert (read.destination, read.gateway) == (network, LinkAddress(4, "en0"))


def test_mask_with_holes_is_no_prefix() -> None:
    data = route_message(RTM_GET, dst=sin("10.0.0.0"), gateway=sin("10.0.0.1"), mask=b"\x07\0\0\0\xff\0\xff")
    assert [read.destination for read in parse_messages(data)] == [None]


def test_link_local_address_with_embedded_scope() -> None:
    gateway = sin6("fe80::1", embedded_scope=4)
    (read,) = parse_messages(route_message(RTM_GET, dst=sin6("::"), gateway=gateway, mask=b""))
    assert str(read.gateway) == "fe80::1%4"


def test_interface_of_an_answer() -> None:
    data = route_message(RTM_GET, dst=sin("203.0.113.9"), gateway=sin("192.168.1.1"), interface=link(4, "en0"), pid=77)
    (read,) = parse_messages(data)
    assert (read.interface, read.pid) == (LinkAddress(4, "en0"), 77)


def test_messages_on_interfaces_have_another_header() -> None:
    up = struct.pack("=HBBiiH", 112, 5, RTM_IFINFO, 0, 0x8051, 4) + bytes(112 - 14)
    address = struct.pack("=HBBiiH", 20, 5, RTM_NEWADDR, 0, 1, 6) + bytes(6)
    read = list(parse_messages(up + address))
    assert [(one.kind, one.index) for one in read] == [(RTM_IFINFO, 4), (RTM_NEWADDR, 6)]


def test_message_of_another_version_is_passed_over() -> None:
    good = route_message(RTM_ADD, dst=sin("10.0.0.0"), gateway=sin("10.0.0.1"), mask=trimmed_mask("10.0.0.0/8"))
    other = bytearray(good)
    other[2] = 4
    assert len(list(parse_messages(bytes(other) + good))) == 1


DUMP = b"".join(
    (
        # A scoped default comes first here: the kernel sorts by address, not by what we would like.
        route_message(
            RTM_GET, index=6, flags=0x1000803, dst=sin("0.0.0.0"), gateway=sin("10.0.0.1"), mask=trimmed_mask("0.0.0.0/0")
        ),
        route_message(
            RTM_GET, index=9, flags=0x803, dst=sin("0.0.0.0"), gateway=sin("172.16.0.1"), mask=trimmed_mask("0.0.0.0/0")
        ),
        route_message(
            RTM_GET, index=4, flags=0x803, dst=sin("0.0.0.0"), gateway=sin("192.168.1.1"), mask=trimmed_mask("0.0.0.0/0")
        ),
        route_message(RTM_GET, index=15, flags=0x803, dst=sin("1.0.0.0"), gateway=sin("198.18.0.1"), mask=b"\5\0\0\0\xff"),
        route_message(RTM_GET, index=4, flags=0x805, dst=sin("192.168.1.1"), gateway=link(4, "en0")),
        route_message(
            RTM_GET, index=4, flags=0x101, dst=sin("192.168.1.0"), gateway=link(4, "en0"), mask=b"\7\0\0\0\xff\xff\xff"
        ),
    )
)  # fmt: skip
NAMES = {4: "en0", 6: "en1", 9: "utun3", 15: "utun8"}


def name_of(index: int) -> str:
    if index not in NAMES:
        raise OSError("no interface")
    return NAMES[index]


def choose(dump: bytes, version: int = 4) -> DefaultRoute | None:
    return default_route(parse_messages(dump), version, name_of, own_index=15)


def test_unscoped_default_that_is_not_of_a_vpn_is_chosen() -> None:
    assert choose(DUMP) == DefaultRoute(4, "en0", "192.168.1.1")


def test_scoped_default_comes_before_that_of_a_vpn() -> None:
    scoped, vpn = (list(split(DUMP))[i] for i in (0, 1))
    assert choose(vpn + scoped) == DefaultRoute(6, "en1", "10.0.0.1")
    assert choose(vpn) == DefaultRoute(9, "utun3", "172.16.0.1")


def test_a_zero_prefix_that_is_not_the_default_is_none() -> None:
    half = route_message(
        RTM_GET, index=4, flags=0x803, dst=sin("0.0.0.0"), gateway=sin("1.1.1.1"), mask=b"\5\0\0\0\x80"
    )
    assert choose(half) is None


@pytest.mark.parametrize("flags", [0x802, 0x80B, 0x1803], ids=["down", "reject", "blackhole"])
def test_default_that_leads_nowhere_is_none(flags: int) -> None:
    assert (
        choose(route_message(RTM_GET, index=4, flags=flags, dst=sin("0.0.0.0"), gateway=sin("1.1.1.1"), mask=b""))
        is None
    )


def test_default_of_an_interface_that_went_is_none() -> None:
    assert (
        choose(route_message(RTM_GET, index=99, flags=3, dst=sin("0.0.0.0"), gateway=sin("1.1.1.1"), mask=b"")) is None
    )


def test_default_without_next_hop_is_the_interface() -> None:
    data = route_message(RTM_GET, index=4, flags=0x801, dst=sin("0.0.0.0"), gateway=link(4, ""), mask=b"")
    assert choose(data) == DefaultRoute(4, "en0", LinkAddress(4, "en0"))


def test_default_of_ipv6_by_a_link_local_router() -> None:
    data = route_message(RTM_GET, index=4, flags=3, dst=sin6("::"), gateway=sin6("fe80::1", embedded_scope=4), mask=b"")
    assert choose(data, 6) == DefaultRoute(4, "en0", "fe80::1%4")
    assert choose(data, 4) is None


def split(dump: bytes) -> list[bytes]:
    parts = []
    while dump:
        length = int.from_bytes(dump[:2], "little")
        parts.append(dump[:length])
        dump = dump[length:]
    return parts


def test_dump_cut_anywhere_gives_the_messages_before_the_cut() -> None:
    whole = list(parse_messages(DUMP))
    ends = [sum(map(len, split(DUMP)[:count])) for count in range(len(whole) + 1)]
    for cut in range(len(DUMP)):
        complete = sum(end <= cut for end in ends) - 1
        assert list(parse_messages(DUMP[:cut])) == whole[:complete]


@given(st.binary(max_size=400))
def test_garbage_is_no_message_and_no_exception(data: bytes) -> None:
    for read in parse_messages(data):
        assert isinstance(read, Message)


@given(st.integers(0, len(DUMP) - 1), st.integers(0, 255))
def test_damaged_dump_raises_nothing(place: int, value: int) -> None:
    damaged = bytearray(DUMP)
    damaged[place] = value
    choose(bytes(damaged))


def test_empty_link_address() -> None:
    assert encode_link() == bytes.fromhex("1412 0000 0000 0000") + bytes(12)
