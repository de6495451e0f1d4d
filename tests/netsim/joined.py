"""Two of our stacks as the two ends of one connection. Each is passive, so the SYN of each is made of the other's SYN-ACK."""

import struct

from tests.netsim.network import Network
from tests.netsim.sides import StackSide
from tests.support import packets
from tests.support.lane import Impairment
from tests.support.stack_bed import Bed
from tests.support.tcp_peer import ACK, SYN, Segment, read_segment

__all__ = ["Joined", "join"]

BEGIN = 100.0
ENDS = {
    4: (packets.packed("10.0.0.2"), packets.packed("203.0.113.10")),
    6: (packets.packed("fd00::2"), packets.packed("2001:db8::10")),
}
PORTS = 40000, 443


class Joined(Network):
    """A network with a stack at either side."""

    near: StackSide
    far: StackSide


def join(
    up: Impairment,
    down: Impairment,
    *,
    seed: int = 1,
    version: int = 4,
    offload: bool = True,
    mtu: int = 1500,
    path_mtu: int = 65535,
    buffer: int = 4 << 20,
) -> "Joined":
    """Return a network whose sides are stacks with one open connection between them; its handshake took a round trip.

    `buffer`: bytes of send buffer and of receive buffer at either end; `mtu` of their tuns, `path_mtu` of the path between.
    A connection closed on one side may stay silent as long as an open one.
    """
    near, far = (_bed(offload, mtu, buffer) for _ in range(2))
    app, peer = ENDS[version]
    towards_near = (peer, PORTS[1], app, PORTS[0])  # the packets that `near` takes in
    towards_far = (app, PORTS[0], peer, PORTS[1])
    # What the far stack will answer it answers a stack that is made for it, too: the same secret, the same time.
    foretold = _say(_bed(offload, mtu, buffer), towards_far, SYN, 0, 0, _options(mtu, version, (1, 0)))
    near_answer = _say(near, towards_near, SYN, foretold.seq, 0, _options(mtu, version, _clock(foretold)))
    far_answer = _say(far, towards_far, SYN, near_answer.seq, 0, _options(mtu, version, _clock(near_answer)))
    assert (far_answer.seq, far_answer.timestamps) == (foretold.seq, (_clock(foretold)[0], _clock(near_answer)[0]))
    now = BEGIN + up.delay + down.delay
    for bed, flow, ours, theirs in (
        (near, towards_near, near_answer, far_answer),
        (far, towards_far, far_answer, near_answer),
    ):
        bed.now = now
        _say(
            bed,
            flow,
            ACK,
            theirs.seq + 1,
            ours.seq + 1,
            b"\1\1\x08\x0a" + struct.pack("!II", *_clock(theirs)),
            answered=False,
        )
        assert not bed.take()
    return Joined(StackSide(near), StackSide(far), up, down, seed=seed, now=now, mtu=path_mtu)


def _bed(offload: bool, mtu: int, buffer: int) -> Bed:
    return Bed(offload=offload, mtu=mtu, send_buffer=buffer, receive_buffer=buffer, half_close_timeout=7200.0)


def _clock(answer: Segment) -> tuple[int, int]:
    assert answer.timestamps is not None
    return answer.timestamps[0], 0


def _options(mtu: int, version: int, timestamps: tuple[int, int]) -> bytes:
    mss = mtu - (40 if version == 4 else 60)
    return struct.pack("!BBH", 2, 4, mss) + b"\4\2\x08\x0a" + struct.pack("!II", *timestamps) + b"\1\3\3\5"


def _say(
    bed: Bed,
    flow: tuple[bytes, int, bytes, int],
    flags: int,
    seq: int,
    ack: int,
    options: bytes,
    *,
    answered: bool = True,
) -> Segment:
    packet = packets.tun_tcp(
        *flow,
        b"",
        sequence=seq & 0xFFFFFFFF,
        acknowledgment=ack & 0xFFFFFFFF,
        flags=flags,
        window=0xFFFF,
        options=options,
    )
    sent = bed.give(packet)
    return read_segment(sent[0] if answered else packet)
