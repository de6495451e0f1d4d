"""The two kinds of ends (network.py, Side)."""

import math
import struct
from collections.abc import Sequence

from tests.support.stack_bed import Bed, Upstream
from tests.support.tcp_peer import TcpPeer, read_segment

__all__ = ["PeerSide", "StackSide"]


class StackSide:
    """Our stack; the upstreams of its connections are the test's."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed

    @property
    def upstream(self) -> Upstream:
        """The relay's side of the newest connection."""
        return self.bed.upstreams[-1]

    def give(self, arrived: Sequence[bytes], now: float, /) -> list[bytes]:
        """Side."""
        self._set_time(now)
        return self.bed.give(*arrived)

    def next_at(self) -> float:
        """Side."""
        at = self.bed.stack.next_timeout()
        return math.inf if at is None else at

    def wake(self, now: float, /) -> list[bytes]:
        """Side."""
        self._set_time(now)
        self.bed.stack.timeout(now)
        return self.bed.take()

    def _set_time(self, now: float) -> None:
        self.bed.now = now
        for upstream in self.bed.upstreams:
            upstream.now = now


class PeerSide:
    """An independent TCP client, which looks at its timer each `STEP` until it is done."""

    STEP = 0.01

    def __init__(self, peer: TcpPeer) -> None:
        self.peer = peer
        self._look_at = 0.0

    def give(self, arrived: Sequence[bytes], now: float, /) -> list[bytes]:
        """Side."""
        for packet in arrived:
            try:
                read_segment(packet)
            except (AssertionError, IndexError, struct.error):
                continue  # damaged on the way
            self.peer.receive(packet, now)
        return self._take()

    def next_at(self) -> float:
        """Side."""
        return math.inf if self.peer.reset else self._look_at

    def wake(self, now: float, /) -> list[bytes]:
        """Side."""
        self._look_at = now + self.STEP
        self.peer.timer(now)
        return self._take()

    def _take(self) -> list[bytes]:
        sent, self.peer.sent = self.peer.sent, []
        return sent
