"""SOCKS 5 on the wire (RFC 1928, RFC 1929): addresses, replies, and the header and fragments of relayed datagrams.

    +----+------+------+----------+----------+----------+
    |RSV | FRAG | ATYP | DST.ADDR | DST.PORT |   DATA   |      RFC 1928, section 7
    +----+------+------+----------+----------+----------+
    | 2  |  1   |  1   | Variable |    2     | Variable |
    +----+------+------+----------+----------+----------+

FRAG is 0 for a whole datagram; else 1..127, the position of the fragment, with END set on the last one.
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct

__all__ = [
    "CONNECT",
    "DOMAIN",
    "FRAG_AT",
    "IPV4",
    "IPV6",
    "NO_ACCEPTABLE_METHOD",
    "NO_AUTHENTICATION",
    "PASSWORD_VERSION",
    "UDP_ASSOCIATE",
    "USERNAME_PASSWORD",
    "VERSION",
    "Reassembler",
    "Reply",
    "UdpHeader",
    "encode_address",
    "encode_udp_header",
    "encode_udp_header_to_name",
    "max_datagram",
    "parse_address",
    "parse_udp_header",
    "split_datagram",
]

VERSION = 5
PASSWORD_VERSION = 1  # of the sub-negotiation, RFC 1929 section 2

NO_AUTHENTICATION = 0x00
USERNAME_PASSWORD = 0x02
NO_ACCEPTABLE_METHOD = 0xFF

CONNECT = 1
UDP_ASSOCIATE = 3

IPV4 = 1
DOMAIN = 3
IPV6 = 4

FRAG_AT = 2  # offset of FRAG in a datagram
END = 0x80  # high-order bit of FRAG: end of fragment sequence
FRAGMENTS_MAX = 127

UDP_MAX_OVER_IPV4 = (
    65535 - 20 - 8
)  # bytes of UDP payload: total length is 16 bits and counts both headers (RFC 791, 3.1)
UDP_MAX_OVER_IPV6 = 65535 - 8  # payload length does not count the IPv6 header (RFC 8200, 3)

REASSEMBLY_TIMEOUT = 5.0  # seconds, the least that RFC 1928 section 7 allows

_IPV4_HEADER = Struct(">2xBB4sH")
_IPV6_HEADER = Struct(">2xBB16sH")

UdpHeader = tuple[int, int, bytes, int, int]
"""FRAG, ATYP, address (packed; of DOMAIN the bytes of the name), port, offset of the data. A plain tuple: one a datagram."""


class Reply(IntEnum):
    """REP field, RFC 1928 section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


def encode_address(address: bytes, port: int) -> bytes:
    """Return ATYP, address and port; `address` is packed, 4 or 16 bytes."""
    return bytes((IPV4 if len(address) == 4 else IPV6,)) + address + port.to_bytes(2, "big")


def parse_address(data: bytes | bytearray | memoryview, at: int) -> tuple[int, bytes, int, int] | None:
    """Parse ATYP, address and port at offset `at`: (ATYP, address, port, offset behind it), None while bytes are missing.

    Raises ValueError for an unknown address type.
    """
    if len(data) < at + 2:
        return None
    kind = data[at]
    start = at + 1
    if kind == IPV4:
        end = start + 4
    elif kind == IPV6:
        end = start + 16
    elif kind == DOMAIN:
        start += 1
        end = start + data[at + 1]
    else:
        raise ValueError(f"unknown SOCKS5 address type {kind}")
    if len(data) < end + 2:
        return None
    return kind, bytes(data[start:end]), int.from_bytes(data[end : end + 2], "big"), end + 2


def encode_udp_header(address: bytes, port: int) -> bytes:
    """Return the header of a whole datagram to or from `address` (packed, 4 or 16 bytes)."""
    return b"\0\0\0" + encode_address(address, port)


def encode_udp_header_to_name(name: str, port: int) -> bytes:
    """Return the header of a whole datagram to a host name. Raises ValueError for one that is longer than 255 bytes."""
    encoded = name.encode("idna" if not name.isascii() else "ascii")
    if not 0 < len(encoded) < 256:
        raise ValueError(f"{name!r} is no host name")
    return b"\0\0\0" + bytes((DOMAIN, len(encoded))) + encoded + port.to_bytes(2, "big")


def parse_udp_header(datagram: memoryview) -> UdpHeader | None:
    """Return the parts of a relayed datagram's header; None when it is malformed."""
    size = len(datagram)
    if size < 4:
        return None
    kind = datagram[3]
    if kind == IPV4 and size >= 10:
        fragment, _, address, port = _IPV4_HEADER.unpack_from(datagram)
        return fragment, IPV4, address, port, 10
    if kind == IPV6 and size >= 22:
        fragment, _, address, port = _IPV6_HEADER.unpack_from(datagram)
        return fragment, IPV6, address, port, 22
    if kind == DOMAIN:
        parsed = parse_address(datagram, 3)
        if parsed is not None:
            return datagram[FRAG_AT], *parsed
    return None


def max_datagram(over_ipv6: bool) -> int:
    """Bytes of the largest UDP payload between client and relay, SOCKS header included."""
    return UDP_MAX_OVER_IPV6 if over_ipv6 else UDP_MAX_OVER_IPV4


def split_datagram(header: bytes, payload: memoryview, limit: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (header, piece) of the fragments that carry `payload` when header and payload exceed `limit` bytes."""
    piece = limit - len(header)
    count = -(-len(payload) // piece)
    assert count <= FRAGMENTS_MAX, "FRAG has 7 bits for the position"
    for position in range(1, count + 1):
        fragment = position | END if position == count else position
        yield (
            header[:FRAG_AT] + bytes((fragment,)) + header[FRAG_AT + 1 :],
            payload[(position - 1) * piece : position * piece],
        )


class Reassembler:
    """The reassembly queue of one association: one datagram at a time, in order, as RFC 1928 section 7 has it.

    Holds at most one datagram of UDP_MAX_OVER_IPV6 bytes, and none that is older than REASSEMBLY_TIMEOUT.
    """

    __slots__ = ("_data", "_expires_at", "_next", "_peer")

    def __init__(self) -> None:
        self._data = bytearray()
        self._next = 1  # position that continues the queue
        self._peer: tuple[bytes, int] = (b"", 0)
        self._expires_at = 0.0

    def add(self, fragment: int, address: bytes, port: int, data: memoryview, now: float) -> bytearray | None:
        """Take one fragment (`data` is copied); return the datagram it completes, or None.

        A fragment that does not continue the queue abandons it. The caller counts what is lost, if it wants to.
        """
        position = fragment & ~END
        if position == 1:
            self._data = bytearray()
            self._peer = (address, port)
            self._expires_at = now + REASSEMBLY_TIMEOUT
        elif position != self._next or self._peer != (address, port) or now >= self._expires_at:
            self._abandon()
            return None
        if len(self._data) + len(data) > UDP_MAX_OVER_IPV6:
            self._abandon()
            return None
        self._data += data
        self._next = position + 1
        if not fragment & END:
            return None
        whole = self._data
        self._abandon()
        return whole

    def _abandon(self) -> None:
        self._data = bytearray()
        self._next = 1
        self._expires_at = 0.0
