"""Messages of the routing socket, and dumps of the routing table, which consist of them (net/route.h of xnu). Pure.

    header (92 bytes) | sockaddr of each bit in `addrs`, in order of the bits, each rounded up to 4 bytes

32-bit rounding, although the kernel is 64-bit: FreeBSD's differs. A sockaddr of length 0 takes 4 bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from engine.darwin.sockaddr import (
    IpAddress,
    LinkAddress,
    encode_address,
    encode_link,
    encode_mask,
    parse_address,
    parse_prefix_length,
)

__all__ = [
    "RTF_BLACKHOLE",
    "RTF_HOST",
    "RTF_IFSCOPE",
    "RTF_REJECT",
    "RTF_UP",
    "RTF_WASCLONED",
    "RTM_ADD",
    "RTM_CHANGE",
    "RTM_DELADDR",
    "RTM_DELETE",
    "RTM_GET",
    "RTM_IFINFO",
    "RTM_NEWADDR",
    "Gateway",
    "Message",
    "encode_default_query",
    "encode_query",
    "encode_route",
    "parse_messages",
]

RTM_VERSION: Final = 5
RTM_ADD: Final = 1
RTM_DELETE: Final = 2
RTM_CHANGE: Final = 3
RTM_GET: Final = 4
RTM_NEWADDR: Final = 0xC
RTM_DELADDR: Final = 0xD
RTM_IFINFO: Final = 0xE
RTM_NEWMADDR: Final = 0xF
RTM_DELMADDR: Final = 0x10
RTM_IFINFO2: Final = 0x12

RTF_UP: Final = 0x1
RTF_GATEWAY: Final = 0x2
RTF_HOST: Final = 0x4
RTF_REJECT: Final = 0x8
RTF_STATIC: Final = 0x800
RTF_BLACKHOLE: Final = 0x1000
RTF_WASCLONED: Final = 0x20000
RTF_IFSCOPE: Final = 0x1000000

RTA_DST, RTA_GATEWAY, RTA_NETMASK, RTA_IFP = 0x1, 0x2, 0x4, 0x10

_HEADER = struct.Struct("=HBBHxxiiiiiiI56x")
"""struct rt_msghdr: length, version, type, index, flags, addrs, pid, sequence, errno, use, inits, metrics."""
_INTERFACE_HEADER = struct.Struct(
    "=HBBiiH"
)  # begin of if_msghdr and ifa_msghdr: length, version, type, addrs, flags, index
_START = struct.Struct("=HBB")
_INTERFACE_HEADER_SIZES = {RTM_IFINFO: 112, RTM_NEWADDR: 20, RTM_DELADDR: 20}
_NO_ROUTE_HEADER = frozenset((*_INTERFACE_HEADER_SIZES, RTM_NEWMADDR, RTM_DELMADDR, RTM_IFINFO2))

Gateway = str | LinkAddress
"""An address (`fe80::1%4` with the scope as a number), or the interface on whose link the destination is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of the kernel. Absent parts are None."""

    kind: int
    """RTM_..."""
    index: int
    """Of the interface."""
    flags: int
    """RTF_..., or IFF_... in messages on interfaces."""
    pid: int = 0
    """Process that asked for it."""
    sequence: int = 0
    errno: int = 0
    destination: IPv4Network | IPv6Network | None = None
    gateway: IpAddress | LinkAddress | None = None
    interface: LinkAddress | None = None


def encode_route(
    kind: int, destination: str, gateway: Gateway, *, scope: int = 0, blackhole: bool = False, sequence: int
) -> bytes:
    """Return RTM_ADD or RTM_DELETE (`kind`) of a prefix; one of full length is a host route. `blackhole`: packets end here.

    `scope`: index of the interface whose bound sockets alone shall see it (RTF_IFSCOPE). It is part of the route's identity, as
    destination and mask are, and the gateway is not: delete with the scope with which you have added.
    """
    network = ip_network(destination)
    is_host = network.prefixlen == network.max_prefixlen
    flags = RTF_STATIC
    if kind == RTM_ADD:
        flags |= RTF_UP
    if is_host:
        flags |= RTF_HOST
    if scope:
        flags |= RTF_IFSCOPE
    if blackhole:
        flags |= RTF_BLACKHOLE
    if isinstance(gateway, LinkAddress):
        far_end = encode_link(gateway)
    else:
        flags |= RTF_GATEWAY
        far_end = encode_address(gateway, embed_scope=True)
    addresses = {RTA_DST: encode_address(str(network.network_address)), RTA_GATEWAY: far_end}
    if not is_host:
        addresses[RTA_NETMASK] = encode_mask(destination)
    return _encode(kind, flags, addresses, index=scope, sequence=sequence)


def encode_query(address: str, *, sequence: int) -> bytes:
    """Return RTM_GET: which route and interface would a packet to `address` take?"""
    addresses = {RTA_DST: encode_address(address, embed_scope=True), RTA_IFP: encode_link()}
    return _encode(RTM_GET, RTF_UP | RTF_GATEWAY, addresses, sequence=sequence)


def encode_default_query(version: int, *, sequence: int) -> bytes:
    """Return RTM_GET of the default route itself: the empty mask asks for exactly it, whatever more specific ones there are."""
    unspecified = encode_address("0.0.0.0" if version == 4 else "::")
    addresses = {RTA_DST: unspecified, RTA_NETMASK: b"", RTA_IFP: encode_link()}
    return _encode(RTM_GET, RTF_UP | RTF_GATEWAY, addresses, sequence=sequence)


def _encode(kind: int, flags: int, addresses: dict[int, bytes], *, index: int = 0, sequence: int) -> bytes:
    body = b"".join(data.ljust(_rounded(len(data)), b"\0") for _, data in sorted(addresses.items()))
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, RTM_VERSION, kind, index, flags, sum(addresses), 0, sequence, 0, 0, 0) + body


def _rounded(length: int) -> int:
    return (length + 3) & ~3 or 4


def parse_messages(data: bytes) -> Iterator[Message]:
    """Give the messages of a dump or of one read. One that is cut short ends them; of another version, it is passed over."""
    at = 0
    while at + _START.size <= len(data):
        length, version, kind = _START.unpack_from(data, at)
        if length < _START.size or at + length > len(data):
            return
        if version == RTM_VERSION:
            message = _parse(kind, data[at : at + length])
            if message is not None:
                yield message
        at += length


def _parse(kind: int, data: bytes) -> Message | None:
    if kind not in _NO_ROUTE_HEADER:
        return _parse_route(data) if len(data) >= _HEADER.size else None
    if len(data) < _INTERFACE_HEADER_SIZES.get(kind, _INTERFACE_HEADER.size):
        return None
    _, _, _, _, flags, index = _INTERFACE_HEADER.unpack_from(data)
    return Message(kind=kind, index=index, flags=flags)


def _parse_route(data: bytes) -> Message:
    _, _, kind, index, flags, present, pid, sequence, errno, _, _ = _HEADER.unpack_from(data)
    addresses = dict(_addresses(present, data[_HEADER.size :]))
    gateway = addresses.get(RTA_GATEWAY)
    interface = parse_address(addresses.get(RTA_IFP, b""))
    return Message(
        kind=kind,
        index=index,
        flags=flags,
        pid=pid,
        sequence=sequence,
        errno=errno,
        destination=_destination(addresses, flags),
        gateway=parse_address(gateway) if gateway is not None else None,
        interface=interface if isinstance(interface, LinkAddress) else None,
    )


def _addresses(present: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    for bit in (1 << shift for shift in range(8)):
        if present & bit and at < len(data):
            length = data[at]
            yield bit, data[at : at + length]
            at += _rounded(length)


def _destination(addresses: dict[int, bytes], flags: int) -> IPv4Network | IPv6Network | None:
    address = parse_address(addresses.get(RTA_DST, b""))
    if address is None or isinstance(address, LinkAddress):
        return None
    length: int | None = address.max_prefixlen
    if not flags & RTF_HOST and RTA_NETMASK in addresses:
        length = parse_prefix_length(addresses[RTA_NETMASK], address.version)
    if length is None:
        return None
    return ip_network((address.packed, length), strict=False)
