"""HTTP/2 in the clear with prior knowledge (RFC 9113, 3.3): the :authority of the first request.

preface (24 bytes), then frames:  | length (3) | type | flags | stream (4) |  payload
"""

from hpack import Decoder
from hpack.exceptions import HPACKError

from workers.sniff.domain import domain_of_authority
from workers.sniff.reader import Reader, Truncated
from workers.sniff.result import Incomplete, Result, Sniffed

__all__ = ["PREFACE", "sniff"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
FRAME_MAX = 1 << 14  # bytes of payload before SETTINGS are agreed (RFC 9113, 4.2)
FRAMES_MAX = 32  # until the first HEADERS are complete; clients send SETTINGS, a WINDOW_UPDATE, and up to six PRIORITY
HEADERS = 1
CONTINUATION = 9
END_HEADERS = 0x04
PADDED = 0x08
PRIORITY = 0x20


def sniff(data: bytes) -> Result:
    """Look at the first bytes of a TCP client, which begin with the preface or are a beginning of it."""
    if len(data) < len(PREFACE):
        return Incomplete()
    certain = Sniffed("http")
    reader = Reader(data)
    reader.take(len(PREFACE))
    block = bytearray()
    try:
        for _ in range(FRAMES_MAX):
            length, kind, flags, _ = reader.number(3), reader.number(1), reader.number(1), reader.number(4)
            if length > FRAME_MAX:
                return certain
            payload = reader.take(length)
            if kind == HEADERS:
                block += _field_block(payload, flags)
            elif kind == CONTINUATION:
                block += payload
            else:  # SETTINGS, WINDOW_UPDATE, PRIORITY: nothing to know
                continue
            if flags & END_HEADERS:
                return Sniffed("http", _authority(bytes(block)))
    except Truncated:
        return Incomplete(certain)
    return certain


def _field_block(payload: bytes, flags: int) -> bytes:
    """Return the payload of a HEADERS frame without padding and priority (RFC 9113, 6.2)."""
    padding = payload[0] if flags & PADDED and payload else 0
    start = (1 if flags & PADDED else 0) + (5 if flags & PRIORITY else 0)
    return payload[start : max(start, len(payload) - padding)]


def _authority(block: bytes) -> str | None:
    try:
        fields = {bytes(name): bytes(value) for name, value in Decoder().decode(block, raw=True)}
    except HPACKError:
        return None
    return domain_of_authority(fields.get(b":authority") or fields.get(b"host") or b"")
