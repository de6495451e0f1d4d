"""DNS: a message from a client, alone in a datagram or behind its length on TCP (RFC 1035, 4.1 and 4.2.2).

The name asked for is not the server's name, so that nothing is told but the protocol.
"""

from workers.sniff.reader import Reader, Truncated
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["sniff", "sniff_stream"]

OPCODES = (0, 4, 5)  # query, notify, update
NOT_OF_A_CLIENT = 0x8000 | 0x0200 | 0x0080 | 0x0040 | 0x000F  # QR, TC, RA, Z, RCODE (RFC 1035, 4.1.1)
CLASSES = (1, 3, 4, 254, 255)  # IN, CH, HS, NONE and ANY (RFC 2136)
UNICAST_RESPONSE = 0x8000  # in the class of mDNS questions (RFC 6762, 5.4)
RECORDS_MAX = 64  # a client's message has a question, an OPT record and seldom more
MESSAGE_MIN = 12 + 5  # bytes: header, question for the root
NAME_MAX = 255  # bytes (RFC 1035, 2.3.4)
POINTER = 0xC0


def sniff(datagram: bytes) -> Sniffed | None:
    """Look at the first datagram of a flow."""
    try:
        return Sniffed("dns") if _is_request(Reader(datagram)) else None
    except Truncated:
        return None


def sniff_stream(data: bytes) -> Result:
    """Look at the first bytes of a TCP client."""
    if len(data) < 2:
        return Incomplete()
    length = data[0] << 8 | data[1]
    if length < MESSAGE_MIN:
        return None
    message = data[2 : 2 + length]
    try:
        return Sniffed("dns") if _is_request(Reader(message)) else None
    except Truncated:
        return Incomplete() if len(message) < length else None


def _is_request(reader: Reader) -> bool:
    """Whether a well-formed request lies in `reader`. Raises Truncated when it ends too early."""
    reader.take(2)  # id
    flags = reader.number(2)
    if flags & NOT_OF_A_CLIENT or flags >> 11 not in OPCODES:
        return False
    questions = reader.number(2)
    if not questions:
        return False
    records = sum(reader.number(2) for _ in range(3))
    if questions + records > RECORDS_MAX:
        return False
    for _ in range(questions):
        if not _skip_name(reader):
            return False
        kind, class_ = reader.number(2), reader.number(2)
        if kind == 0 or class_ & ~UNICAST_RESPONSE not in CLASSES:
            return False
    for _ in range(records):
        if not _skip_name(reader):
            return False
        reader.take(2 + 2 + 4)  # type, class, TTL
        reader.vector(2)
    return True


def _skip_name(reader: Reader) -> bool:
    """Read past a name; False if it is malformed. Raises Truncated."""
    start = reader.at
    while (length := reader.number(1)) and reader.at - start <= NAME_MAX:
        if length & POINTER == POINTER:
            reader.take(1)
            return True
        if length & POINTER:
            return False
        reader.take(length)
    return reader.at - start <= NAME_MAX
