"""Socket addresses as Darwin lays them out: length, family, then the rest (sys/socket.h, netinet/in.h, net/if_dl.h). Pure."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from shared.buffer import Buffer

__all__ = [
    "AF_INET",
    "AF_INET6",
    "AF_LINK",
    "AF_ROUTE",
    "AF_SYSTEM",
    "AF_UNSPEC",
    "IpAddress",
    "LinkAddress",
    "encode_address",
    "encode_link",
    "encode_mask",
    "parse_address",
    "parse_prefix_length",
]

AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_ROUTE: Final = 17
AF_LINK: Final = 18
AF_INET6: Final = 30
AF_SYSTEM: Final = 32

IFT_OTHER: Final = 1  # net/if_types.h; the type of a utun

_IN = struct.Struct("!BBH4s8x")  # struct sockaddr_in: length, family, port, address
_IN6 = struct.Struct("!BBHI16s4x")  # struct sockaddr_in6: length, family, port, flow, address, scope
_DL = struct.Struct("<BBHBBBB")  # struct sockaddr_dl: length, family, index, type, lengths of name, address, selector
_DL_DATA_MIN = 12  # bytes: the array at the end, which may be longer
_LINK_LOCAL_SCOPE = slice(2, 4)

IpAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An interface, as a gateway (of what is on its own link) or as an answer."""

    index: int
    name: str = ""


def encode_address(address: str, *, embed_scope: bool = False) -> bytes:
    """Return the sockaddr_in or sockaddr_in6 of `address`, port 0. `fe80::1%12` has a scope, which must be a number.

    `embed_scope`: in routing messages the kernel wants the scope of a link-local address within the address (route(8)).
    """
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return _IN.pack(_IN.size, AF_INET, 0, ip.packed)
    scope = int(ip.scope_id) if ip.scope_id else 0
    if embed_scope and scope:
        packed = bytearray(ip.packed)
        packed[_LINK_LOCAL_SCOPE] = scope.to_bytes(2, "big")
        return _IN6.pack(_IN6.size, AF_INET6, 0, 0, bytes(packed))
    return _IN6.pack(_IN6.size, AF_INET6, 0, 0, ip.packed)[:-4] + struct.pack("=I", scope)


def encode_mask(prefix: str) -> bytes:
    """Return the mask of a prefix such as `10.0.0.0/8` as a whole sockaddr: the kernel trims it itself."""
    return encode_address(str(ip_network(prefix).netmask))


def encode_link(link: LinkAddress | None = None) -> bytes:
    """Return a sockaddr_dl; without a link an empty one, which asks for the interface of an answer."""
    if link is None:
        return _DL.pack(_DL.size + _DL_DATA_MIN, AF_LINK, 0, 0, 0, 0, 0) + bytes(_DL_DATA_MIN)
    name = link.name.encode()
    data = name.ljust(_DL_DATA_MIN, b"\0")
    return _DL.pack(_DL.size + len(data), AF_LINK, link.index, IFT_OTHER, len(name), 0, 0) + data


def parse_address(data: Buffer) -> IpAddress | LinkAddress | None:
    """Return what a sockaddr of a kernel's message says; None for a family that is of no use here, or one cut short."""
    data = bytes(data)
    if len(data) < 2:
        return None
    family = data[1]
    if family == AF_INET:
        return IPv4Address(data[4:8].ljust(4, b"\0"))
    if family == AF_INET6:
        return _parse_in6(data)
    if family == AF_LINK and len(data) >= _DL.size:
        _, _, index, _, name_len, _, _ = _DL.unpack_from(data)
        return LinkAddress(index, data[_DL.size : _DL.size + name_len].decode(errors="replace"))
    return None


def _parse_in6(data: bytes) -> IPv6Address:
    packed = bytearray(data[8:24].ljust(16, b"\0"))
    scope = int.from_bytes(data[24:28], "little")
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and any(packed[_LINK_LOCAL_SCOPE]):
        scope = int.from_bytes(packed[_LINK_LOCAL_SCOPE], "big")
        packed[_LINK_LOCAL_SCOPE] = b"\0\0"
    address = IPv6Address(bytes(packed))
    return IPv6Address(f"{address}%{scope}") if scope and address.is_link_local else address


def parse_prefix_length(mask: Buffer, version: int) -> int | None:
    """Return the length of a prefix from its mask in a kernel's message; None for a mask with holes.

    The kernel cuts trailing zero bytes (/24 has 7 bytes, /0 has none) and leaves the family undefined: `version` (4 or 6) is
    that of the destination.
    """
    start, size = (4, 4) if version == 4 else (8, 16)
    bits = 8 * size
    number = int.from_bytes(bytes(mask)[start : start + size].ljust(size, b"\0"), "big")
    length = number.bit_count()
    return length if number == ((1 << length) - 1) << (bits - length) else None
