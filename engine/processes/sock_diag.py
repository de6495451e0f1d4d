"""Codec of NETLINK_SOCK_DIAG (sock_diag(7), include/uapi/linux/inet_diag.h and netlink.h). Pure.

request   nlmsghdr (16) | inet_diag_req_v2 (56)
reply     nlmsghdr (16) | inet_diag_msg (72) | attributes, which are not asked for
end       nlmsghdr with NLMSG_DONE (after a dump), or NLMSG_ERROR with a negative errno (0: acknowledgement)
"""

import struct
from typing import Final

from engine.processes import Socket

__all__ = [
    "AF_INET",
    "AF_INET6",
    "NETLINK_SOCK_DIAG",
    "TCP",
    "UDP",
    "DiagError",
    "State",
    "encode_dump",
    "encode_query",
    "parse_messages",
]

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
AF_INET, AF_INET6 = 2, 10  # include/linux/socket.h
TCP, UDP = 6, 17  # IANA protocol numbers
NO_COOKIE: Final = 0xFFFFFFFF  # INET_DIAG_NOCOOKIE

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST_HEAD = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, mask of states
_SOCKID_ENDS = struct.Struct("!HH16s16s")  # source port, destination port, source, destination
_SOCKID_TAIL = struct.Struct("=III")  # interface, cookie
_REPLY = struct.Struct("!BBxxHH16s16s")  # family, state, then as above; timer and retransmissions are not read
_REPLY_OWNER = struct.Struct("=II")  # uid, inode
_OWNER_AT: Final = 64  # bytes into inet_diag_msg
_REPLY_LEN: Final = 72
_REQUEST_LEN: Final = 16 + 56
_ERROR = struct.Struct("=i")
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # of IPv4-mapped addresses, RFC 4291 section 2.5.5.2


class State:
    """Masks of TCP states (include/net/tcp_states.h); sockets of UDP are ESTABLISHED when connected, else CLOSE."""

    ESTABLISHED: Final = 1 << 1
    SYN_SENT: Final = 1 << 2
    LISTEN: Final = 1 << 10
    ALL: Final = 0xFFF


class DiagError(Exception):
    """The kernel's answer to a query is an error; `errno` is positive."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


def encode_query(
    protocol: int, source: bytes, source_port: int, destination: bytes, destination_port: int, *, sequence: int
) -> bytes:
    """Ask for one socket. For TCP, source is the socket's own end; for UDP it is the peer's (udp_dump_one, net/ipv4/udp_diag.c).

    The kernel looks the socket up as it would for an arriving packet, so wildcard and dual-stack sockets are found too.
    """
    family = AF_INET if len(source) == 4 else AF_INET6
    return (
        _NLMSGHDR.pack(_REQUEST_LEN, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, sequence, 0)
        + _REQUEST_HEAD.pack(family, protocol, 0, 0, State.ALL)
        + _SOCKID_ENDS.pack(source_port, destination_port, source, destination)
        + _SOCKID_TAIL.pack(0, NO_COOKIE, NO_COOKIE)
    )


def encode_dump(family: int, protocol: int, *, states: int, local_port: int = 0, sequence: int) -> bytes:
    """Ask for all sockets of one family in `states`, of one local port or (0) of all. The kernel filters by nothing else."""
    return (
        _NLMSGHDR.pack(_REQUEST_LEN, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
        + _REQUEST_HEAD.pack(family, protocol, 0, 0, states)
        + _SOCKID_ENDS.pack(local_port, 0, b"", b"")
        + _SOCKID_TAIL.pack(0, NO_COOKIE, NO_COOKIE)
    )


def parse_messages(data: bytes, *, sequence: int) -> tuple[list[Socket], bool]:
    """Return the sockets in one datagram of the kernel, and whether it ends the answer to a dump.

    Messages of other sequences are left out: they answer an earlier query. Raises DiagError when the kernel reports one.
    """
    sockets: list[Socket] = []
    at = 0
    while at + _NLMSGHDR.size <= len(data):
        length, kind, _, of_sequence, _ = _NLMSGHDR.unpack_from(data, at)
        if length < _NLMSGHDR.size or at + length > len(data):
            break
        body = at + _NLMSGHDR.size
        if of_sequence == sequence:
            if kind == NLMSG_DONE:
                return sockets, True
            if kind == NLMSG_ERROR and length >= _NLMSGHDR.size + _ERROR.size:
                raise DiagError(-_ERROR.unpack_from(data, body)[0])
            if kind == SOCK_DIAG_BY_FAMILY and length >= _NLMSGHDR.size + _REPLY_LEN:
                sockets.append(_parse_socket(data, body))
        at += (length + 3) & ~3  # NLMSG_ALIGN
    return sockets, False


def _parse_socket(data: bytes, at: int) -> Socket:
    family, _, local_port, remote_port, local, remote = _REPLY.unpack_from(data, at)
    uid, inode = _REPLY_OWNER.unpack_from(data, at + _OWNER_AT)
    return Socket(_address(family, local), local_port, _address(family, remote), remote_port, uid, inode)


def _address(family: int, field: bytes) -> bytes:
    if family == AF_INET:
        return field[:4]
    return field[12:] if field.startswith(_MAPPED_PREFIX) else field
