"""Throw routes: one host is looked up in our table no further, and so leaves by the routes of the machine.

They are made in the master, at any time and by the hundred, when the remote servers of a local proxy are learned: forty
lines of struct (rtnetlink(7)) rather than a helper process and pyroute2 for each. The same lines undo them.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from engine.netconf.plan import Bypass

__all__ = ["ThrowRoutes", "open_throw_routes"]

# include/uapi/linux/netlink.h and rtnetlink.h
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTA_DST, RTA_PRIORITY, RTA_TABLE = 1, 6, 15
RTN_THROW = 9
RT_SCOPE_UNIVERSE = 0
PROTOCOL = 116
"""Who made the route (RTA_PROTOCOL; values from 5 on are free): only ours are removed."""
METRIC = 1

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with header, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_NUMBER = struct.Struct("=HHI")  # struct rtattr with a 32-bit value: length with header, type
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
REPLY_MAX = 4096  # bytes


class ThrowRoutes:
    """A netlink socket. Each call is one message and its acknowledgement, some ten microseconds."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0

    def make(self, bypass: Bypass) -> None:
        """Make one route. Raises OSError; FileExistsError when it is there."""
        self._ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, bypass)

    def remove(self, bypass: Bypass) -> None:
        """Remove one route. Raises OSError; ProcessLookupError (ESRCH) when it is not there."""
        self._ask(RTM_DELROUTE, 0, bypass)

    def _ask(self, kind: int, flags: int, bypass: Bypass) -> None:
        address = ip_address(bypass.address).packed
        family = socket.AF_INET if bypass.family == 4 else socket.AF_INET6
        # Table 0 (unspecified): the table's number is in the attribute, as it may exceed 8 bits.
        route = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_THROW, 0)
        body = (
            route
            + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), RTA_DST)
            + address
            + _NUMBER.pack(_NUMBER.size, RTA_TABLE, bypass.table)
            + _NUMBER.pack(_NUMBER.size, RTA_PRIORITY, METRIC)
        )
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, self._sequence, 0)
        self._socket.send(header + body)
        reply = self._socket.recv(REPLY_MAX)
        _, kind, _, sequence, _ = _HEADER.unpack_from(reply)
        assert (kind, sequence) == (NLMSG_ERROR, self._sequence), "the kernel acknowledges each request in turn"
        (negative,) = _ERRNO.unpack_from(reply, _HEADER.size)
        if negative:
            raise OSError(-negative, os.strerror(-negative))


@contextmanager
def open_throw_routes() -> Iterator[ThrowRoutes]:
    """Give a connection to the kernel. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        connection.bind((0, 0))
        yield ThrowRoutes(connection)
