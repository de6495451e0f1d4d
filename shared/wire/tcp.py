"""TCP segments (RFC 9293 3.1) and their options.

0 source port   2 destination port   4 sequence   8 acknowledgment   12 offset, flags   14 window   16 checksum
18 urgent pointer
"""

from struct import Struct
from typing import NamedTuple

from shared.wire import ip
from shared.wire.checksum import checksum, pseudo_header_sum
from shared.wire.virtio import HEADER_NONE

__all__ = [
    "ACK",
    "CWR",
    "ECE",
    "FIN",
    "HEADER",
    "PSH",
    "RST",
    "SYN",
    "TIMESTAMP",
    "TIMESTAMP_LAYOUT",
    "URG",
    "Options",
    "build",
    "parse_options",
    "reverse",
    "sack_option",
    "syn_options",
    "timestamp_option",
]

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10
URG = 0x20
ECE = 0x40
CWR = 0x80

HEADER = Struct(">HHIIHHHH")
_AFTER_PORTS = Struct(">IIHHHH")

TIMESTAMP = Struct(">III")  # layout, TSval, TSecr
TIMESTAMP_LAYOUT = 0x0101080A
"""NOP, NOP, kind 8, length 10: how every stack lays out the timestamps option (RFC 7323 appendix A)."""

_END = 0
_NOP = 1
_MSS = 2
_WINDOW_SCALE = 3
_SACK_PERMITTED = 4
_SACK = 5
_TIMESTAMPS = 8
_PAIR = Struct(">II")
_WINDOW_SCALE_MAX = 14  # RFC 7323 2.3: a larger shift is taken as 14


class Options(NamedTuple):
    """The options of one segment; an absent one is None, False or ()."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamps: tuple[int, int] | None = None
    """(TSval, TSecr)"""
    sack: tuple[tuple[int, int], ...] = ()
    """(left edge, right edge) of each block, as sequence numbers on the wire."""


def parse_options(data: memoryview) -> Options | None:
    """Return the options in `data`, the part of a TCP header after its first 20 bytes; None when a length lies.

    Unknown options are skipped; a known one of wrong length is taken as unknown (RFC 9293 3.1, MUST-6, MUST-7).
    """
    mss = window_scale = timestamps = None
    sack_permitted = False
    sack: tuple[tuple[int, int], ...] = ()
    at = 0
    size = len(data)
    while at < size:
        kind = data[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 2 > size:
            return None
        length = data[at + 1]
        if length < 2 or at + length > size:
            return None
        if kind == _MSS and length == 4:
            mss = data[at + 2] << 8 | data[at + 3]
        elif kind == _WINDOW_SCALE and length == 3:
            window_scale = min(data[at + 2], _WINDOW_SCALE_MAX)
        elif kind == _SACK_PERMITTED and length == 2:
            sack_permitted = True
        elif kind == _TIMESTAMPS and length == 10:
            timestamps = _PAIR.unpack_from(data, at + 2)
        elif kind == _SACK and length % 8 == 2:
            sack = tuple(_PAIR.iter_unpack(data[at + 2 : at + length]))
        at += length
    return Options(mss, window_scale, sack_permitted, timestamps, sack)


def timestamp_option(value: int, echo: int) -> bytes:
    """Return the timestamps option (RFC 7323 3.2), padded to 12 bytes."""
    return TIMESTAMP.pack(TIMESTAMP_LAYOUT, value, echo)


def sack_option(blocks: list[tuple[int, int]]) -> bytes:
    """Return the SACK option (RFC 2018 3) of these blocks, padded to a multiple of 4 bytes."""
    return bytes((_NOP, _NOP, _SACK, 2 + 8 * len(blocks))) + b"".join(_PAIR.pack(*block) for block in blocks)


def syn_options(options: Options) -> bytes:
    """Return the options of a SYN or SYN-ACK, padded to a multiple of 4 bytes."""
    parts = []
    if options.mss is not None:
        parts.append(bytes((_MSS, 4)) + options.mss.to_bytes(2, "big"))
    if options.sack_permitted:
        parts.append(bytes((_NOP, _NOP, _SACK_PERMITTED, 2)))
    if options.timestamps is not None:
        parts.append(timestamp_option(*options.timestamps))
    if options.window_scale is not None:
        parts.append(bytes((_NOP, _WINDOW_SCALE, 3, options.window_scale)))
    return b"".join(parts)


def reverse(flow: bytes) -> bytes:
    """Turn a flow key, source and destination address and ports as in a packet, into that of the answering packet."""
    size = len(flow) // 2 - 2
    return flow[size : 2 * size] + flow[:size] + flow[-2:] + flow[-4:-2]


def build(
    flow: bytes,
    *,
    seq: int,
    ack: int,
    flags: int,
    window: int = 0,
    options: bytes = b"",
    payload: bytes = b"",
) -> bytes:
    """Return a whole packet: empty virtio header, IP, TCP, all checksums complete. For the rare segments.

    `flow`: source and destination address, source and destination port, as they stand in the packet. `seq`, `ack` and
    `window` as they stand on the wire; `options` a multiple of 4 bytes.
    """
    size = len(flow) // 2 - 2
    source, destination = flow[:size], flow[size : 2 * size]
    length = 20 + len(options) + len(payload)
    offset_flags = (5 + len(options) // 4) << 12 | flags
    segment = bytearray(flow[-4:] + _AFTER_PORTS.pack(seq, ack, offset_flags, window, 0, 0) + options + payload)
    segment[16:18] = checksum(segment, pseudo_header_sum(source, destination, ip.TCP, length)).to_bytes(2, "big")
    return HEADER_NONE + ip.header(4 if size == 4 else 6, source, destination, ip.TCP, length) + segment
