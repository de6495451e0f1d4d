"""UDP datagrams (RFC 768; over IPv6: RFC 8200 8.1).

0 source port   2 destination port   4 length   6 checksum
"""

from struct import Struct

from shared.buffer import Buffer
from shared.wire import ip
from shared.wire.checksum import ones_sum, pseudo_header_sum

__all__ = ["HEADER", "HEADER_LENGTH", "PAYLOAD_MAX", "header"]

HEADER = Struct(">HHHH")
HEADER_LENGTH = 8
PAYLOAD_MAX = 65507
"""Bytes of the largest datagram that fits both versions: 65,535 - 20 (IPv4) - 8."""


def header(source: bytes, source_port: int, destination: bytes, destination_port: int, payload: Buffer) -> bytes:
    """Return the UDP header for `payload`, its checksum complete."""
    length = HEADER_LENGTH + memoryview(payload).nbytes
    fields = pseudo_header_sum(source, destination, ip.UDP, length) + source_port + destination_port + length
    # A sum of 0xFFFF would give the field 0, which says "no checksum": 0xFFFF is sent instead (RFC 768).
    field = ones_sum(payload, fields) ^ 0xFFFF or 0xFFFF
    return HEADER.pack(source_port, destination_port, length, field)
