"""The kernel's own messages on links, addresses, routes and rules (rtnetlink(7)): asked for, or sent unasked.

Struct rather than pyroute2, which would double the master's size. Nothing is changed here. Layouts and numbers:
include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h and fib_rules.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from engine.netconf.plan import Family

__all__ = [
    "GROUPS",
    "REPLY_MAX",
    "RTM_DELADDR",
    "RTM_DELROUTE",
    "RTM_DELRULE",
    "RTM_NEWROUTE",
    "RTM_NEWRULE",
    "AddressMessage",
    "LinkMessage",
    "Message",
    "RouteMessage",
    "RuleMessage",
    "dump",
    "parse",
    "read_attributes",
    "read_waiting",
    "split_messages",
]

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
IFLA_IFNAME, IFLA_MTU = 3, 4
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 9, 15, 18
FRA_PRIORITY = 6
IFF_UP = 0x1
RTNH_F_DEAD = 0x1
RTM_F_CLONED = 0x200
RTN_UNICAST = 1
NETLINK_GET_STRICT_CHK = 12
SOL_NETLINK = 270
GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
"""RTMGRP_LINK; _IFADDR, _ROUTE and _RULE of IPv4 and IPv6: for bind()."""
REPLY_MAX = 256 * 1024  # bytes; the kernel's parts are smaller
BATCH = 64
"""Datagrams read before the loop may serve other descriptors."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with header, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, dst, src, tos, table, 2 reserved, action, flags
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, index
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_ERRNO = struct.Struct("=i")
_FAMILY = struct.Struct("=H")


_NOTHING = (errno.ENOENT, errno.ESRCH, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""How the kernel says that nobody has ever used a table, or that it has no IPv6."""


class LinkMessage(NamedTuple):
    """An interface."""

    interface: int
    """Index."""
    name: str
    up: bool
    mtu: int


class AddressMessage(NamedTuple):
    """An address of an interface, with its prefix length."""

    interface: int
    """Index."""
    family: Family
    address: str


class RouteMessage(NamedTuple):
    """A route. `interface` (an index) and `gateway` are those of its first next hop; 0 and empty where it has none."""

    family: Family
    table: int
    kind: int
    """RTN_*"""
    protocol: int
    destination: str
    """Prefix, or "default"."""
    interface: int
    gateway: str
    metric: int
    dead: bool
    """Its interface is down."""


class RuleMessage(NamedTuple):
    """A policy rule."""

    family: Family
    priority: int


Message = LinkMessage | AddressMessage | RouteMessage | RuleMessage


def parse(data: bytes) -> Iterator[tuple[int, Message]]:
    """Give the type (RTM_*) and content of each message in `data`; others, and what is of another family, are left out."""
    for kind, body in split_messages(data):
        match kind:
            case _ if kind in (RTM_NEWLINK, RTM_DELLINK) and len(body) >= _LINK.size:
                yield kind, _link(body)
            case _ if kind in (RTM_NEWADDR, RTM_DELADDR) and body[0] in (socket.AF_INET, socket.AF_INET6):
                yield kind, _address(body)
            case _ if kind in (RTM_NEWROUTE, RTM_DELROUTE) and body[0] in (socket.AF_INET, socket.AF_INET6):
                route = _route(body)
                if route is not None:
                    yield kind, route
            case _ if kind in (RTM_NEWRULE, RTM_DELRULE) and body[0] in (socket.AF_INET, socket.AF_INET6):
                priority = read_attributes(body[_RULE.size :]).get(FRA_PRIORITY, bytes(4))
                yield kind, RuleMessage(4 if body[0] == socket.AF_INET else 6, _NUMBER.unpack(priority)[0])


def dump(what: int, family: int = socket.AF_UNSPEC, *, table: int = 0) -> list[Message]:
    """Ask the kernel for all there is: `what` is RTM_NEWLINK - and so on - plus 2, that is RTM_GETLINK.

    `table`: only the routes of this table; the kernel itself leaves the others out. Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        try:
            connection.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            pass  # before Linux 4.20: whoever asks leaves out what it does not want
        connection.bind((0, 0))
        body = _request(what, family, table)
        connection.send(_HEADER.pack(_HEADER.size + len(body), what, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        found: list[Message] = []
        while True:
            data = connection.recv(REPLY_MAX)
            found += [message for _, message in parse(data)]
            if _is_end(data):
                return found


def _request(what: int, family: int, table: int) -> bytes:
    if what == RTM_GETLINK:
        return _LINK.pack(family, 0, 0, 0, 0)
    if what == RTM_GETADDR:
        return _ADDRESS.pack(family, 0, 0, 0, 0)
    if what == RTM_GETRULE:
        return _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    route = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return route + _ATTRIBUTE.pack(8, RTA_TABLE) + _NUMBER.pack(table) if table else route


def _is_end(data: bytes) -> bool:
    """Whether a dump ends here. Raises OSError when the kernel has refused."""
    for kind, body in split_messages(data):
        if kind == NLMSG_ERROR:
            (negative,) = _ERRNO.unpack_from(body)
            if -negative in _NOTHING:
                return True
            raise OSError(-negative, os.strerror(-negative))
        if kind == NLMSG_DONE:
            return True
    return False


def read_waiting(sock: socket.socket) -> Iterator[bytes | None]:
    """Give what waits at a netlink socket, at most BATCH datagrams; None where the kernel had to drop some. Raises OSError."""
    for _ in range(BATCH):
        try:
            yield sock.recv(REPLY_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None


def split_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give type and body of each message of netlink(7)."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):  # cut short
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3  # NLMSG_ALIGN


def read_attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes (struct nlattr) in `data` by their type."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]  # NLA_TYPE_MASK
        at += length + 3 & ~3
    return found


def _link(body: bytes) -> LinkMessage:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = read_attributes(body[_LINK.size :])
    name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    return LinkMessage(index, name, bool(flags & IFF_UP), _number(attributes, IFLA_MTU))


def _address(body: bytes) -> AddressMessage:
    family, length, _, _, index = _ADDRESS.unpack_from(body)
    attributes = read_attributes(body[_ADDRESS.size :])
    packed = (
        attributes.get(IFA_LOCAL) or attributes[IFA_ADDRESS]
    )  # of a point-to-point link, ADDRESS is the other end's
    return AddressMessage(index, 4 if family == socket.AF_INET else 6, f"{socket.inet_ntop(family, packed)}/{length}")


def _route(body: bytes) -> RouteMessage | None:
    family, length, _, _, small_table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    if flags & RTM_F_CLONED:  # what the kernel remembers of one host
        return None
    attributes = read_attributes(body[_ROUTE.size :])
    index, dead = _number(attributes, RTA_OIF), bool(flags & RTNH_F_DEAD)
    if RTA_MULTIPATH in attributes:
        hops = attributes[RTA_MULTIPATH]
        size, hop_flags, _, index = _NEXT_HOP.unpack_from(hops)
        dead = bool(hop_flags & RTNH_F_DEAD)
        attributes |= read_attributes(hops[_NEXT_HOP.size : size])
    destination = "default"
    if length:
        packed = attributes.get(RTA_DST, b"")
        destination = (
            f"{socket.inet_ntop(family, packed.ljust(4 if family == socket.AF_INET else 16, bytes(1)))}/{length}"
        )
    return RouteMessage(
        family=4 if family == socket.AF_INET else 6,
        table=_number(attributes, RTA_TABLE) or small_table,
        kind=kind,
        protocol=protocol,
        destination=destination,
        interface=index,
        gateway=_gateway(family, attributes),
        metric=_number(attributes, RTA_PRIORITY),
        dead=dead,
    )


def _gateway(family: int, attributes: dict[int, bytes]) -> str:
    if RTA_GATEWAY in attributes:
        return socket.inet_ntop(family, attributes[RTA_GATEWAY])
    if RTA_VIA in attributes:  # of the other family: struct rtvia
        (other,) = _FAMILY.unpack_from(attributes[RTA_VIA])
        return socket.inet_ntop(other, attributes[RTA_VIA][_FAMILY.size :])
    return ""


def _number(attributes: dict[int, bytes], kind: int) -> int:
    value = attributes.get(kind)
    return int(_NUMBER.unpack(value)[0]) if value is not None and len(value) == _NUMBER.size else 0
