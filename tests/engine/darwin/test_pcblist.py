"""The socket tables, with the records of both sizes that there have been."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.darwin.pcblist import parse_pcblist
from tests.support.darwin.messages import pcb_table, socket_records


def packed(text: str) -> bytes:
    return ip_address(text).packed


def tcp(**changes: object) -> bytes:
    values: dict[str, object] = {
        "handle": 11,
        "local": ("198.18.0.1", 50000),
        "remote": ("203.0.113.9", 443),
        "vflag": 1,
        "last_pid": 321,
        "tcp": True,
    }
    return socket_records(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("socket_size", [104, 80], ids=["Darwin 22", "before"])
def test_tcp_socket(socket_size: int) -> None:
    (found,) = parse_pcblist(pcb_table(tcp(socket_size=socket_size)))
    assert (found.handle, found.uid, found.pid) == (11, 501, 321)
    assert (found.local, found.local_port) == (packed("198.18.0.1"), 50000)
    assert (found.remote, found.remote_port) == (packed("203.0.113.9"), 443)


@pytest.mark.parametrize("socket_size", [104, 80])
def test_udp_sockets_have_one_record_less(socket_size: int) -> None:
    unbound = tcp(local=("0.0.0.0", 5353), remote=("0.0.0.0", 0), tcp=False, socket_size=socket_size)
    found = parse_pcblist(pcb_table(*(unbound,) * 3))
    assert [(one.local_port, any(one.local), one.remote_port) for one in found] == [(5353, False, 0)] * 3


def test_ipv6_socket() -> None:
    (found,) = parse_pcblist(pcb_table(tcp(local=("fd00::1", 50001), remote=("2001:db8::9", 443), vflag=2)))
    assert (found.local, found.remote, found.dual) == (packed("fd00::1"), packed("2001:db8::9"), False)


def test_unbound_socket_of_both_families_is_ipv6() -> None:
    (found,) = parse_pcblist(pcb_table(tcp(local=("::", 1080), remote=("::", 0), vflag=3)))
    assert (len(found.local), found.dual) == (16, True)


def test_ipv4_connection_of_an_ipv6_socket() -> None:
    (found,) = parse_pcblist(
        pcb_table(tcp(local=("::ffff:198.18.0.1", 50002), remote=("::ffff:203.0.113.9", 80), vflag=2))
    )
    assert (found.local, found.remote) == (packed("198.18.0.1"), packed("203.0.113.9"))


def test_process_on_whose_behalf_it_is_used_counts() -> None:
    (found,) = parse_pcblist(pcb_table(tcp(last_pid=88, effective_pid=321)))
    assert found.pid == 321


def test_table_without_sockets() -> None:
    assert parse_pcblist(pcb_table()) == []


TABLE = pcb_table(tcp(), tcp(handle=12, socket_size=80), tcp(handle=13))


def test_table_cut_anywhere_raises_nothing_and_invents_nothing() -> None:
    whole = parse_pcblist(TABLE)
    for cut in range(len(TABLE)):
        found = parse_pcblist(TABLE[:cut])
        assert found == whole[: len(found)]


@given(st.binary(max_size=300))
def test_garbage_raises_nothing(data: bytes) -> None:
    parse_pcblist(data)


@given(st.integers(0, len(TABLE) - 1), st.integers(0, 255))
def test_damaged_table_raises_nothing(place: int, value: int) -> None:
    damaged = bytearray(TABLE)
    damaged[place] = value
    parse_pcblist(bytes(damaged))
