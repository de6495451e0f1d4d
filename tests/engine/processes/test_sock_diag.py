"""engine/processes/sock_diag.py: messages built from the structures of the kernel's headers."""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.processes import Socket
from engine.processes.sock_diag import (
    AF_INET,
    AF_INET6,
    TCP,
    UDP,
    DiagError,
    State,
    encode_dump,
    encode_query,
    parse_messages,
)

SEQUENCE = 7
V4, OTHER_V4 = socket.inet_aton("198.18.0.1"), socket.inet_aton("203.0.113.10")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::10")


def message(kind: int, body: bytes, sequence: int = SEQUENCE) -> bytes:
    """struct nlmsghdr and its body, padded to 4 bytes."""
    data = struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body
    return data + bytes(-len(data) % 4)


def reply(family: int, local: bytes, remote: bytes, *, uid: int = 1000, inode: int = 4711, extra: bytes = b"") -> bytes:
    """struct inet_diag_msg; `extra`: attributes behind it."""
    ends = struct.pack("!HH16s16s", 40000, 443, local, remote) + bytes(12)
    return message(20, struct.pack("=BBBB", family, 1, 0, 0) + ends + struct.pack("=5I", 0, 0, 0, uid, inode) + extra)


DONE = message(3, bytes(4))


def test_query_is_a_request_of_72_bytes_with_the_tuple_in_network_order() -> None:
    query = encode_query(TCP, V4, 40000, OTHER_V4, 443, sequence=SEQUENCE)
    assert struct.unpack_from("=IHHII", query) == (72, 20, 1, SEQUENCE, 0)
    assert len(query) == 72
    assert struct.unpack_from("=BB", query, 16) == (AF_INET, TCP)
    assert query[24:28] == bytes.fromhex("9c4001bb")
    assert (query[28:44], query[44:60]) == (V4.ljust(16, b"\0"), OTHER_V4.ljust(16, b"\0"))
    assert query[64:] == b"\xff" * 8, "no cookie"


def test_query_of_16_byte_addresses_is_of_ipv6() -> None:
    assert encode_query(UDP, V6, 53, V6, 40000, sequence=1)[16:18] == bytes((AF_INET6, UDP))


def test_dump_names_states_and_port() -> None:
    dump = encode_dump(AF_INET6, TCP, states=State.LISTEN, local_port=1080, sequence=SEQUENCE)
    assert struct.unpack_from("=IHHII", dump) == (72, 20, 0x301, SEQUENCE, 0)
    assert struct.unpack_from("=I", dump, 20) == (1 << 10,)
    assert dump[24:26] == (1080).to_bytes(2, "big")


def test_reply_gives_both_ends_user_and_inode() -> None:
    sockets, done = parse_messages(reply(AF_INET, V4, OTHER_V4), sequence=SEQUENCE)
    assert sockets == [Socket(V4, 40000, OTHER_V4, 443, 1000, 4711)]
    assert not done


def test_ipv4_inside_a_dual_stack_socket_is_ipv4() -> None:
    mapped = socket.inet_pton(socket.AF_INET6, "::ffff:203.0.113.10")
    (found,), _ = parse_messages(reply(AF_INET6, mapped, mapped), sequence=SEQUENCE)
    assert (found.local, found.remote) == (OTHER_V4, OTHER_V4)


def test_ipv6_stays_ipv6() -> None:
    (found,), _ = parse_messages(reply(AF_INET6, V6, bytes(16)), sequence=SEQUENCE)
    assert (found.local, found.remote) == (V6, bytes(16))


def test_dump_ends_with_done_and_attributes_are_passed_over() -> None:
    data = reply(AF_INET, V4, OTHER_V4, extra=struct.pack("=HHB3x", 5, 8, 3)) + reply(AF_INET, V4, V4, inode=2) + DONE
    sockets, done = parse_messages(data, sequence=SEQUENCE)
    assert [found.inode for found in sockets] == [4711, 2]
    assert done


def test_answers_to_an_earlier_query_are_left_out() -> None:
    late = message(2, struct.pack("=i", -errno.ENOENT), sequence=SEQUENCE - 1)
    assert parse_messages(late + reply(AF_INET, V4, V4), sequence=SEQUENCE)[0] != []
    assert parse_messages(message(3, bytes(4), sequence=SEQUENCE - 1), sequence=SEQUENCE) == ([], False)


def test_error_is_raised_with_its_number() -> None:
    with pytest.raises(DiagError) as caught:
        parse_messages(message(2, struct.pack("=i", -errno.ENOENT) + bytes(16)), sequence=SEQUENCE)
    assert caught.value.errno == errno.ENOENT


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_and_cut_messages_raise_nothing_else(garbage: bytes, length: int) -> None:
    for data in (garbage, (reply(AF_INET, V4, V4) + DONE)[:length], reply(AF_INET, V4, V4) + garbage):
        try:
            parse_messages(data, sequence=SEQUENCE)
        except DiagError:
            pass
