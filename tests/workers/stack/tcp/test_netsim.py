"""A deterministic bad link between a simple client and the stack: every byte arrives once and in order, both ways."""

import heapq
import random

import pytest

from shared.metrics import Cell
from tests.support.stack_bed import Bed, pattern
from tests.support.tcp_peer import TcpPeer, cut
from workers.stack import CloseReason

DELAY = 0.005  # seconds, one way
STEP = 0.01  # seconds between two looks of the client at its timer


class Link:
    """Carries packets with loss, duplication and reordering, each with its probability, from one seeded generator."""

    def __init__(self, bed: Bed, peer: TcpPeer, *, seed: int, loss: float, duplicate: float, reorder: float) -> None:
        self.bed = bed
        self.peer = peer
        self.random = random.Random(seed)
        self.loss, self.duplicate, self.reorder = loss, duplicate, reorder
        self.events: list[tuple[float, int, str, bytes]] = []
        self.order = 0

    def put(self, to: str, packet: bytes) -> None:
        """Send a packet on its way, perhaps."""
        for piece in cut(packet):
            for _ in range(1 + (self.random.random() < self.duplicate)):
                if self.random.random() < self.loss:
                    continue
                late = self.random.uniform(0, 4 * DELAY) if self.random.random() < self.reorder else 0.0
                self.schedule(self.bed.now + DELAY + late, to, piece)

    def schedule(self, at: float, what: str, packet: bytes = b"") -> None:
        self.order += 1
        heapq.heappush(self.events, (at, self.order, what, packet))

    def collect(self) -> None:
        for packet in self.bed.take():
            self.put("peer", packet)
        sent, self.peer.sent = self.peer.sent, []
        for packet in sent:
            self.put("stack", packet)

    def run(self, until: float) -> None:
        """Run for `until` simulated seconds, or until both streams have ended."""
        end = self.bed.now + until
        self.schedule(self.bed.now, "tick")
        self.collect()
        while self.events and self.bed.now < end and not self.is_over():
            at, _, what, packet = heapq.heappop(self.events)
            for sent in self.bed.advance(max(at - self.bed.now, 0.0)):
                self.put("peer", sent)
            if what == "stack":
                for sent in self.bed.give(packet):
                    self.put("peer", sent)
            elif what == "peer":
                self.peer.receive(packet, self.bed.now)
            else:
                self.peer.timer(self.bed.now)
                self.schedule(at + STEP, "tick")
            self.collect()

    def is_over(self) -> bool:
        upstream = self.bed.upstreams[-1] if self.bed.upstreams else None
        return self.peer.eof and self.peer.done and upstream is not None and upstream.closed is not None


def transfer(bed: Bed, peer: TcpPeer, link: Link, size: int) -> None:
    """Send `size` different bytes each way and close both ends; assert that all is right in the end."""
    up, down = pattern(size, 1), pattern(size, 2)
    peer.connect(bed.now)
    link.run(0.05)
    while not bed.upstreams:
        link.run(0.5)
    upstream = bed.upstreams[-1]
    peer.write(up, bed.now)
    peer.close(bed.now)
    upstream.send(down, bed.now, shutdown=True)
    link.run(300)
    assert upstream.received == up
    assert peer.received == down
    assert upstream.eof and peer.eof and peer.done
    assert upstream.closed is CloseReason.FINISHED
    bed.advance(60)
    assert bed.stack.connections == {}
    assert bed.stack.next_timeout() is None
    assert bed.count(Cell.BUFFER_BYTES) == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("loss", "duplicate", "reorder"),
    [(0.0, 0.0, 0.0), (0.02, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.1, 0.3), (0.05, 0.05, 0.1)],
)
def test_bad_link(seed: int, loss: float, duplicate: float, reorder: float) -> None:
    version6 = seed % 2
    addresses = ("2001:db8::2", "2001:db8:1::10") if version6 else ("10.0.0.2", "203.0.113.10")
    bed = Bed(offload=seed % 3 == 0)
    # Sequence numbers of both ends wrap within the transfer.
    peer = TcpPeer(*addresses, iss=0xFFFFFFFF - 30000, mss=1440, sack=seed % 4 != 3, timestamps=seed % 5 != 4)
    link = Link(bed, peer, seed=seed, loss=loss, duplicate=duplicate, reorder=reorder)
    transfer(bed, peer, link, 200_000)


def test_clean_link_retransmits_nothing() -> None:
    bed = Bed(offload=True)
    peer = TcpPeer()
    link = Link(bed, peer, seed=1, loss=0, duplicate=0, reorder=0)
    transfer(bed, peer, link, 500_000)
    assert bed.count(Cell.TCP_RETRANSMITS) == 0
