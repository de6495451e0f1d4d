"""The attacks: endless streams of packets, each with its virtio header. Seeded, so that a run can be had again."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from shared.wire import tcp
from shared.wire.checksum import checksum
from shared.wire.virtio import HEADER_NONE
from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import SEEDS
from tests.support import packets

__all__ = ["ATTACKS", "FORGED", "QUIET_PORT", "TALKER_PORT", "Attack", "ForgedFlow", "Target"]

TALKER_PORT, QUIET_PORT = 7100, 7101
"""Where a server sends at once, and where one accepts and says nothing."""
SILENT_PORT, CLOSED_PORT = 9, 10
"""Nobody answers at the one, the other refuses."""
SOURCES = 50_000
FORGED = "10.96.0.1"
"""Source of the connections that flood.py opens itself."""


@dataclass(frozen=True)
class Target:
    """What an attack needs to know. `flow`: key of a live flow that is not the attacker's, without its numbers."""

    host: str
    flow: bytes = b""
    forged: tuple["ForgedFlow", ...] = ()


@dataclass(frozen=True)
class ForgedFlow:
    """A connection that the attacker has opened from an address of its own."""

    port: int
    seq: int
    ack: int

    def key(self, host: str) -> bytes:
        """The flow key of its packets to `host`."""
        return packets.packed(FORGED) + packets.packed(host) + struct.pack("!HH", self.port, TALKER_PORT)


Attack = Callable[[Target, Random], Iterator[bytes]]


def nothing(target: Target, random: Random) -> Iterator[bytes]:
    """No packet: what is hostile is done by programs (never-reading clients)."""
    yield from ()


def syn_flood(target: Target, random: Random) -> Iterator[bytes]:
    """Two SYNs from each of 50,000 sources, one to a port where nobody answers, one to a port that refuses; then again."""
    for number in count():
        source = bytes((10, 99, number // 2 % SOURCES >> 8, number // 2 % SOURCES & 0xFF))
        port = (SILENT_PORT, CLOSED_PORT)[number % 2]
        yield packets.tun_tcp(source, 1024 + number // 2 // SOURCES, target.host, port, flags=tcp.SYN, sequence=number)


def half_open(target: Target, random: Random) -> Iterator[bytes]:
    """SYNs to a server that answers, whose SYN-ACKs nobody acknowledges."""
    for number in count():
        source = bytes((10, 98, number % SOURCES >> 8, number % SOURCES & 0xFF))
        yield packets.tun_tcp(source, 2000 + number // SOURCES, target.host, QUIET_PORT, flags=tcp.SYN, sequence=number)


def blind_resets(target: Target, random: Random) -> Iterator[bytes]:
    """RST and SYN with numbers an attacker off the path would guess, at a live flow."""
    return _blind(target, random, (tcp.RST, tcp.RST | tcp.ACK, tcp.SYN), b"")


def blind_text(target: Target, random: Random) -> Iterator[bytes]:
    """Text with guessed numbers, at a live flow."""
    return _blind(target, random, (tcp.ACK,), b"FORGED" * 100)


def _blind(target: Target, random: Random, kinds: tuple[int, ...], text: bytes) -> Iterator[bytes]:
    while True:
        seq, ack, flags = random.getrandbits(32), random.getrandbits(32), random.choice(kinds)
        yield tcp.build(target.flow, seq=seq, ack=ack, flags=flags, window=1000, payload=text)


def one_byte_segments(target: Target, random: Random) -> Iterator[bytes]:
    """Every other byte of a stream, each in a segment of its own."""
    for number in count():
        one = target.forged[number % len(target.forged)]
        at = number // len(target.forged) * 2 % 60_000 + 1
        yield tcp.build(
            one.key(target.host), seq=one.seq + at & 0xFFFFFFFF, ack=one.ack, flags=tcp.ACK, window=0, payload=b"x"
        )


def zero_windows(target: Target, random: Random) -> Iterator[bytes]:
    """Acknowledgments that never open the window of flows whose server wants to send."""
    for number in count():
        one = target.forged[number % len(target.forged)]
        yield tcp.build(one.key(target.host), seq=one.seq, ack=one.ack, flags=tcp.ACK)


def overlapping_fragments(target: Target, random: Random) -> Iterator[bytes]:
    """Datagrams in fragments of which one overlaps another, and some that never become whole."""
    for number in count():
        whole = packets.udp("10.97.0.1", 5000, target.host, 5001, random.randbytes(1000))
        first, second, *_ = packets.ipv4_fragments(whole, [256] * 3, number & 0xFFFF)
        yield packets.VIRTIO_NONE + first
        yield packets.VIRTIO_NONE + _moved(second, -1)


def _moved(fragment: bytes, units: int) -> bytes:
    """The same fragment `units` of 8 bytes elsewhere."""
    field = int.from_bytes(fragment[6:8], "big") + units
    head = fragment[:6] + field.to_bytes(2, "big") + fragment[8:10] + b"\0\0" + fragment[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + fragment[20:]


def lying_headers(target: Target, random: Random) -> Iterator[bytes]:
    """Packets of every kind, cut short or with lies in their headers."""
    while True:
        packet = bytes(mutated(random.choice(SEEDS), random))[len(HEADER_NONE) :]
        if 20 <= len(packet) <= 1500:
            yield HEADER_NONE + packet


def spoofed_icmp(target: Target, random: Random) -> Iterator[bytes]:
    """ "Fragmentation needed" and "port unreachable" about segments of a live flow, with guessed numbers."""
    size = len(target.flow) // 2 - 2
    app, peer = target.flow[:size], target.flow[size : 2 * size]
    ports = struct.unpack("!HH", target.flow[-4:])
    while True:
        quoted = packets.tcp(peer, ports[1], app, ports[0], bytes(8), sequence=random.getrandbits(32))[:28]
        code, rest = random.choice(((4, struct.pack("!I", 68)), (3, bytes(4))))
        yield packets.VIRTIO_NONE + packets.icmp(app, peer, 3, code, rest + quoted)


ATTACKS: dict[str, Attack] = {
    "SYN flood": syn_flood,
    "half-open": half_open,
    "never reading": nothing,
    "1-byte segments": one_byte_segments,
    "window 0 for ever": zero_windows,
    "blind RST, SYN": blind_resets,
    "blind text": blind_text,
    "overlapping fragments": overlapping_fragments,
    "lying headers": lying_headers,
    "spoofed ICMP": spoofed_icmp,
}
"""Name in the table -> its packets."""
