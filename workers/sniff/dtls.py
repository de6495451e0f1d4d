"""DTLS: the header of a record (RFC 6347, 4.1; a DTLS 1.3 client begins with the same one, RFC 9147, 4)."""

from workers.sniff.result import Sniffed

__all__ = ["sniff"]

HEADER = 13  # bytes: type (1), version (2), epoch (2), sequence number (6), length (2)
CONTENT_TYPES = (20, 21, 22, 23, 25)  # change cipher spec, alert, handshake, data, data with connection id (RFC 9146)
VERSIONS = (b"\xfe\xff", b"\xfe\xfd")  # 1.0; 1.2, which 1.3 claims too


def sniff(datagram: bytes) -> Sniffed | None:
    """Look at the first datagram of a flow."""
    if len(datagram) < HEADER or datagram[0] not in CONTENT_TYPES or datagram[1:3] not in VERSIONS:
        return None
    length = datagram[11] << 8 | datagram[12]
    return Sniffed("dtls") if 0 < length <= len(datagram) - HEADER else None
