"""Reassembly of IP fragments before hashing: later fragments carry no ports, so no worker could be chosen for them.

Bounded in bytes, datagrams, pieces and seconds. Overlapping fragments condemn their datagram (RFC 5722, RFC 1858: they are
made to pass filters). Rare path: the kernel of this machine never fragments TCP, and UDP only beyond the tun's MTU.
"""

from collections import OrderedDict

from shared.wire.checksum import checksum
from shared.wire.virtio import HEADER_LEN, HEADER_NONE

__all__ = ["MAX_BYTES", "Reassembler"]

TIMEOUT = 30.0  # seconds; RFC 791 allows 15, RFC 8200 (4.5) 60; Linux' ipfrag_time is 30
MAX_BYTES = 8 * 1024 * 1024
MAX_DATAGRAMS = 512  # also those that were refused and hold no bytes; Linux counts memory (ipfrag_high_thresh, 4 MiB)
MAX_PIECES = 1024  # per datagram: 64 KiB in pieces of 64 bytes; Linux has no such bound, smoltcp 4
IP_MAX = 65535

_FRAGMENT = 44  # RFC 8200 (4.5)


class _Datagram:
    """The pieces so far of one datagram."""

    __slots__ = ("end", "expires_at", "header", "pieces", "received", "refused", "total")

    def __init__(self, expires_at: float) -> None:
        self.expires_at = expires_at
        self.header = b""  # of the fragment with offset 0, ready for the whole datagram but for its length
        self.pieces: dict[int, bytes] = {}  # offset in bytes -> payload
        self.received = 0
        self.end = 0  # behind the farthest piece
        self.total: int | None = None  # payload bytes, known once the last fragment is here
        self.refused = False


class Reassembler:
    """Collects fragments. `dropped` counts fragments that will never be part of a packet."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._datagrams: OrderedDict[bytes, _Datagram] = OrderedDict()  # oldest first
        self._max_bytes = max_bytes
        self.bytes_held = 0
        self.dropped = 0

    def add(self, packet: memoryview, now: float) -> bytes | None:
        """Take a fragment (virtio header + IP packet); return the whole packet, also with virtio header, once complete.

        `now` in monotonic seconds. Damaged, overlapping or oversized fragments are counted in `dropped`.
        """
        self.expire(now)
        parsed = _parse(packet[HEADER_LEN:])
        if parsed is None:
            self.dropped += 1
            return None
        key, header, offset, more, payload = parsed
        if offset == 0 and not more:  # an atomic fragment has nothing to do with any other (RFC 6946, 4)
            return _assemble(header, payload)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._datagrams[key] = _Datagram(now + TIMEOUT)
        if datagram.refused or not self._place(datagram, header, offset, more, payload):
            self._refuse(datagram)
            self.dropped += 1
        elif datagram.received == datagram.total and datagram.header:
            self._forget(key)
            whole = _assemble(datagram.header, b"".join(piece for _, piece in sorted(datagram.pieces.items())))
            if whole is None:
                self.dropped += len(datagram.pieces)
            return whole
        self._make_room()
        return None

    def expire(self, now: float) -> None:
        """Forget the datagrams whose time is up."""
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.expires_at > now:
                return
            self.dropped += len(datagram.pieces)
            self._forget(key)

    def _make_room(self) -> None:
        """Forget the oldest datagrams while the bounds are exceeded."""
        while self.bytes_held > self._max_bytes or len(self._datagrams) > MAX_DATAGRAMS:
            key, datagram = next(iter(self._datagrams.items()))
            self.dropped += len(datagram.pieces)
            self._forget(key)

    def _place(self, datagram: _Datagram, header: bytes, offset: int, more: bool, payload: bytes) -> bool:
        """Put a piece in its place; False when it contradicts the others."""
        end = offset + len(payload)
        if not payload or (more and len(payload) % 8) or end + len(header) > IP_MAX + 40:
            return False
        if datagram.pieces.get(offset) == payload:
            self.dropped += 1
            return True  # an exact copy: the network may duplicate, that is no attack
        if any(offset < at + len(piece) and at < end for at, piece in datagram.pieces.items()):
            return False
        if not more:
            if datagram.total is not None or datagram.end > end:
                return False
            datagram.total = end
        if len(datagram.pieces) >= MAX_PIECES or (datagram.total is not None and end > datagram.total):
            return False
        datagram.end = max(datagram.end, end)
        if offset == 0:
            datagram.header = header
        datagram.pieces[offset] = payload
        datagram.received += len(payload)
        self.bytes_held += len(payload)
        return True

    def _refuse(self, datagram: _Datagram) -> None:
        """Keep the entry, empty, so that its other fragments are recognised until it expires."""
        self.bytes_held -= datagram.received
        self.dropped += len(datagram.pieces)
        datagram.pieces.clear()
        datagram.received = 0
        datagram.refused = True

    def _forget(self, key: bytes) -> None:
        self.bytes_held -= self._datagrams.pop(key).received


def _parse(ip: memoryview) -> tuple[bytes, bytes, int, bool, bytes] | None:
    """Return (key, header of the whole datagram, offset in bytes, more fragments, payload) of a fragment."""
    if ip[0] >> 4 == 4:
        header_len = (ip[0] & 15) * 4
        total = ip[2] << 8 | ip[3]
        field = ip[6] << 8 | ip[7]
        header = bytearray(ip[:header_len])
        header[6:8] = b"\0\0"
        key = bytes((4, ip[9])) + bytes(ip[12:20]) + bytes(ip[4:6])  # RFC 791 (3.2)
        return key, bytes(header), (field & 0x1FFF) * 8, bool(field & 0x2000), bytes(ip[header_len:total])
    end = 40 + (ip[4] << 8 | ip[5])
    previous, at, protocol = 6, 40, ip[6]
    while protocol != _FRAGMENT:
        previous, protocol, at = at, ip[at], at + 8 + ip[at + 1] * 8
    if at + 8 > end or end > len(ip):
        return None
    field = ip[at + 2] << 8 | ip[at + 3]
    header = bytearray(ip[:at])
    header[previous] = ip[at]  # the fragment header is cut out of the chain
    key = b"\6" + bytes(ip[8:40]) + bytes(ip[at + 4 : at + 8])  # RFC 8200 (4.5)
    return key, bytes(header), field & 0xFFF8, bool(field & 1), bytes(ip[at + 8 : end])


def _assemble(first_header: bytes, payload: bytes) -> bytes | None:
    """Return the whole packet, with virtio header; None when it is longer than IP allows."""
    header = bytearray(first_header)
    if header[0] >> 4 == 4:
        total = len(header) + len(payload)
        if total > IP_MAX:
            return None
        header[2:4] = total.to_bytes(2, "big")
        header[10:12] = b"\0\0"
        header[10:12] = checksum(header).to_bytes(2, "big")
    else:
        length = len(header) - 40 + len(payload)
        if length > IP_MAX:
            return None
        header[4:6] = length.to_bytes(2, "big")
    return HEADER_NONE + bytes(header) + payload
