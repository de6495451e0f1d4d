"""Tells when somebody sets the tun down or up, or deletes it: the kernel's own messages (rtnetlink(7)).

The kernel takes the routes and the IPv6 addresses of an interface that is set down, and does not give them back. Thirty
lines of struct rather than pyroute2, which would double the master's size.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

__all__ = ["LinkWatch", "egress"]

RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
IFF_UP = 0x1  # include/uapi/linux/if.h
MESSAGES_MAX = 64 * 1024  # bytes per read; the kernel's own are a few kilobytes

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with header, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags


def egress(name: str = "") -> tuple[int, int] | None:
    """Return None: sockets of the engine need not be bound to an interface."""
    del name
    return None


class LinkWatch:
    """Calls `on_change(up)` each time the interface `name`, now up, is set down or up, and `on_gone` when it is deleted.

    `on_moved` is not called: here the rules let the engine out, whatever the machine's other routes are. Raises OSError when
    there is no such interface.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        on_change: Callable[[bool], None],
        on_gone: Callable[[], None],
        on_moved: Callable[[tuple[int, int]], None],
    ) -> None:
        del on_moved
        self._loop = loop
        self._on_change = on_change
        self._on_gone = on_gone
        self._up = True
        self._index = socket.if_nametoindex(name)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_LINK))
        loop.add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _on_readable(self) -> None:
        try:
            messages = self._socket.recv(MESSAGES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # some were lost, in a storm of them
                raise
            # What was lost may have been ours. To believe it was down costs one look at the routes, at its next message.
            self._up = False
            return
        at = 0
        while at + _HEADER.size + _LINK.size <= len(messages):
            length, kind, *_ = _HEADER.unpack_from(messages, at)
            _, _, index, flags, _ = _LINK.unpack_from(messages, at + _HEADER.size)
            if kind == RTM_DELLINK and index == self._index:
                self._on_gone()
            elif kind == RTM_NEWLINK and index == self._index and bool(flags & IFF_UP) != self._up:
                self._up = not self._up
                self._on_change(self._up)
            at += max(length + 3 & ~3, _HEADER.size)  # NLMSG_ALIGN
