"""STUN, and TURN which is built on it: the header of a message (RFC 8489, 5)."""

from workers.sniff.result import Sniffed

__all__ = ["sniff"]

HEADER = 20  # bytes
MAGIC_COOKIE = b"\x21\x12\xa4\x42"


def sniff(datagram: bytes) -> Sniffed | None:
    """Look at the first datagram of a flow."""
    if len(datagram) < HEADER or datagram[0] & 0xC0 or datagram[4:8] != MAGIC_COOKIE:
        return None
    length = datagram[2] << 8 | datagram[3]
    return Sniffed("stun") if length % 4 == 0 and HEADER + length <= len(datagram) else None
