"""A stack under test with everything around it played by the test: tun, upstream, clock."""

from dataclasses import dataclass, field

from shared.buffer import Buffer
from shared.config import StackConfig
from shared.metrics import CELLS, Cell
from tests.support.tcp_peer import TcpPeer
from workers.stack import CloseReason
from workers.stack.stack import Stack
from workers.stack.tcp.connection import TcpConnection

__all__ = ["Bed", "Upstream", "pattern"]


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which no stretch repeats soon, so that data out of place is seen."""
    words = ((seed * 2654435761 + i * 40503) & 0xFFFFFFFF for i in range(size // 4 + 1))
    return b"".join(word.to_bytes(4, "big") for word in words)[:size]


@dataclass
class Upstream:
    """The relay's side of one connection. `capacity` is how many bytes it takes before it must be resumed."""

    connection: TcpConnection
    capacity: int = 1 << 60
    received: bytearray = field(default_factory=bytearray)
    eof: bool = False
    closed: CloseReason | None = None
    outgoing: bytes = b""
    shutdown_after: bool = False
    now: float = 0.0

    def on_data(self, data: memoryview, /) -> int:
        assert not self.eof and self.closed is None, "no data after EOF or close"
        taken = min(len(data), self.capacity)
        self.received += data[:taken]
        self.capacity -= taken
        return taken

    def on_eof(self) -> None:
        assert not self.eof, "EOF is told once"
        self.eof = True

    def on_send_space(self) -> None:
        self.pump()

    def on_closed(self, reason: CloseReason, /) -> None:
        assert self.closed is None, "closed is told once"
        self.closed = reason

    def send(self, data: bytes, now: float = 0.0, *, shutdown: bool = False) -> None:
        """Send to the application as far as the buffer takes it; the rest follows on on_send_space."""
        self.outgoing += data
        self.shutdown_after |= shutdown
        self.now = now
        self.pump()

    def pump(self) -> None:
        while self.outgoing:
            space = self.connection.send_buffer()
            if space is None:
                return
            piece = self.outgoing[: len(space)]
            space[: len(piece)] = piece
            self.outgoing = self.outgoing[len(piece) :]
            self.connection.commit(len(piece), self.now)
        if self.shutdown_after:
            self.connection.shutdown(self.now)


class Bed:
    """`accepts`: every connection is accepted at once; else the test does it with the upstream it finds in `upstreams`."""

    def __init__(self, *, accepts: bool = True, offload: bool = False, mtu: int = 1500, **config: float) -> None:
        self.config = StackConfig(mtu=mtu, offload=offload, **config)  # type: ignore[arg-type]
        self.counters = [0] * CELLS
        self.out: list[bytes] = []
        self.datagrams: list[tuple[int, bytes, int, bytes, int, bytes]] = []
        self.upstreams: list[Upstream] = []
        self.accepts = accepts
        self.now = 100.0
        self.stack = Stack(
            self.config,
            transmit=self._transmit,
            on_syn=self._on_syn,
            on_datagram=self._on_datagram,
            secret=b"0123456789abcdef",
            counters=self.counters,
        )

    def _transmit(self, parts: tuple[Buffer, ...], /) -> None:
        packet = b"".join(parts)
        assert len(packet) - 10 <= (65535 if self.config.offload else self.config.mtu), "no packet exceeds the MTU"
        self.out.append(packet)

    def _on_syn(self, connection: TcpConnection) -> None:
        upstream = Upstream(connection)
        connection.handler = upstream
        self.upstreams.append(upstream)
        if self.accepts:
            connection.accept(self.now)

    def _on_datagram(
        self, version: int, source: bytes, sport: int, destination: bytes, dport: int, payload: memoryview, /
    ) -> None:
        self.datagrams.append((version, source, sport, destination, dport, bytes(payload)))

    def give(self, *packets: bytes) -> list[bytes]:
        """One batch to the stack; returns what it sends."""
        for packet in packets:
            buffer = bytearray(packet)
            self.stack.process(memoryview(buffer), self.now)
            buffer[:] = b"\xaa" * len(buffer)  # the slot is used again: whoever kept a view of it shows now
        self.stack.flush(self.now)
        return self.take()

    def take(self) -> list[bytes]:
        """What the stack has sent since the last look."""
        sent, self.out = self.out, []
        return sent

    def advance(self, seconds: float) -> list[bytes]:
        """Let time pass, timer by timer; returns what the stack sends."""
        until = self.now + seconds
        while (at := self.stack.next_timeout()) is not None and at <= until:
            self.now = max(at, self.now)
            self.stack.timeout(self.now)
        self.now = until
        return self.take()

    def count(self, cell: Cell) -> int:
        return self.counters[cell]

    def exchange(self, peer: TcpPeer, rounds: int = 50) -> None:
        """Carry packets between `peer` and the stack until neither has any, without loss and without time."""
        for _ in range(rounds):
            to_stack, peer.sent = peer.sent, []
            to_peer = self.give(*to_stack)
            for packet in to_peer:
                peer.receive(packet, self.now)
            if not to_peer and not peer.sent:
                return
        raise AssertionError("the two ends do not come to rest")

    def exchange_from(self, peer: TcpPeer) -> None:
        """The stack has sent something of itself: carry it, and then all that follows."""
        for packet in self.take():
            peer.receive(packet, self.now)
        self.exchange(peer)

    def established(self, **peer: object) -> tuple[TcpPeer, Upstream]:
        """A connection after the handshake."""
        client = TcpPeer(**peer)  # type: ignore[arg-type]
        client.connect(self.now)
        self.exchange(client)
        assert client.open
        return client, self.upstreams[-1]
