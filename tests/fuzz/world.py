"""A live stack under attack: forged packets and segments that know the state of the connection, a relay that does as it
likes, time that leaps. Whatever comes, the invariants of `check` and the contract of the handlers hold.
"""

from collections.abc import Sequence
from random import Random

from engine.flow import Fragment, Malformed, flow_key
from shared.buffer import Buffer
from shared.config import StackConfig
from shared.metrics import CELLS, DROPS, Cell
from shared.wire import ip, tcp
from shared.wire.tcp import ACK, FIN, PSH, RST, SYN
from shared.wire.virtio import F_NEEDS_CSUM, HEADER
from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import APPS, PEERS, SEEDS
from tests.support.tcp_peer import read_segment
from workers.stack import CloseReason, Refusal
from workers.stack.stack import Stack
from workers.stack.tcp.buffer import CHUNK_SIZES
from workers.stack.tcp.connection import TcpConnection
from workers.stack.tcp.receiver import RANGES_MAX
from workers.stack.tcp.states import State

__all__ = ["World"]

TURN = 0x10000
STREAM = Random(0).randbytes(TURN) * 2
"""What a faithful application sends: the byte at sequence number n is STREAM[n % TURN]."""

KEYS = [
    app + PEERS[version] + port.to_bytes(2, "big") + (443).to_bytes(2, "big")
    for version, apps in APPS.items()
    for app in apps
    for port in (40000, 40001, 40002)
]
SYN_OPTIONS = (
    b"",
    tcp.syn_options(tcp.Options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1000, 0))),
    tcp.syn_options(tcp.Options(mss=1460, window_scale=14, sack_permitted=True)),
    tcp.syn_options(tcp.Options(mss=1, timestamps=(0xFFFFFFFF, 0))),
    tcp.syn_options(tcp.Options(mss=65535, sack_permitted=True)),
    tcp.syn_options(tcp.Options(mss=0, window_scale=0)),
)
FLAGS = (ACK, ACK, ACK, ACK | PSH, ACK | PSH, ACK | FIN, FIN, RST, RST | ACK, SYN, SYN | ACK, 0, 0xFF, ACK | PSH | FIN)
SHIFTS = (0, 0, 0, 0, 0, 1, -1, 2, 100, -100, 1460, 3000, 65535, -65536, 1 << 20, 1 << 30, 1 << 31, -1)
SIZES = (0, 0, 0, 1, 1, 2, 100, 536, 1448, 1460, 9000, 60000)
WINDOWS = (0, 1, 10, 500, 0xFFFF, 0xFFFF)
REFUSALS = tuple(Refusal)
OUTCOMES = [
    *DROPS, Cell.TCP_OPENED, Cell.TCP_RESETS_SENT, Cell.TCP_RESETS_RECEIVED, Cell.ICMP_ECHO_REPLIES,
]  # fmt: skip
SILENCE_MAX = 3 * 7200.0
"""Seconds after which nothing may be left of any connection: keep-alive, the longest timer, takes 7875."""


class _Flow:
    """The relay's side of one connection; asserts what workers/stack/__init__.py promises to it."""

    def __init__(self, world: "World", connection: TcpConnection) -> None:
        self.world = world
        self.connection = connection
        self.position = connection.receiver.next  # of the next byte to be delivered
        self.eof = False
        self.closed: CloseReason | None = None

    def on_data(self, data: memoryview, /) -> int:
        assert self.closed is None and not self.eof, "no data after the end"
        assert self.connection.state is not State.DIALING, "no data before the handshake"
        draw = self.world.random.random
        taken = len(data) if draw() < 0.8 else int(draw() * (len(data) + 1))
        if self.world.faithful:
            at = self.position % TURN
            assert taken > TURN or data[:taken] == STREAM[at : at + taken], "every byte once and in order"
        self.position += taken
        if draw() < 0.002:
            self.connection.abort(self.world.now)
        return taken

    def on_eof(self) -> None:
        assert self.closed is None and not self.eof, "the end is told once"
        self.eof = True

    def on_send_space(self) -> None:
        assert self.closed is None
        self.send()

    def on_closed(self, reason: CloseReason, /) -> None:
        assert self.closed is None, "closed is told once"
        self.closed = reason
        self.world.flows.remove(self)

    def send(self) -> None:
        """Fill some of the send buffer."""
        for _ in range(3):
            space = self.connection.send_buffer()
            if space is None:
                return
            size = int(self.world.random.random() * (len(space) + 1))
            space[:size] = STREAM[:size]
            self.connection.commit(size, self.world.now)

    def act(self) -> None:
        """Do something of its own accord."""
        connection, now = self.connection, self.world.now
        choice = int(self.world.random.random() * 16)
        if connection.state is State.DIALING:
            if choice < 10:
                connection.accept(now)
            elif choice < 13:
                connection.refuse(self.world.random.choice(REFUSALS), now)
        elif choice < 8:
            self.send()
        elif choice < 13:
            connection.resume(now)
        elif choice == 13:
            connection.shutdown(now)
        elif choice == 14:
            connection.abort(now)


class World:
    """One stack with all around it. `faithful`: no segment lies about the bytes of its stream, so delivery is checked."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.faithful = random.random() < 0.5
        self.now = 100.0
        self.counters = [0] * CELLS
        self.flows: list[_Flow] = []
        self.datagrams = 0
        self.config = StackConfig(
            mtu=random.choice((1280, 1500, 9000, 65535)),
            offload=random.random() < 0.5,
            receive_buffer=random.choice((4096, 65536, 1 << 20)),
            send_buffer=random.choice((4096, 65536, 1 << 20)),
            max_tcp_flows=random.choice((3, 8, 100)),
            max_half_open=random.choice((2, 100)),
            max_buffers=random.choice((1 << 30, 1 << 18, 20_000)),
        )
        self._largest = 65535 if self.config.offload else self.config.mtu
        self.stack = Stack(
            self.config,
            transmit=self._transmit,
            on_syn=self._on_syn,
            on_datagram=self._on_datagram,
            secret=b"0123456789abcdef",
            counters=self.counters,
        )

    # what the stack calls

    def _transmit(self, parts: Sequence[Buffer], /) -> None:
        size = sum(map(len, parts)) - 10
        assert 20 < size <= self._largest, "no packet exceeds the MTU, or 64 KiB with offload"
        if self.random.random() < 0.01:
            packet = b"".join(parts)
            if ip.parse(memoryview(packet), 10, verify=True)[1:2] == (ip.TCP,):  # type: ignore[index]
                read_segment(packet)

    def _on_syn(self, connection: TcpConnection) -> None:
        connection.handler = flow = _Flow(self, connection)
        self.flows.append(flow)
        if self.random.random() < 0.7:
            flow.act()

    def _on_datagram(
        self, version: int, source: bytes, sport: int, destination: bytes, dport: int, payload: memoryview, /
    ) -> None:
        self.datagrams += 1
        arguments = version, destination, dport, source, sport
        if self.random.random() < 0.2:
            self.stack.send_datagram(*arguments, payload[:65507])
        elif self.random.random() < 0.1:
            refusal = self.random.choice(REFUSALS)
            self.stack.send_unreachable(refusal, version, source, sport, destination, dport, payload[:65507])

    # what happens

    def step(self) -> None:
        """One input, and perhaps something beside it."""
        draw = self.random.random
        what = draw()
        if what < 0.6:
            packet: bytes | bytearray = self._segment(KEYS[int(draw() * len(KEYS))])
            if not self.faithful and draw() < 0.1:
                packet = mutated(packet, self.random)
        elif self.faithful:
            packet = SEEDS[int(draw() * len(SEEDS))] if what < 0.7 else self._segment(KEYS[int(draw() * 3)])
            if packet[10:] and _is_tcp_data(packet):
                packet = self._segment(KEYS[0])
        else:
            packet = mutated(SEEDS[int(draw() * len(SEEDS))], self.random)
        self.give(packet)
        if draw() < 0.3:
            self.stack.flush(self.now)
        if draw() < 0.15 and self.flows:
            self.random.choice(self.flows).act()
        if draw() < 0.1:
            self._leap()

    def give(self, packet: bytes | bytearray) -> None:
        """Process one packet, in memory that is used again; a packet of no connection must show in a counter."""
        buffer = bytearray(packet)
        view = memoryview(buffer)
        try:
            known = flow_key(view) in self.stack.connections
        except (Malformed, Fragment):
            known = False
        before = self._outcomes()
        self.stack.process(view, self.now)
        assert known or self._outcomes() > before, f"in no counter: {bytes(packet).hex()}"
        buffer[:64] = bytes(min(64, len(buffer)))

    def _outcomes(self) -> int:
        counters = self.counters
        return self.datagrams + sum([counters[cell] for cell in OUTCOMES])

    def _leap(self) -> None:
        draw = self.random.random
        self.now += (0.001, 0.05, 0.3, 1.0, 20.0, 130.0)[int(draw() * draw() * 6)]
        self.stack.flush(self.now)
        self.stack.timeout(self.now)

    def _segment(self, key: bytes) -> bytes:
        """A segment of flow `key` with numbers at, near or far from those expected."""
        draw = self.random.random
        connection = self.stack.connections.get(key)
        window = WINDOWS[int(draw() * len(WINDOWS))]
        if connection is None:
            flags = SYN if draw() < 0.8 else FLAGS[int(draw() * len(FLAGS))]
            options = SYN_OPTIONS[int(draw() * len(SYN_OPTIONS))]
            return _pack(key, self.random.getrandbits(32), self.random.getrandbits(32), flags, window, options, b"")
        receiver, sender = connection.receiver, connection.sender
        flags = FLAGS[int(draw() * len(FLAGS))] if draw() < 0.6 else ACK
        seq = receiver.next + SHIFTS[int(draw() * len(SHIFTS))]
        ack = (sender.next if draw() < 0.7 else sender.una) + (SHIFTS[int(draw() * len(SHIFTS))] if draw() < 0.3 else 0)
        options = b""
        if connection.receiver.ts_recent and draw() < 0.95:
            options = tcp.timestamp_option((receiver.ts_recent + int(draw() * 12) - 2) & 0xFFFFFFFF, 0)
        if draw() < 0.15:
            options += tcp.sack_option([self._block(sender.una, sender.next) for _ in range(1 + int(draw() * 2))])
        size = SIZES[int(draw() * len(SIZES))]
        at = seq % TURN
        return _pack(key, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, window, options, STREAM[at : at + size])

    def _block(self, una: int, following: int) -> tuple[int, int]:
        left = una + int(self.random.random() * (following - una + 2))
        right = left + int(self.random.random() * (following - left + 3))
        return left & 0xFFFFFFFF, right & 0xFFFFFFFF

    # what must hold

    def check(self) -> None:
        """Counters tell the truth and every bound is kept."""
        stack, counters, config = self.stack, self.counters, self.config
        live = [flow.connection for flow in self.flows]
        held = sum(chunks_held(connection) for connection in stack.connections.values())
        held += sum(len(c.receiver.backlog) + c.receiver.out_of_order for c in live)
        assert counters[Cell.BUFFER_BYTES] == held, "every byte held is counted"
        # The last to take of the common half may take as much at once as a packet or a chunk holds.
        assert held <= config.max_buffers + 0x10000 + config.max_tcp_flows * CHUNK_SIZES[0]
        waiting = sum(c.state is State.TIME_WAIT for c in stack.connections.values())
        assert counters[Cell.TCP_ACTIVE] == len(stack.connections) - waiting <= config.max_tcp_flows
        half_open = sum(c.state in (State.DIALING, State.SYN_RECEIVED) for c in stack.connections.values())
        assert counters[Cell.TCP_HALF_OPEN] == half_open <= config.max_half_open
        assert len(stack.timers) <= len({*stack.connections.values(), *live}), "no timer of a connection that is gone"
        assert min(counters) >= 0
        for connection in live:
            receiver = connection.receiver
            assert len(receiver.backlog) + receiver.out_of_order <= config.receive_buffer + 0xFFFF
            assert len(receiver._ranges) <= RANGES_MAX
            assert chunks_held(connection) <= max(config.send_buffer, CHUNK_SIZES[-1])

    def wind_down(self) -> None:
        """The attack is over: everything must come to rest, by time alone or because the worker stops."""
        for flow in list(self.flows):
            if flow.connection.state is State.DIALING:
                flow.connection.refuse(Refusal.REFUSED, self.now)
        if self.random.random() < 0.5:
            self.stack.close(self.now)
        self.stack.flush(self.now)
        end = self.now + SILENCE_MAX
        while (at := self.stack.next_timeout()) is not None:
            assert at <= end, "every timer ends"
            self.now = max(at, self.now)
            self.stack.timeout(self.now)
        assert not self.flows and not self.stack.connections, "every connection ends"
        self.check()
        assert self.counters[Cell.TCP_OPENED] == self.counters[Cell.TCP_CLOSED]


def chunks_held(connection: TcpConnection) -> int:
    """Bytes of memory in the send buffer of `connection`."""
    return connection.sender.buffer._held


def _is_tcp_data(packet: bytes) -> bool:
    """Whether a seed is TCP with text, which is not of STREAM."""
    parsed = ip.parse(memoryview(packet), 10, verify=False)
    return parsed is not None and parsed.protocol == ip.TCP


def _pack(key: bytes, seq: int, ack: int, flags: int, window: int, options: bytes, text: bytes) -> bytes:
    """A packet of flow `key` for whose checksum the kernel vouches."""
    size = len(key) // 2 - 2
    length = 20 + len(options) + len(text)
    if size == 4:
        length = min(length, 65535 - 20)
        network = ip.IPV4.pack(0x45, 0, 20 + length, 0, 0x4000, 64, ip.TCP, 0, key[:4], key[4:8])
    else:
        network = ip.IPV6.pack(0x60000000, length, ip.TCP, 64, key[:16], key[16:32])
    offset_flags = (5 + len(options) // 4) << 12 | flags
    ports = int.from_bytes(key[-4:-2], "big"), int.from_bytes(key[-2:], "big")
    start = len(network)
    return b"".join(
        (
            HEADER.pack(F_NEEDS_CSUM, 0, 0, 0, start, 16),
            network,
            tcp.HEADER.pack(*ports, seq, ack, offset_flags, window, 0, 0),
            options,
            text,
        )
    )
