"""A TCP client for tests, independent of the code under test: it opens, sends, receives, closes, over packets given by hand.

It is deliberately simple where a real one is clever: go-back-N with a fixed time-out, fixed window, no congestion control.
What it must be is right: it verifies every checksum it is sent, reassembles in any order and reports what it holds by SACK.
"""

import struct
from dataclasses import dataclass, field

from tests.support import packets

__all__ = ["Segment", "TcpPeer", "cut", "read_segment"]

MASK = 0xFFFFFFFF
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


@dataclass(slots=True)
class Segment:
    """One TCP segment as it was on the wire."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    payload: bytes
    mss: int | None = None
    scale: int | None = None
    sack_permitted: bool = False
    timestamps: tuple[int, int] | None = None
    sack: list[tuple[int, int]] = field(default_factory=list)


def read_segment(packet: bytes) -> Segment:
    """Parse one packet (virtio header, IP, TCP) and verify that all its checksums are right, or right for offload."""
    offloaded = packet[0] & 1
    body = packet[10:]
    if body[0] >> 4 == 4:
        assert packets.internet_checksum(body[:20]) == 0, "IPv4 header checksum"
        assert struct.unpack_from("!H", body, 2)[0] == len(body), "IPv4 total length"
        source, destination, segment = body[12:16], body[16:20], body[20:]
        pseudo = source + destination + struct.pack("!BBH", 0, 6, len(segment))
    else:
        assert struct.unpack_from("!H", body, 4)[0] == len(body) - 40, "IPv6 payload length"
        source, destination, segment = body[8:24], body[24:40], body[40:]
        pseudo = source + destination + struct.pack("!I3xB", len(segment), 6)
    if offloaded:
        assert struct.unpack_from("=HH", packet, 6) == (len(body) - len(segment), 16), "csum_start, csum_offset"
        partial = struct.unpack_from("!H", segment, 16)[0]
        assert partial == packets.internet_checksum(pseudo) ^ 0xFFFF, "partial checksum: the pseudo header alone"
    else:
        assert packets.internet_checksum(pseudo + segment) == 0, "TCP checksum"
    source_port, destination_port, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", segment)
    at = (offset >> 4) * 4
    result = Segment(source, destination, source_port, destination_port, seq, ack, flags, window, segment[at:])
    _read_options(result, segment[20:at])
    return result


def _read_options(segment: Segment, options: bytes) -> None:
    while options and options[0]:
        if options[0] == 1:
            options = options[1:]
            continue
        kind, length = options[:2]
        value, options = options[2:length], options[length:]
        if kind == 2:
            segment.mss = int.from_bytes(value, "big")
        elif kind == 3:
            segment.scale = value[0]
        elif kind == 4:
            segment.sack_permitted = True
        elif kind == 5:
            segment.sack = list(struct.iter_unpack("!II", value))
        elif kind == 8:
            segment.timestamps = struct.unpack("!II", value)


def cut(packet: bytes) -> list[bytes]:
    """Do what the kernel does with a GSO packet: cut it into packets of gso_size, all with whole checksums."""
    gso_size = struct.unpack_from("=H", packet, 4)[0]
    if not packet[1]:
        return [packet]
    whole = read_segment(packet)
    options = b""
    if whole.timestamps is not None:
        options = b"\1\1\x08\x0a" + struct.pack("!II", *whole.timestamps)
    pieces = []
    for at in range(0, len(whole.payload), gso_size):
        piece = whole.payload[at : at + gso_size]
        is_last = at + gso_size >= len(whole.payload)
        flags = whole.flags if is_last else whole.flags & ~(FIN | PSH)
        pieces.append(
            packets.tun_tcp(
                whole.source, whole.source_port, whole.destination, whole.destination_port, piece,
                sequence=(whole.seq + at) & MASK, acknowledgment=whole.ack, flags=flags, window=whole.window, options=options,
            )
        )  # fmt: skip
    return pieces


class TcpPeer:
    """The application's end of one connection. `sent` collects packets; give those of the stack to `receive`.

    received   bytes in order          eof      the stack's FIN has come, and all before it
    reset      RST has come            done     our FIN is acknowledged
    """

    def __init__(
        self,
        source: str = "10.0.0.2",
        destination: str = "203.0.113.10",
        *,
        port: int = 40000,
        iss: int = 1000,
        mss: int = 1460,
        window: int = 0xFFFF,
        scale: int = 7,
        sack: bool = True,
        timestamps: bool = True,
        timeout: float = 0.3,
    ) -> None:
        self.source, self.destination, self.port = packets.packed(source), packets.packed(destination), port
        self.iss = iss
        self.mss = mss
        self.window = window  # field in every segment after the SYN
        self.scale = scale
        self.sack = sack
        self.timestamps = timestamps
        self.timeout = timeout
        self.sent: list[bytes] = []
        self.received = bytearray()
        self.eof = self.reset = self.open = self.syn_sent = False
        self._out = bytearray()  # everything ever to be sent
        self._closing = False
        self.una = self.next = 0  # stream offsets: 0 is the first byte, len(_out) the FIN
        self._peer_window = 0
        self._peer_scale = 0
        self._peer_irs = 0
        self._held: dict[int, bytes] = {}  # stream offset -> payload
        self._fin_at: int | None = None
        self._echo = 0
        self._resend_at = 0.0

    # what a test does

    def connect(self, now: float = 0.0) -> None:
        """Send a SYN."""
        self.syn_sent = True
        options = struct.pack("!BBH", 2, 4, self.mss) + bytes((1, 3, 3, self.scale))
        if self.sack:
            options += b"\1\1\4\2"
        if self.timestamps:
            options += b"\1\1\x08\x0a" + struct.pack("!II", self._clock(now), 0)
        self._resend_at = now + self.timeout
        self.emit(b"", self.iss, SYN, options=options, now=now)

    def write(self, data: bytes, now: float = 0.0) -> None:
        """Queue stream data and send what the stack's window allows."""
        self._out += data
        self._send(now)

    def close(self, now: float = 0.0) -> None:
        """FIN after the data."""
        self._closing = True
        self._send(now)

    def acknowledge(self, now: float = 0.0) -> None:
        """Send an ACK of what has come."""
        self.emit(b"", self.wire(self.next), ACK, now=now)

    # packets

    def receive(self, packet: bytes, now: float = 0.0) -> None:
        """Take in one packet of the stack."""
        for piece in cut(packet):
            self._receive(read_segment(piece), now)

    def _receive(self, segment: Segment, now: float) -> None:
        if (segment.destination, segment.destination_port) != (self.source, self.port):
            return
        if segment.flags & RST:
            self.reset = True
            return
        if segment.flags & SYN:
            self._receive_syn_ack(segment, now)
            return
        if not self.open:
            return
        if segment.timestamps is not None:
            self._echo = segment.timestamps[0]
        acked = (segment.ack - self.iss - 1 - self.una + 0x80000000 & MASK) - 0x80000000
        if 0 < acked <= self.next - self.una:
            self.una += acked
            self._resend_at = now + self.timeout
        self._peer_window = segment.window << self._peer_scale
        self._receive_payload(segment, now)
        self._send(now)

    def _receive_syn_ack(self, segment: Segment, now: float) -> None:
        assert segment.ack == (self.iss + 1) & MASK, "the SYN-ACK acknowledges the SYN"
        if not self.open:
            self.open = True
            self._peer_irs = segment.seq
            self._peer_window = segment.window
            self._peer_scale = segment.scale or 0
            assert segment.sack_permitted == self.sack, "SACK is answered as it was offered"
            assert (segment.timestamps is not None) == self.timestamps, "timestamps are answered as they were offered"
        if segment.timestamps is not None:
            self._echo = segment.timestamps[0]
        self.acknowledge(now)
        self._send(now)

    def _receive_payload(self, segment: Segment, now: float) -> None:
        offset = (segment.seq - self._peer_irs - 1 - len(self.received) + 0x80000000 & MASK) - 0x80000000
        offset += len(self.received)
        if segment.payload:
            self._held[offset] = max(self._held.get(offset, b""), segment.payload, key=len)
        if segment.flags & FIN:
            self._fin_at = offset + len(segment.payload)
        for at in sorted(self._held):
            if at <= len(self.received):
                piece = self._held.pop(at)
                self.received += piece[len(self.received) - at :]
        if self._fin_at == len(self.received):
            self.eof = True
        if segment.payload or segment.flags & FIN or offset != len(self.received) + self.eof:
            self.acknowledge(now)

    def timer(self, now: float) -> None:
        """Go back to the oldest unacknowledged byte when the time-out has passed."""
        if self.syn_sent and not self.open and now >= self._resend_at:
            self.connect(now)
        elif self.open and self.next > self.una and now >= self._resend_at:
            self.next = self.una
            self._resend_at = now + self.timeout
            self._send(now)
        elif self.open and not self.done and now >= self._resend_at:
            self._resend_at = now + self.timeout
            self.emit(b"", self.wire(self.una - 1), ACK, now=now)  # a window probe

    def _send(self, now: float) -> None:
        if not self.open:
            return
        while self.next < len(self._out) and self.next - self.una < self._peer_window:
            mss = self.mss - (12 if self.timestamps else 0)
            size = min(mss, len(self._out) - self.next, self._peer_window - (self.next - self.una))
            payload = bytes(self._out[self.next : self.next + size])
            if self.next == self.una:
                self._resend_at = now + self.timeout
            self.emit(payload, self.wire(self.next), ACK | PSH, now=now)
            self.next += size
        if self._closing and self.next == len(self._out):
            self.emit(b"", self.wire(self.next), ACK | FIN, now=now)
            self.next += 1

    @property
    def done(self) -> bool:
        """Everything written, and the FIN, is acknowledged."""
        return self.una == len(self._out) + self._closing

    def wire(self, offset: int) -> int:
        """The sequence number of a stream offset."""
        return (self.iss + 1 + offset) & MASK

    @property
    def ack(self) -> int:
        """The acknowledgment number of what has come."""
        return (self._peer_irs + 1 + len(self.received) + self.eof) & MASK

    def emit(
        self,
        payload: bytes,
        seq: int,
        flags: int,
        *,
        options: bytes | None = None,
        now: float = 0.0,
        ack: int | None = None,
        window: int | None = None,
    ) -> None:
        """Put one segment into `sent`; a test may lie in any field."""
        if options is None:
            options = self._options(now)
        self.sent.append(
            packets.tun_tcp(
                self.source, self.port, self.destination, 443, payload,
                sequence=seq & MASK,
                acknowledgment=(self.ack if ack is None else ack & MASK) if flags & ACK else 0,
                flags=flags,
                window=0xFFFF if flags & SYN else self.window if window is None else window,
                options=options,
            )
        )  # fmt: skip

    def _options(self, now: float) -> bytes:
        options = b""
        if self.timestamps:
            options = b"\1\1\x08\x0a" + struct.pack("!II", self._clock(now), self._echo)
        if self.sack and self._held:
            base = self._peer_irs + 1
            blocks = [
                struct.pack("!II", (base + at) & MASK, (base + at + len(data)) & MASK)
                for at, data in self._held.items()
            ]
            options += b"\1\1\5" + bytes((2 + 8 * len(blocks[-3:]),)) + b"".join(blocks[-3:])
        return options

    def _clock(self, now: float) -> int:
        return int(now * 1000) + 5_000 & MASK
