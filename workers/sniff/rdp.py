"""RDP: the X.224 Connection Request of the client (MS-RDPBCGR 2.2.1.1).

    TPKT:  | 3 | 0 | length (2) |                                                                        (RFC 1006, 6)
    X.224: | length | 0xE0 | destination (2) | source (2) | class |                                      (RFC 905, 13.3)
    then, both optional: a cookie or routing token up to CR LF; an RDP Negotiation Request of 8 bytes

The same first 11 bytes begin other protocols on ISO transport (S7, H.323), so one of the two options must be there.
"""

from workers.sniff.reader import Reader, Truncated
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["sniff"]

CONNECTION_REQUEST = 0xE0
FIXED = 11  # bytes of TPKT and X.224
COOKIES = (b"Cookie: mstshash=", b"Cookie: msts=")
NEGOTIATION_REQUEST = 1
NEGOTIATION_SIZE = 8
CORRELATION_SIZE = 36  # RDP Correlation Info, behind the Negotiation Request


def sniff(data: bytes) -> Result:
    """Look at the first bytes of a TCP client."""
    reader = Reader(data)
    try:
        if reader.number(1) != 3 or reader.number(1) != 0:
            return None
        length = reader.number(2)
        if length <= FIXED or reader.number(1) != length - 5 or reader.number(1) != CONNECTION_REQUEST:
            return None
        if reader.number(2) != 0:
            return None
        reader.take(2 + 1)
        options = reader.take(length - FIXED)
    except Truncated:
        return Incomplete()
    if options.startswith(COOKIES):
        return Sniffed("rdp") if b"\r\n" in options else None
    return Sniffed("rdp") if _is_negotiation(options) else None


def _is_negotiation(data: bytes) -> bool:
    size = int.from_bytes(data[2:4], "little")
    whole = len(data) in (NEGOTIATION_SIZE, NEGOTIATION_SIZE + CORRELATION_SIZE)
    return whole and data[0] == NEGOTIATION_REQUEST and size == NEGOTIATION_SIZE
