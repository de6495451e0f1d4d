"""The bytes are those of a C program with the structs of the headers of xnu."""

import struct

import pytest

from engine.darwin import interface
from engine.darwin.interface import (
    encode_control_address,
    encode_control_info,
    encode_inet6_alias,
    encode_inet6_removal,
    encode_inet_alias,
    encode_inet_removal,
    encode_mtu,
    parse_control_id,
)

NAME = "7574756e38" + 11 * "00"  # utun8


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("CTLIOCGINFO", 0xC0644E03),
        ("SIOCSIFMTU", 0x80206934),
        ("SIOCAIFADDR", 0x8040691A),
        ("SIOCDIFADDR", 0x80206919),
        ("SIOCAIFADDR_IN6", 0x8080691A),
        ("SIOCDIFADDR_IN6", 0x81206919),
    ],
)
def test_request_numbers(name: str, number: int) -> None:
    assert getattr(interface, name) == number


def test_control_info() -> None:
    packed = encode_control_info()
    assert packed == bytes.fromhex("00000000636f6d2e6170706c652e6e65742e7574756e5f636f6e74726f6c") + bytes(70)
    assert parse_control_id(struct.pack("=I", 5) + packed[4:]) == 5


def test_control_address() -> None:
    assert encode_control_address(5, 9) == bytes.fromhex("202002000500000009000000") + bytes(20)


def test_mtu() -> None:
    assert encode_mtu("utun8", 9000) == bytes.fromhex(NAME + "28230000") + bytes(12)


def test_inet_alias_has_the_address_itself_as_far_end() -> None:
    own = "10020000c61200010000000000000000"
    mask = "10020000ffff00000000000000000000"
    assert encode_inet_alias("utun8", "198.18.0.1/16") == bytes.fromhex(NAME + own + own + mask)


def test_inet_removal() -> None:
    assert encode_inet_removal("utun8", "198.18.0.1/16") == bytes.fromhex(NAME + "10020000c61200010000000000000000")


def test_inet6_alias_has_no_far_end() -> None:
    assert encode_inet6_alias("utun8", "fd00::1/126") == bytes.fromhex(
        NAME
        + "1c1e000000000000fd00000000000000000000000000000100000000"
        + 7 * "00000000"
        + "1c1e000000000000fffffffffffffffffffffffffffffffc00000000"
        + "20040000"
        + 16 * "00"
        + "ffffffffffffffff"
    )


def test_inet6_removal() -> None:
    packed = encode_inet6_removal("utun8", "fd00::1/126")
    assert len(packed) == 288
    assert packed.rstrip(b"\0") == bytes.fromhex(NAME + "1c1e000000000000fd000000000000000000000000000001")
