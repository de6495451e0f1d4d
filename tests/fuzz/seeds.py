"""Packets as a kernel sends them, of every shape that the code knows; each begins with its virtio header."""

import struct

from shared.wire.virtio import F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HEADER
from tests.support import packets as p

__all__ = ["APPS", "DATAGRAMS", "PEERS", "SEEDS"]

APPS = {4: (p.packed("10.0.0.2"), p.packed("10.0.0.3")), 6: (p.packed("fd00::2"), p.packed("fd00::3"))}
PEERS = {4: p.packed("203.0.113.10"), 6: p.packed("2001:db8::10")}
SYN_OPTIONS = b"\2\4\5\xb4\4\2\x08\x0a" + struct.pack("!II", 1000, 0) + b"\1\3\3\7"
TIMESTAMPS = b"\1\1\x08\x0a" + struct.pack("!II", 1001, 77)
SACK = b"\1\1\5\x12" + struct.pack("!IIII", 3000, 4000, 5000, 6000)


def _gso(packet: bytes, kind: int, header_length: int, size: int, checksum_at: int) -> bytes:
    start = 20 if packet[0] >> 4 == 4 else 40
    return HEADER.pack(F_NEEDS_CSUM, kind, header_length, size, start, checksum_at) + packet


def _of_version(version: int) -> list[bytes]:
    app, peer = APPS[version][0], PEERS[version]
    top = 20 if version == 4 else 40
    data = bytes(range(200))
    syn = p.tcp(app, 40000, peer, 443, flags=2, sequence=999, options=SYN_OPTIONS)
    segment = p.tcp(app, 40000, peer, 443, data, sequence=1000, flags=0x18, options=TIMESTAMPS)
    ours = p.tcp(peer, 443, app, 40000, data, sequence=5000, acknowledgment=1000)
    datagram = p.udp(app, 5353, peer, 53, data)
    plain = [
        syn,
        p.tcp(app, 40000, peer, 443, flags=2),
        segment,
        p.tcp(app, 40000, peer, 443, options=TIMESTAMPS + SACK),
        p.tcp(app, 40000, peer, 443, data, flags=0x11),
        p.tcp(app, 40000, peer, 443, flags=4),
        p.tcp(app, 40000, peer, 443, data, flags=0x38),
        datagram,
        p.udp(app, 5353, peer, 53),
        p.icmp_echo(app, peer, 7),
        p.icmp_error(app, peer, ours),
        _too_big(app, peer, ours),
    ]
    tcp_gso = _gso(segment + bytes(4000), GSO_TCPV4 if version == 4 else GSO_TCPV6, top + 32, 1448, 16)
    udp_gso = _gso(p.udp(app, 5353, peer, 53, data * 10), GSO_UDP_L4, top + 8, 200, 6)
    empty_gso = _gso(p.udp(app, 5353, peer, 53), GSO_UDP_L4, top + 8, 200, 6)
    return [p.VIRTIO_NONE + packet for packet in plain] + [tcp_gso, udp_gso, empty_gso]


def _too_big(app: bytes, peer: bytes, ours: bytes) -> bytes:
    kind, code = (3, 4) if len(app) == 4 else (2, 0)
    return p.icmp(app, peer, kind, code, struct.pack("!I", 1280) + ours)


def _with_extras() -> list[bytes]:
    """Behind IPv4 options and IPv6 extension headers."""
    made = []
    for protocol, whole in ((p.TCP, p.tcp), (p.UDP, p.udp)):
        for version in 4, 6:
            app, peer = APPS[version][1], PEERS[version]
            upper = whole(app, 40000, peer, 443, b"text")[20 if version == 4 else 40 :]
            if version == 4:
                made.append(p.ipv4(app, peer, protocol, upper, options=b"\x94\4\0\0\1\1\1"))
                continue
            chains = [(p.HOP_BY_HOP,), (p.DESTINATION_OPTIONS, p.ROUTING), (p.HOP_BY_HOP, p.DESTINATION_OPTIONS)]
            for chain in chains:
                contents = tuple((kind, p.extension(8 * at + 8)) for at, kind in enumerate(chain))
                made.append(p.ipv6(app, peer, protocol, upper, extensions=contents))
            atomic = (p.FRAGMENT, struct.pack("!BHI", 0, 0, 9))
            made.append(p.ipv6(app, peer, protocol, upper, extensions=(atomic,)))
    return [p.VIRTIO_NONE + packet for packet in made]


def _in_fragments(version: int, size: int) -> list[bytes]:
    app, peer = APPS[version][0], PEERS[version]
    whole = p.udp(app, 5353, peer, 53, bytes(size))
    cuts = [256] * (size // 256)
    v4 = version == 4
    parts = p.ipv4_fragments(whole, cuts, size) if v4 else p.ipv6_fragments(app, peer, p.UDP, whole[40:], cuts, size)
    return [p.VIRTIO_NONE + part for part in parts]


DATAGRAMS = [_in_fragments(version, size) for version in (4, 6) for size in (300, 1000, 1033)]
"""Each a datagram in fragments."""

SEEDS = [*_of_version(4), *_of_version(6), *_with_extras(), *(part for parts in DATAGRAMS[::2] for part in parts)]
