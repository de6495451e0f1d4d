"""ICMP (RFC 792) and ICMPv6 (RFC 4443) messages.

    0 type   1 code   2 checksum   4 rest of header (echo: identifier, sequence)   8 data

Both versions agree but for the type numbers and for the pseudo header, which only ICMPv6 sums (RFC 4443 2.3).
"""

from struct import Struct

from shared.buffer import Buffer
from shared.wire import ip
from shared.wire.checksum import ones_sum, pseudo_header_sum

__all__ = [
    "ECHO_REPLY",
    "ECHO_REQUEST",
    "FRAGMENTATION_NEEDED",
    "HEADER",
    "HEADER_LENGTH",
    "PACKET_TOO_BIG",
    "QUOTE_MAX",
    "UNREACHABLE",
    "checksum_of",
    "header",
]

HEADER = Struct(">BBHI")
HEADER_LENGTH = 8

ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
UNREACHABLE = {4: 3, 6: 1}
FRAGMENTATION_NEEDED = 4  # code of an IPv4 "unreachable"; the next-hop MTU is in the low half of `rest` (RFC 1191 4)
PACKET_TOO_BIG = 2  # ICMPv6 type; the MTU is `rest` (RFC 4443 3.2)

QUOTE_MAX = {4: 576 - 20 - 8, 6: 1280 - 40 - 8}
"""IP version -> bytes of the offending packet an error may quote (RFC 1812 4.3.2.3, RFC 4443 2.4 (c))."""


def checksum_of(version: int, source: bytes, destination: bytes, message: Buffer) -> int:
    """Return the one's complement sum of a whole message; 0xFFFF says that its checksum is right."""
    length = memoryview(message).nbytes
    pseudo = pseudo_header_sum(source, destination, ip.ICMPV6, length) if version == 6 else 0
    return ones_sum(message, pseudo)


def header(version: int, source: bytes, destination: bytes, kind: int, code: int, rest: int, data: Buffer) -> bytes:
    """Return the ICMP header of a message with this `data`, its checksum complete. `rest` as a 32-bit number."""
    length = HEADER_LENGTH + memoryview(data).nbytes
    fields = (kind << 8 | code) + rest
    if version == 6:
        fields += pseudo_header_sum(source, destination, ip.ICMPV6, length)
    return HEADER.pack(kind, code, ones_sum(data, fields) ^ 0xFFFF, rest)
