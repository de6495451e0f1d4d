"""Our stack and an independent client (tests/support/tcp_peer.py) over a bad path: every byte once and in order, both ways."""

import pytest

from shared.metrics import Cell
from tests.netsim.network import Network
from tests.netsim.sides import PeerSide, StackSide
from tests.support.lane import Impairment
from tests.support.stack_bed import Bed, pattern
from tests.support.tcp_peer import TcpPeer
from workers.stack import CloseReason

ADDRESSES = {4: ("10.0.0.2", "203.0.113.10"), 6: ("2001:db8::2", "2001:db8:1::10")}

PATHS = {
    "clean": Impairment(),
    "loss 2 %": Impairment(loss=0.02),
    "loss 10 %": Impairment(loss=0.1),
    "duplicates, reordering": Impairment(duplicate=0.1, reorder=0.3, reorder_delay=0.01),
    "flipped bits": Impairment(flip=0.05),
    "narrow": Impairment(rate=500_000, queue=0.02, jitter=0.003),
    "all": Impairment(loss=0.05, duplicate=0.05, reorder=0.1, flip=0.01, jitter=0.002),
}


def transfer(bed: Bed, peer: TcpPeer, path: Impairment, seed: int, size: int) -> None:
    """Send `size` different bytes each way and close both ends; assert that all is right in the end."""
    up, down = pattern(size, 1), pattern(size, 2)
    network = Network(PeerSide(peer), StackSide(bed), path, path, seed=seed, now=bed.now)
    peer.connect(bed.now)
    network.run(100, lambda: bool(bed.upstreams))
    upstream = bed.upstreams[-1]
    peer.write(up, bed.now)
    peer.close(bed.now)
    upstream.send(down, bed.now, shutdown=True)
    network.run(600, lambda: peer.eof and peer.done and upstream.closed is not None)
    assert upstream.received == up
    assert peer.received == down
    assert upstream.eof and peer.eof and peer.done
    assert upstream.closed is CloseReason.FINISHED
    bed.advance(60)
    assert bed.stack.connections == {}
    assert bed.stack.next_timeout() is None
    assert bed.count(Cell.BUFFER_BYTES) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_byte_arrives_both_ways(seed: int, path: Impairment) -> None:
    bed = Bed(offload=seed % 3 == 0)
    # Sequence numbers of both ends wrap within the transfer.
    peer = TcpPeer(
        *ADDRESSES[6 if seed % 2 else 4], iss=0xFFFFFFFF - 30000, mss=1440, sack=seed % 4 != 3, timestamps=seed % 5 != 4
    )
    transfer(bed, peer, path, seed, 200_000)


def test_nothing_is_sent_again_on_a_clean_path() -> None:
    bed = Bed(offload=True)
    transfer(bed, TcpPeer(), Impairment(), 1, 500_000)
    assert bed.count(Cell.TCP_RETRANSMITS) == 0
