"""Carries packets between two ends over two lanes, and moves the time from one event to the next."""

import math
from collections.abc import Callable, Sequence
from struct import unpack_from
from typing import Protocol

from shared.wire import tcp
from tests.support import packets
from tests.support.lane import Impairment, Lane

__all__ = ["Network", "Side", "as_on_the_wire"]

VIRTIO = len(packets.VIRTIO_NONE)


class Side(Protocol):
    """One end. Packets begin with their virtio header; those that come in have no offload, and nobody vouches for them."""

    def give(self, arrived: Sequence[bytes], now: float, /) -> list[bytes]:
        """Take what has arrived together; return what is sent because of it, and anything else there is to send."""

    def next_at(self) -> float:
        """When `wake` is to be called, or infinity."""

    def wake(self, now: float, /) -> list[bytes]:
        """Act on timers; return what is sent."""


def as_on_the_wire(packet: bytes) -> list[bytes]:
    """What the kernel makes of a packet that a stack has written: segments of gso_size, checksums complete, no virtio header."""
    body = packet[VIRTIO:]
    if not packet[0] & 1:
        return [body]
    at, size = (20, 4) if body[0] >> 4 == 4 else (40, 16)
    flow = body[at - 2 * size : at] + body[at : at + 4]
    _, _, seq, ack, offset_flags, window, _, _ = tcp.HEADER.unpack_from(body, at)
    start = at + (offset_flags >> 12) * 4
    options, text, flags = body[at + 20 : start], body[start:], offset_flags & 0xFF
    most = unpack_from("=H", packet, 4)[0] if packet[1] else len(text)
    pieces = []
    for begin in range(0, max(len(text), 1), max(most, 1)):
        piece = text[begin : begin + most]
        is_last = begin + most >= len(text)
        made = tcp.build(
            flow, seq=(seq + begin) & 0xFFFFFFFF, ack=ack, flags=flags if is_last else flags & ~(tcp.FIN | tcp.PSH),
            window=window, options=options, payload=piece,
        )  # fmt: skip
        pieces.append(made[VIRTIO:])
    return pieces


def _text_size(packet: bytes) -> int:
    at, protocol = (20, packet[9]) if packet[0] >> 4 == 4 else (40, packet[6])
    return len(packet) - at - (packet[at + 12] >> 4) * 4 if protocol == packets.TCP else 0


class Network:
    """Two sides and the path between them. `up` leads from `near` to `far`.

    mtu        bytes of the largest packet that passes; a larger one is answered by ICMP, as a router would
    text_sent  bytes of TCP text that were sent into each lane, whatever became of them
    """

    def __init__(
        self, near: Side, far: Side, up: Impairment, down: Impairment, *, seed: int, now: float, mtu: int = 65535
    ) -> None:
        self.now = now
        self.near, self.far = near, far
        self.up, self.down = Lane(up, 2 * seed), Lane(down, 2 * seed + 1)
        self.mtu = mtu
        self.too_big = 0
        self.text_sent = {self.up: 0, self.down: 0}

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let `seconds` pass, less when `until` says so, which is asked after every event, or when nothing is left to happen."""
        end = self.now + seconds
        self._put(self.near, self.up, self.near.give([], self.now))
        self._put(self.far, self.down, self.far.give([], self.now))
        while not until():
            at = min(self.up.next_at, self.down.next_at, self.near.next_at(), self.far.next_at())
            if at > end or at == math.inf:
                self.now = end if at > end else self.now
                return
            self.now = max(at, self.now)
            self._step(self.near, self.down, self.up)
            self._step(self.far, self.up, self.down)

    def _step(self, side: Side, incoming: Lane, outgoing: Lane) -> None:
        arrived = [packets.VIRTIO_NONE + packet for packet in incoming.take(self.now)]
        if arrived:
            self._put(side, outgoing, side.give(arrived, self.now))
        if side.next_at() <= self.now:
            self._put(side, outgoing, side.wake(self.now))

    def _put(self, sender: Side, lane: Lane, sent: Sequence[bytes]) -> None:
        for packet in sent:
            for piece in as_on_the_wire(packet):
                if len(piece) <= self.mtu:
                    self.text_sent[lane] += _text_size(piece)
                    lane.put(piece, self.now)
                else:
                    self.too_big += 1
                    self._put(sender, lane, sender.give([self._complaint(piece)], self.now))

    def _complaint(self, packet: bytes) -> bytes:
        """ICMP "fragmentation needed" (RFC 792, RFC 1191 4), or "packet too big" (RFC 4443 3.2), from the router in between."""
        v4 = packet[0] >> 4 == 4
        source = packet[12:16] if v4 else packet[8:24]
        router = packets.packed("192.0.2.254" if v4 else "2001:db8:ffff::1")
        kind, code = (3, 4) if v4 else (2, 0)
        return packets.VIRTIO_NONE + packets.icmp(
            router, source, kind, code, self.mtu.to_bytes(4, "big") + packet[:128]
        )
