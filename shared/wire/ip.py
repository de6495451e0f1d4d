"""IPv4 (RFC 791) and IPv6 (RFC 8200) headers, of packets that stand in a buffer at some offset.

IPv4   0 version, IHL   2 total length   4 id   6 flags, fragment offset   8 TTL   9 protocol   10 checksum
       12 source   16 destination
IPv6   0 version, class, flow label      4 payload length   6 next header  7 hop limit         8 source      24 destination
"""

from struct import Struct
from typing import NamedTuple

from shared.wire.checksum import checksum, ones_sum

__all__ = [
    "HEADER_LENGTH",
    "HOP_LIMIT",
    "ICMP",
    "ICMPV6",
    "IPV4",
    "IPV4_DONT_FRAGMENT",
    "IPV6",
    "IPV6_FRAGMENT",
    "PROTOCOL_ICMP",
    "TCP",
    "UDP",
    "IpPacket",
    "fragments",
    "header",
    "parse",
]

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
PROTOCOL_ICMP = {4: ICMP, 6: ICMPV6}
"""IP version -> protocol number of its ICMP."""

HEADER_LENGTH = {4: 20, 6: 40}
"""IP version -> bytes of a header without options or extensions."""

HOP_LIMIT = 64
"""TTL / hop limit of packets we make (IANA ip-parameters: the recommended default)."""

IPV4_DONT_FRAGMENT = 0x4000
IPV4_MORE_FRAGMENTS = 0x2000
IPV4_FRAGMENT_MASK = 0x3FFF  # more fragments | offset: not zero in any fragment

IPV4 = Struct(">BBHHHBBH4s4s")
IPV6 = Struct(">IHBB16s16s")
IPV6_FRAGMENT = Struct(">BxHI")  # next header, offset in octets | more flag, identification (RFC 8200 4.5)

_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_DESTINATION = 60
_EXTENSIONS_MAX = 8
"""Extension headers followed before a packet is given up: no sane packet has more than 4 (RFC 8200 4.1)."""


class IpPacket(NamedTuple):
    """What the upper layer needs to know of a packet in a buffer."""

    version: int
    protocol: int
    """Upper-layer protocol, behind all extension headers."""
    source: bytes
    destination: bytes
    payload_at: int
    """Offset of the upper-layer header in the buffer."""
    end: int
    """Offset after the packet's last byte; what follows in the buffer is padding."""
    is_fragment: bool
    """Only a part of the payload is there, and `payload_at` may not be its beginning."""


def parse(buffer: memoryview, at: int, *, verify: bool) -> IpPacket | None:
    """Return the packet that begins at `at`, or None when its header is malformed.

    `verify`: also check the IPv4 header checksum. The total length must not exceed the buffer.
    """
    if len(buffer) <= at:
        return None
    version = buffer[at] >> 4
    if version == 4:
        return _parse4(buffer, at, verify)
    if version == 6:
        return _parse6(buffer, at)
    return None


def _parse4(buffer: memoryview, at: int, verify: bool) -> IpPacket | None:
    if len(buffer) < at + 20:
        return None
    first, _, total, _, fragment, _, protocol, _, source, destination = IPV4.unpack_from(buffer, at)
    header_length = (first & 0xF) * 4
    if not 20 <= header_length <= total <= len(buffer) - at:
        return None
    if verify and ones_sum(buffer[at : at + header_length]) != 0xFFFF:
        return None
    is_fragment = bool(fragment & IPV4_FRAGMENT_MASK)
    return IpPacket(4, protocol, source, destination, at + header_length, at + total, is_fragment)


def _parse6(buffer: memoryview, at: int) -> IpPacket | None:
    if len(buffer) < at + 40:
        return None
    _, length, protocol, _, source, destination = IPV6.unpack_from(buffer, at)
    end = at + 40 + length
    if end > len(buffer):
        return None
    payload_at = at + 40
    is_fragment = False
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION):
            return IpPacket(6, protocol, source, destination, payload_at, end, is_fragment)
        if payload_at + 8 > end:
            return None
        if protocol == _FRAGMENT:
            _, offset, _ = IPV6_FRAGMENT.unpack_from(buffer, payload_at)
            # offset 0 without "more" is an atomic fragment, a whole packet (RFC 6946)
            is_fragment |= offset & 0xFFF9 != 0
            length = 8
        else:
            if protocol == _ROUTING and buffer[payload_at + 3]:
                return None  # segments left: the packet is not yet at its destination, and we do not route
            length = (buffer[payload_at + 1] + 1) * 8
        protocol = buffer[payload_at]
        payload_at += length
        if payload_at > end:
            return None
    return None


def header(version: int, source: bytes, destination: bytes, protocol: int, payload_length: int) -> bytes:
    """Return the header of a packet that may not be fragmented, its checksum complete. Lengths in bytes."""
    if version == 4:
        return _header4(source, destination, protocol, payload_length, 0, IPV4_DONT_FRAGMENT)
    return IPV6.pack(0x60000000, payload_length, protocol, HOP_LIMIT, source, destination)


def _header4(source: bytes, destination: bytes, protocol: int, length: int, ident: int, fragment: int) -> bytes:
    fields = IPV4.pack(0x45, 0, 20 + length, ident, fragment, HOP_LIMIT, protocol, 0, source, destination)
    return fields[:10] + checksum(fields).to_bytes(2, "big") + fields[12:]


def fragments(
    version: int, source: bytes, destination: bytes, protocol: int, payload: memoryview, mtu: int, ident: int
) -> list[tuple[bytes, memoryview]]:
    """Split `payload`, an upper-layer packet, into fragments of at most `mtu` bytes: (headers, part of the payload).

    `ident` tells this packet from others between the two addresses: 16 bits for IPv4, 32 for IPv6.
    """
    overhead = 20 if version == 4 else 48
    step = (mtu - overhead) & ~7  # offsets count in 8 octets
    parts = []
    for offset in range(0, len(payload), step):
        part = payload[offset : offset + step]
        more = offset + step < len(payload)
        if version == 4:
            fragment = offset >> 3 | (IPV4_MORE_FRAGMENTS if more else 0)
            head = _header4(source, destination, protocol, len(part), ident & 0xFFFF, fragment)
        else:
            head = IPV6.pack(0x60000000, 8 + len(part), _FRAGMENT, HOP_LIMIT, source, destination)
            head += IPV6_FRAGMENT.pack(protocol, offset | more, ident & 0xFFFFFFFF)
        parts.append((head, part))
    return parts
