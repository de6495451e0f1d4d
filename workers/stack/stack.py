"""The stack of one worker: packets in, callbacks and packets out, all connections in one table.

    1  process: one Struct reads virtio, IP and TCP headers of a plain packet and the key of its flow; _process_other the rest
    2  a known flow: TcpConnection.process. A SYN: open -> on_syn. Anything else: RST
    3  flush, after a batch of packets: the ACKs that are due
    4  next_timeout / timeout: the timers of all connections

Four verbs drive it: process, flush, timeout, and the relay's calls on its connections. Nothing here blocks or raises on a packet.
"""

from collections.abc import Callable, Set
from hashlib import blake2s
from struct import Struct

from shared.buffer import Buffer
from shared.config import StackConfig
from shared.metrics import Cell, Counters
from shared.wire import ip, tcp
from shared.wire.checksum import ones_sum, pseudo_header_sum
from shared.wire.tcp import ACK, FIN, RST, SYN
from shared.wire.virtio import F_DATA_VALID, F_NEEDS_CSUM, HEADER_LEN
from workers.stack import CloseReason, DatagramHandler, Refusal, Transmit
from workers.stack.icmp import IcmpLayer
from workers.stack.tcp.admission import Admission
from workers.stack.tcp.buffer import ChunkPool
from workers.stack.tcp.connection import TcpConnection
from workers.stack.tcp.seqnum import MASK
from workers.stack.timers import Timers
from workers.stack.udp import UdpLayer

__all__ = ["Stack"]

# flags | total length, fragment, protocol | addresses and ports | seq, ack, offset and flags, window
_TCP4 = Struct(">B11xH2xHxB2x12sIIHH").unpack_from
# flags | payload length, next header | addresses and ports | as above
_TCP6 = Struct(">B13xHBx36sIIHH").unpack_from

_VOUCHED = F_NEEDS_CSUM | F_DATA_VALID
_TCP4_AT = HEADER_LEN + 20
_TCP6_AT = HEADER_LEN + 40
_QUOTE_MAX = 128
"""Bytes of a SYN kept to be quoted in an ICMP error: the largest IPv4 header and the TCP header, or IPv6 with extensions."""

TRIM_INTERVAL = 1.0
"""Seconds for which buffers of bulk flows must have been idle to be given back."""

TIME_WAIT_MAX = 4096
"""Connections in TIME-WAIT; beyond it the oldest is forgotten, as Linux does with tcp_max_tw_buckets."""

_SYN_DATA = SYN | ACK | RST | FIN


class Stack:
    """See the module docstring. Not thread-safe; its callbacks may call back into it and into its connections.

    now          time of the packet or batch being processed
    connections  flow key (source, destination, ports as they stand in the application's packets) -> connection
    admitted     keys for which alone connections are made; None: for all
    """

    def __init__(
        self,
        config: StackConfig,
        *,
        transmit: Transmit,
        on_syn: Callable[[TcpConnection], None],
        on_datagram: DatagramHandler,
        secret: bytes,
        counters: Counters,
        buffers: ChunkPool | None = None,
    ) -> None:
        self.config = config
        self.transmit = transmit
        self.counters = counters
        self.chunks = buffers if buffers is not None else ChunkPool(counters, config.max_buffers, config.max_tcp_flows)
        self.now = 0.0
        self.connections: dict[bytes, TcpConnection] = {}
        self.admitted: Set[bytes] | None = None
        self.ack_pending: list[TcpConnection] = []
        self.timers = Timers()
        self.mss = {4: min(config.mtu, 65535) - 40, 6: min(config.mtu, 65535) - 60}
        self.udp = UdpLayer(config, transmit, on_datagram, counters)
        self.icmp = IcmpLayer(config, transmit, self._on_too_big, counters)
        self._on_syn = on_syn
        self._secret = secret
        self._half_open: dict[bytes, TcpConnection] = {}  # first to be given up first
        self._admission = Admission(config.max_half_open // 2)
        self._waiting: dict[bytes, TcpConnection] = {}  # in TIME-WAIT, oldest first
        self._trim_at = 0.0

    # packets

    def process(self, packet: memoryview, now: float) -> None:
        """Take in one packet: virtio header, then IP, exact length. It may be reused after the return."""
        self.now = now
        size = len(packet)
        if size < _TCP4_AT + 20:
            self._process_other(packet, now)
            return
        first = packet[HEADER_LEN]
        if first == 0x45 and packet[19] == ip.TCP:
            flags, total, fragment, _, key, seq, ack, offset_flags, window = _TCP4(packet)
            start = _TCP4_AT
            end = total + HEADER_LEN
            if fragment & ip.IPV4_FRAGMENT_MASK:
                self.counters[Cell.DROP_FRAGMENT] += 1
                return
        elif first >> 4 == 6 and packet[16] == ip.TCP and size >= _TCP6_AT + 20:
            flags, total, _, key, seq, ack, offset_flags, window = _TCP6(packet)
            start = _TCP6_AT
            end = total + _TCP6_AT
        else:
            is_plain_udp = (first == 0x45 and packet[19] == ip.UDP) or (
                first >> 4 == 6 and packet[16] == ip.UDP and size >= _TCP6_AT + 8
            )
            if not (is_plain_udp and self.udp.process_plain(packet)):
                self._process_other(packet, now)
            return
        if not start + 20 <= end <= size:
            self.counters[Cell.DROP_MALFORMED] += 1
            return
        if not flags & _VOUCHED and not _is_intact(packet, key, start, end):
            self.counters[Cell.DROP_CHECKSUM] += 1
            return
        connection = self.connections.get(key)
        if connection is not None:
            connection.process(packet, start, end, seq, ack, offset_flags, window, now)
        else:
            self._process_unknown(packet, start, end, key, seq, ack, offset_flags)

    def _process_other(self, packet: memoryview, now: float) -> None:
        """Not TCP, or TCP behind IP options or extension headers."""
        if len(packet) < HEADER_LEN:
            self.counters[Cell.DROP_MALFORMED] += 1
            return
        vouched = packet[0] & _VOUCHED
        parsed = ip.parse(packet, HEADER_LEN, verify=not vouched)
        if parsed is None:
            self.counters[Cell.DROP_MALFORMED] += 1
            return
        version, protocol, source, destination, at, end, is_fragment = parsed
        if is_fragment:
            self.counters[Cell.DROP_FRAGMENT] += 1
        elif protocol == ip.UDP:
            self.udp.process(packet, version, source, destination, at, end)
        elif protocol == ip.TCP:
            self._process_tcp(packet, source, destination, at, end, now)
        elif protocol == ip.PROTOCOL_ICMP[version]:
            self.icmp.process(packet, version, source, destination, at, end)
        else:
            self.counters[Cell.DROP_UNSUPPORTED] += 1

    def _process_tcp(
        self, packet: memoryview, source: bytes, destination: bytes, at: int, end: int, now: float
    ) -> None:
        if end - at < 20:
            self.counters[Cell.DROP_MALFORMED] += 1
            return
        _, _, seq, ack, offset_flags, window, _, _ = tcp.HEADER.unpack_from(packet, at)
        key = source + destination + packet[at : at + 4]
        if not packet[0] & _VOUCHED and not _is_segment_intact(packet, key, at, end):
            self.counters[Cell.DROP_CHECKSUM] += 1
            return
        connection = self.connections.get(key)
        if connection is not None:
            connection.process(packet, at, end, seq, ack, offset_flags, window, now)
        else:
            self._process_unknown(packet, at, end, key, seq, ack, offset_flags)

    def _process_unknown(
        self, packet: memoryview, start: int, end: int, key: bytes, seq: int, ack: int, offset_flags: int
    ) -> None:
        """A segment of no connection: RFC 9293 3.10.7.1, and 3.10.7.2 for a SYN."""
        flags = offset_flags & 0xFF
        if flags & _SYN_DATA == SYN:
            self.open(packet, start, end, key)
            return
        if flags & RST:
            self.counters[Cell.DROP_STALE] += 1
            return  # RFC 9293 3.10.7.1: an RST is never answered
        if flags & ACK:
            self.reset(key, seq=ack, ack=None)
            return
        at = start + (offset_flags >> 12) * 4
        length = max(end - at, 0) + bool(flags & SYN) + bool(flags & FIN)
        self.reset(key, seq=0, ack=seq + length)

    # connections

    def open(self, packet: memoryview, start: int, end: int, key: bytes, iss: int | None = None) -> None:
        """Make a connection of a SYN and tell the relay. `iss`: first number to use, by default that of RFC 6528."""
        config = self.config
        if self.admitted is not None and key not in self.admitted:
            self.counters[Cell.DROP_STALE] += 1  # when it is sent again it goes to where the flow belongs now
            return
        _, _, seq, _, offset_flags, window, _, _ = tcp.HEADER.unpack_from(packet, start)
        at = start + (offset_flags >> 12) * 4
        options = tcp.parse_options(packet[start + 20 : at]) if start + 20 <= at <= end else None
        if options is None:
            self.counters[Cell.DROP_MALFORMED] += 1
            return
        if len(self.connections) - len(self._waiting) >= config.max_tcp_flows:
            self.counters[Cell.DROP_FLOW_LIMIT] += 1
            self.reset(key, seq=0, ack=seq + 1)  # or the application would try for minutes
            return
        if not self._admission.admits(key, len(self._half_open), self.now):
            self.counters[Cell.DROP_SYN_FLOOD] += 1
            return
        if len(self._half_open) >= config.max_half_open:
            # Without a word: an honest application sends its SYN again, a forged one is not there to be told.
            self.counters[Cell.DROP_HALF_OPEN] += 1
            next(iter(self._half_open.values())).evict()
        digest = blake2s(key, key=self._secret, digest_size=8).digest()
        if iss is None:
            iss = (int.from_bytes(digest[:4], "big") + int(self.now * 250_000)) & MASK  # a clock of 4 us (RFC 6528 3)
        ts_offset = int.from_bytes(digest[4:], "big")  # as hard to guess as the numbers (RFC 7323 7.1)
        syn = bytes(packet[HEADER_LEN : min(end, HEADER_LEN + _QUOTE_MAX)])
        local = bool(packet[0] & F_NEEDS_CSUM)  # no sum yet: it has crossed no wire
        connection = TcpConnection(self, key, seq, iss & MASK, ts_offset, options, window, syn, local=local)
        self.connections[key] = self._half_open[key] = connection
        self.counters[Cell.TCP_OPENED] += 1
        self.counters[Cell.TCP_ACTIVE] += 1
        self.counters[Cell.TCP_HALF_OPEN] += 1
        self._on_syn(connection)

    def answered(self, connection: TcpConnection) -> None:
        """The SYN-ACK of `connection` goes out: of those half open it is the last to be given up.

        From here on the application takes itself for connected, and would have to be reset.
        """
        self._half_open[connection.key] = self._half_open.pop(connection.key)

    def established(self, connection: TcpConnection) -> None:
        """The handshake of `connection` is complete."""
        if self._half_open.pop(connection.key, None) is not None:
            self.counters[Cell.TCP_HALF_OPEN] -= 1

    def wait(self, connection: TcpConnection) -> None:
        """`connection` is in TIME-WAIT now: it no longer counts as a flow, but answers for a while."""
        self._waiting[connection.key] = connection
        self._count_closed()
        if len(self._waiting) > TIME_WAIT_MAX:
            self.forget(next(iter(self._waiting.values())))

    def forget(self, connection: TcpConnection) -> None:
        """`connection` leaves the table; what still comes for it is answered by RST."""
        key = connection.key
        if self.connections.get(key) is not connection:
            return
        del self.connections[key]
        if self._waiting.pop(key, None) is None:
            self._count_closed()
        if self._half_open.pop(key, None) is not None:
            self.counters[Cell.TCP_HALF_OPEN] -= 1
            self._admission.failed(self.now)

    def _count_closed(self) -> None:
        self.counters[Cell.TCP_CLOSED] += 1
        self.counters[Cell.TCP_ACTIVE] -= 1

    def reset(self, key: bytes, *, seq: int, ack: int | None) -> None:
        """Send RST to the application of flow `key`; with ACK when `ack` is given."""
        self.counters[Cell.TCP_RESETS_SENT] += 1
        packet = tcp.build(
            tcp.reverse(key),
            seq=seq & MASK,
            ack=0 if ack is None else ack & MASK,
            flags=RST if ack is None else RST | ACK,
        )
        self.transmit((packet,))

    def _on_too_big(self, key: bytes, mtu: int, seq: int) -> None:
        connection = self.connections.get(key)
        if connection is None:
            self.counters[Cell.DROP_STALE] += 1
        else:
            connection.too_big(mtu, seq, self.now)

    # datagrams

    def send_datagram(
        self, version: int, source: bytes, source_port: int, destination: bytes, destination_port: int, payload: Buffer
    ) -> None:
        """Send a datagram of the remote peer `source` to the application `destination`; at most 65,507 bytes."""
        self.udp.send(version, source, source_port, destination, destination_port, payload)

    def send_unreachable(
        self,
        refusal: Refusal,
        version: int,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        payload: Buffer,
    ) -> None:
        """Tell the application `source` by ICMP that its datagram to `destination` is not carried. Limited in rate."""
        offending = self.udp.offending(version, source, source_port, destination, destination_port, payload)
        self.icmp.send_error(refusal, version, destination, source, offending, self.now)

    # batches and time

    def flush(self, now: float) -> None:
        """After a batch of packets: send the ACKs that are due at once, one per flow."""
        self.now = now
        pending = self.ack_pending
        if pending:
            self.ack_pending = []
            for connection in pending:
                connection.flush(now)

    def next_timeout(self) -> float | None:
        """When `timeout` is to be called next (monotonic seconds); None: no timer runs."""
        return self.timers.next_at()

    def timeout(self, now: float) -> None:
        """Act on all timers that are due. To be called a few times a second at least: memory is given back here, too."""
        self.now = now
        self.timers.expire(now)
        if now >= self._trim_at:
            self._trim_at = now + TRIM_INTERVAL
            self.chunks.trim()

    def close(self, now: float) -> None:
        """The worker stops: reset every live connection."""
        self.now = now
        for connection in list(self.connections.values()):
            connection.end(CloseReason.ABORTED, now)


def _is_intact(packet: memoryview, key: bytes, start: int, end: int) -> bool:
    """Verify the checksums of a packet without IP options that the kernel does not vouch for."""
    if start == _TCP4_AT and ones_sum(packet[HEADER_LEN:start]) != 0xFFFF:
        return False
    return _is_segment_intact(packet, key, start, end)


def _is_segment_intact(packet: memoryview, key: bytes, start: int, end: int) -> bool:
    # The key is both addresses and 4 bytes of ports; the order of the addresses does not matter to a sum.
    half = (len(key) - 4) // 2
    pseudo = pseudo_header_sum(key[:half], key[half : 2 * half], ip.TCP, end - start)
    return ones_sum(packet[start:end], pseudo) == 0xFFFF
