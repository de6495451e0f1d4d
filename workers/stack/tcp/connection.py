"""One TCP connection with an application, the passive side of RFC 9293.

    arriving   process: header prediction, else _process_any in the order of RFC 9293 3.10.7.4 -> handler
    leaving    relay: send_buffer, commit -> _send_pending -> Sender.next_segment -> _emit -> Transmit
    ACKs       marked while a batch of packets is processed, sent by flush, at most one per batch
    timers     on_timer: retransmission or window probe, delayed ACK, and silence (keep-alive, half-closed, TIME-WAIT)

Positions are unwrapped sequence numbers (seqnum.py), times monotonic seconds, sizes bytes.
"""

import math
from typing import TYPE_CHECKING

from shared.buffer import Buffer
from shared.metrics import Cell
from shared.wire import tcp
from shared.wire.tcp import ACK, FIN, PSH, RST, SYN, TIMESTAMP, TIMESTAMP_LAYOUT, Options
from workers.stack import CloseReason, Refusal, TcpHandler
from workers.stack.tcp.buffer import CHUNK_SIZES, SendBuffer
from workers.stack.tcp.flight import Segment
from workers.stack.tcp.header import HeaderTemplate
from workers.stack.tcp.receiver import Receiver
from workers.stack.tcp.rtt import RTO_INITIAL
from workers.stack.tcp.sender import Sender
from workers.stack.tcp.seqnum import HALF, MASK, is_before, unwrap
from workers.stack.tcp.states import TRANSITIONS, Event, State
from workers.stack.timers import Entry

if TYPE_CHECKING:
    from workers.stack.stack import Stack

__all__ = ["TcpConnection"]

MSS_DEFAULT = {4: 536, 6: 1220}  # RFC 9293 3.7.1 (MUST-15), when the SYN names none
MSS_MIN = (
    88  # as Linux' min_snd_mss 48, timestamps besides: a tiny MSS makes us send a header per few bytes (CVE-2019-11479)
)
MTU_MIN = {4: 552, 6: 1280}  # bytes believed of an ICMP "too big": Linux' min_pmtu, and RFC 8201 4
SEGMENT_MAX = 65535 - 52  # payload: with IPv4 and TCP headers and timestamps the largest packet, of either version
DELAYED_ACK = 0.04  # seconds a lone segment's ACK waits for data to ride on; RFC 9293 3.8.6.3 allows 0.5
ACK_EVERY_MAX = 32 * 1024  # bytes after which an ACK goes out with the batch, however large the MSS
QUICK_ACKS = 16  # ACKs not delayed after a delay was in vain: the application waits for ACKs, not for answers
SYN_ACK_RETRIES = 5  # as Linux' tcp_synack_retries
GIVE_UP = 120.0  # seconds of retransmission in vain; RFC 9293 3.8.3 R2 asks for at least 100
CHALLENGE_INTERVAL = (
    0.5  # seconds between two challenge ACKs of a connection (RFC 5961 7; per connection, or CVE-2016-5696)
)
KEEPALIVE_INTERVAL = 75.0  # seconds between probes, and
KEEPALIVE_PROBES = 9  # probes in vain before giving up, as Linux
TIME_WAIT = (
    10.0  # seconds; RFC 9293 asks for 2 MSL = 4 min against old duplicates, which a tun on one machine cannot keep
)
PAWS_VALID = 24 * 86400.0  # seconds after which TS.Recent is out of date (RFC 7323 5.5)

_HEARS_TEXT = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})
_SENDS_TEXT = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})
_FIN_IS_OUT = frozenset({State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
_HALF_OPEN = frozenset({State.DIALING, State.SYN_RECEIVED})
_HALF_CLOSED = frozenset({State.FIN_WAIT_2, State.CLOSE_WAIT, State.CLOSED})
_NOT_PSH = 0xFFFF & ~PSH


class _Silence(TcpHandler):
    """The handler of a connection that has none yet, or is gone: breaks the cycle with the relay, hears nothing."""

    def on_data(self, data: memoryview, /) -> int:
        return 0

    def on_eof(self) -> None:
        pass

    def on_send_space(self) -> None:
        pass

    def on_closed(self, reason: CloseReason, /) -> None:
        pass


_SILENCE = _Silence()


class TcpConnection:
    """One flow. `source` is the application, `destination` what it connects to.

    The relay sets `handler` when Stack calls on_syn with a connection in state DIALING, and decides: accept or refuse.
    """

    __slots__ = (
        "_ack_at", "_ack_now", "_challenged_at", "_eof_told", "_header", "_header_length", "_heard_at", "_irs",
        "_iss", "_options", "_predicted", "_quick_acks", "_shutdown", "_silent_at", "_stack", "_starved",
        "_syn_retries", "_timestamps", "_ts_offset", "_unanswered", "_window_position", "_window_scale",
        "ack_queued", "destination", "destination_port", "handler", "key", "receiver", "sender", "source",
        "source_port", "state", "syn", "timer", "version",
    )  # fmt: skip

    def __init__(
        self,
        stack: "Stack",
        key: bytes,
        *,
        irs: int,
        iss: int,
        ts_offset: int,
        options: Options,
        window: int,
        syn: bytes,
    ) -> None:
        """A SYN with sequence number `irs`, `options` and `window` has come from `key`; `syn` is its IP packet, to quote."""
        self.version = version = 4 if len(key) == 12 else 6
        half = (len(key) - 4) // 2
        self.key = key
        self.source, self.destination = key[:half], key[half : 2 * half]
        self.source_port = int.from_bytes(key[-4:-2], "big")
        self.destination_port = int.from_bytes(key[-2:], "big")
        self.handler: TcpHandler = _SILENCE
        self.state = State.DIALING
        self.syn = syn
        self.timer: Entry | None = None
        self.ack_queued = False
        self._stack = stack
        self._irs, self._iss = irs, iss
        self._options = options
        config = stack.config
        self._timestamps = options.timestamps is not None
        self._ts_offset = ts_offset
        self._header_length = 32 if self._timestamps else 20
        own_mss = stack.mss[version]
        mss = min(max(options.mss or MSS_DEFAULT[version], MSS_MIN), own_mss) - (
            12 if self._timestamps else 0
        )  # RFC 6691
        self.receiver = Receiver(irs + 1, config.receive_buffer, own_mss)
        if options.timestamps is not None:
            self.receiver.ts_recent = options.timestamps[0]
        self._window_scale = options.window_scale or 0
        buffer = SendBuffer(stack.chunks, iss + 1, config.send_buffer, _whole_segments(mss))
        max_segment = _whole_segments(mss) if config.offload else mss
        self.sender = Sender(buffer, mss, max_segment, window, sack=options.sack_permitted)
        ports = key[-2:] + key[-4:-2]
        self._header = HeaderTemplate(
            version, self.destination, self.source, ports, mss=mss, timestamps=self._timestamps, offload=config.offload
        )
        self._predicted = 0  # the offset and flags of the segment that _process_predicted takes; 0: none
        self._window_position = irs  # SND.WL1
        self._ack_at = self._silent_at = math.inf
        self._ack_now = self._shutdown = self._starved = self._eof_told = False
        self._quick_acks = self._syn_retries = self._unanswered = 0
        self._challenged_at = -math.inf
        self._heard_at = stack.now

    def __repr__(self) -> str:
        return f"<TcpConnection {self.key.hex()} {self.state.name}>"

    # the relay's calls

    def accept(self, now: float) -> None:
        """The upstream is connected: answer the SYN."""
        if self.state is not State.DIALING:
            return  # gone meanwhile; on_closed has told
        self.syn = b""
        self._set_state(Event.ACCEPT)
        self._send_syn_ack(now)

    def refuse(self, refusal: Refusal, now: float) -> None:
        """The upstream cannot be reached: RST, or an ICMP error that quotes the SYN. Ends with on_closed(ABORTED)."""
        if self.state is not State.DIALING:
            return
        self._stack.now = now
        if refusal.value is None:
            self._stack.reset(self.key, seq=0, ack=self._irs + 1)
        else:
            self._stack.icmp.send_error(refusal, self.version, self.destination, self.source, self.syn, now)
        self._close(CloseReason.ABORTED)

    def resume(self, now: float) -> None:
        """The upstream can be written again: offer the backlog until it takes less than it is offered."""
        receiver = self.receiver
        while receiver.backlog:
            with memoryview(receiver.backlog) as view:
                offered = len(view)
                taken = self.handler.on_data(view)
            self._stack.counters[Cell.BUFFER_BYTES] -= taken
            del receiver.backlog[:taken]
            if taken < offered:
                break
        if self.state in _HEARS_TEXT:
            if receiver.may_open_window():
                self._send_ack(now)
            self._predict()
        self._tell_eof()

    def send_buffer(self) -> memoryview | None:
        """Return a writable view for data to the application; None when the buffer is full (on_send_space will follow).

        The same place is returned until `commit`; take no other step in between.
        """
        if self._shutdown or self.state is State.CLOSED:
            return None
        space = self.sender.buffer.space()
        self._starved = space is None
        return space

    def commit(self, length: int, now: float) -> None:
        """The first `length` bytes of the view are stream data: send what the windows allow. 0 gives the view back."""
        if self.state is State.CLOSED:
            return
        self.sender.buffer.commit(length)
        if length:
            self._send_pending(now)

    def shutdown(self, now: float) -> None:
        """No more data follows: FIN after what is buffered."""
        if self._shutdown or self.state is State.CLOSED:
            return
        self._shutdown = self.sender.fin = True
        self._send_pending(now)

    def abort(self, now: float) -> None:
        """Reset the connection. Ends with on_closed(ABORTED)."""
        self.end(CloseReason.ABORTED, now)

    def end(self, reason: CloseReason, now: float) -> None:
        """Reset the connection for any reason."""
        if self.state is State.DIALING:
            self._stack.reset(self.key, seq=0, ack=self._irs + 1)
        elif self.state not in (State.TIME_WAIT, State.CLOSED):
            self._stack.reset(self.key, seq=self.sender.next, ack=self.receiver.next)
        self._close(reason)

    def evict(self) -> None:
        """Forget the connection without a word to the application. Ends with on_closed(EVICTED)."""
        self._close(CloseReason.EVICTED)

    # arriving segments

    def process(
        self, packet: memoryview, start: int, end: int, seq: int, ack: int, offset_flags: int, window: int, now: float
    ) -> None:
        """Take in the segment packet[start:end]; `seq` .. `window` are fields of its header."""
        # Header prediction: the next segment in order of an open connection, its upstream writable, flags ACK and PSH at
        # most. Everything that makes it not so (state, gap, backlog) sets _predicted to 0. All else goes to _process_any.
        receiver = self.receiver
        sender = self.sender
        at = start + self._header_length
        size = end - at
        acked = (ack - sender.una) & MASK
        if (
            offset_flags & _NOT_PSH != self._predicted
            or (seq - receiver.next) & MASK
            or not 0 <= size <= receiver.edge - receiver.next
            or acked > sender.next - sender.una
        ):
            return self._process_any(packet, start, end, seq, ack, offset_flags, window, now)
        if self._timestamps:
            layout, value, _ = TIMESTAMP.unpack_from(packet, start + 20)
            if layout != TIMESTAMP_LAYOUT or (value - receiver.ts_recent) & MASK >= HALF:
                return self._process_any(packet, start, end, seq, ack, offset_flags, window, now)
            if receiver.acked == receiver.next:
                receiver.ts_recent = value
        self._heard_at = now
        window <<= self._window_scale
        if acked or not size or window != sender.window:
            self._process_ack(sender.una + acked, window, receiver.next, size, now)
            if not self._predicted:  # the handler did something in on_send_space
                if size and self.state in _HEARS_TEXT:
                    self._process_text(packet[at:end], receiver.next, now)
                return None
        if size:
            receiver.next += size
            if size > receiver.mss or not offset_flags & PSH:
                self._ack_now = True  # its sender has more, and waits for its window to grow
            if not self.ack_queued:
                self.ack_queued = True
                self._stack.ack_pending.append(self)
            taken = self.handler.on_data(packet[at:end])
            if taken < size:
                self._keep(packet[at + taken : end])
        return None

    def _process_any(
        self, packet: memoryview, start: int, end: int, seq: int, ack: int, offset_flags: int, window: int, now: float
    ) -> None:
        """RFC 9293 3.10.7.4, its steps in its order."""
        at = start + (offset_flags >> 12) * 4
        options = tcp.parse_options(packet[start + 20 : at]) if start + 20 <= at <= end else None
        if options is None:
            self._stack.counters[Cell.DROP_MALFORMED] += 1
            return
        flags = offset_flags & 0xFF
        position = unwrap(seq, self.receiver.next)
        length = end - at + bool(flags & SYN) + bool(flags & FIN)
        if flags & SYN and self._process_syn(packet, start, end, position, flags, options):
            return
        if not self._is_acceptable(position, length, flags, options, now):
            return
        if flags & RST:
            self._process_reset(position, now)
            return
        if flags & SYN:
            self._challenge(now)  # RFC 5961 4.2, whatever its sequence number
            return
        if not flags & ACK or self.state is State.DIALING:
            return
        self._note_heard(position, options, now)
        if not self._is_ack_valid(ack, now):
            return
        blocks = [(unwrap(left, self.sender.una), unwrap(right, self.sender.una)) for left, right in options.sack]
        self._process_ack(unwrap(ack, self.sender.una), window << self._window_scale, position, length, now, blocks)
        if self.state in _HEARS_TEXT:
            self._process_text(packet[at:end], position, now, fin=bool(flags & FIN), pushed=bool(flags & PSH))

    def _process_syn(
        self, packet: memoryview, start: int, end: int, position: int, flags: int, options: Options
    ) -> bool:
        """A SYN on a known flow. True when it was dealt with here."""
        if flags & (RST | ACK):
            return False
        stack = self._stack
        if self.state is State.DIALING:
            if position != self._irs:  # the application has given up and tries anew from the same port
                self._close(CloseReason.RESET)
                stack.open(packet, start, end, self.key)
            return True  # else a retransmission: the answer comes when the upstream has connected
        if self.state is State.SYN_RECEIVED and position == self._irs:
            self._send_syn_ack(stack.now)
            return True
        if self.state is State.TIME_WAIT and self._is_newer(position, options):
            # RFC 6191, RFC 9293 3.6.1. Our numbers must go on above the old ones, as Linux does.
            stack.forget(self)
            stack.open(packet, start, end, self.key, iss=self.sender.next + 0x10001)
            return True
        return False

    def _is_newer(self, position: int, options: Options) -> bool:
        if self._timestamps and options.timestamps is not None:
            return is_before(self.receiver.ts_recent, options.timestamps[0])
        return position > self.receiver.next

    def _is_acceptable(self, position: int, length: int, flags: int, options: Options, now: float) -> bool:
        """PAWS (RFC 7323 5.3) and the window (RFC 9293 3.10.7.4, first step). Answers what is not acceptable."""
        receiver = self.receiver
        fresh = True
        if self._timestamps and not flags & RST:
            if options.timestamps is None:
                self._stack.counters[Cell.DROP_MALFORMED] += 1  # RFC 7323 3.2: drop in silence
                return False
            old = is_before(options.timestamps[0], receiver.ts_recent)
            fresh = not old or now - self._heard_at > PAWS_VALID
        # With a window of 0 the segment at its edge still passes, for its ACK or RST; its text is cut to nothing.
        if length:
            inside = position <= receiver.edge and position + length > receiver.next
        else:
            inside = receiver.next <= position <= receiver.edge
        if fresh and inside:
            return True
        self._stack.counters[Cell.DROP_OUT_OF_WINDOW] += 1
        if flags & RST or self.state is State.DIALING:
            return False
        if self.state is State.TIME_WAIT:
            self._silent_at = now + TIME_WAIT  # its FIN again: our ACK was lost
        if flags & SYN or not length:
            self._challenge(now)  # rate-limited: two ends that disagree must not ACK each other for ever
        else:
            self._ack_now = True
            self._want_ack()
        return False

    def _process_reset(self, position: int, now: float) -> None:
        if position == self.receiver.next:
            self._stack.counters[Cell.TCP_RESETS_RECEIVED] += 1
            self._close(CloseReason.RESET)
        elif self.state is not State.DIALING:
            self._challenge(now)  # RFC 5961 3.2: in the window is not enough

    def _note_heard(self, position: int, options: Options, now: float) -> None:
        self._heard_at = now
        self._unanswered = 0
        receiver = self.receiver
        if options.timestamps is not None and self._timestamps and position <= receiver.acked:
            receiver.ts_recent = options.timestamps[0]  # RFC 7323 4.3 (2)

    def _is_ack_valid(self, ack: int, now: float) -> bool:
        sender = self.sender
        position = unwrap(ack, sender.una)
        if self.state is State.SYN_RECEIVED:
            if position != sender.una:
                self._stack.reset(self.key, seq=ack, ack=None)
                return False
            self._establish(now)
        elif not sender.una - sender.max_window <= position <= sender.next:
            self._stack.counters[Cell.DROP_OUT_OF_WINDOW] += 1
            self._challenge(now)  # RFC 5961 5.2
            return False
        return True

    def _establish(self, now: float) -> None:
        self._set_state(Event.SYN_ACKED)
        self._stack.established(self)
        sender = self.sender
        if not self._syn_retries:
            sender.rtt.sample(max(now - self._challenged_at, 0.0))  # time of the SYN-ACK, see _send_syn_ack
        self._challenged_at = -math.inf
        sender.retransmit_at = math.inf
        self._wake_when_silent()

    def _process_ack(
        self, ack: int, window: int, position: int, length: int, now: float, blocks: list[tuple[int, int]] | None = None
    ) -> None:
        """The ACK, window and SACK blocks of an acceptable segment at `position`, `length` long; then send what they allow."""
        sender = self.sender
        advances = ack > sender.una
        if advances:
            sender.acknowledge(ack, now)
        elif ack < sender.una:
            return
        elif not length and not blocks and window == sender.window and sender.in_flight:
            sender.duplicate_ack()
        if window != sender.window and (
            advances
            or position > self._window_position
            or (position == self._window_position and window > sender.window)
        ):
            sender.update_window(window)
        self._window_position = position
        if blocks:
            sender.selectively_acknowledge(blocks, now)
        if blocks or sender.has_work:
            self._send_pending(now)
        else:
            self._arm(sender.retransmit_at)
        if advances and self._shutdown and sender.fin_acked and self.state in _FIN_IS_OUT:
            self._set_state(Event.FIN_ACKED)
        if self._starved and sender.buffer.has_room():
            self._starved = False
            self.handler.on_send_space()

    def _process_text(
        self, data: memoryview, position: int, now: float, *, fin: bool = False, pushed: bool = True
    ) -> None:
        """Text and FIN at `position`, in a state that hears them (RFC 9293 3.10.7.4, steps 7 and 8)."""
        receiver = self.receiver
        if not data and not fin:
            return
        if fin and receiver.fin_at is None and position + len(data) <= receiver.edge:
            receiver.fin_at = position + len(data)
        # Nothing beyond the window, nor beyond the FIN, nor twice.
        last = receiver.edge if receiver.fin_at is None else min(receiver.edge, receiver.fin_at)
        skip = max(receiver.next - position, 0)
        data = data[skip : max(last - position, skip)]
        in_order = position <= receiver.next
        if not in_order or not data or skip or receiver.out_of_order or fin or not pushed or len(data) > receiver.mss:
            self._ack_now = True
        self._want_ack()
        if data and not in_order:
            held = receiver.out_of_order
            receiver.store(position, data)
            self._stack.counters[Cell.BUFFER_BYTES] += receiver.out_of_order - held
        elif data:
            self._deliver(data)
            self._deliver_stored()
        if receiver.next == receiver.fin_at and self.state in _HEARS_TEXT:
            receiver.next += 1
            self._set_state(Event.FIN_RECEIVED)
            self._wake_when_silent()
            self._tell_eof()
        elif self.state is State.ESTABLISHED:
            self._predict()

    def _deliver_stored(self) -> None:
        """A gap has been filled, perhaps: hand on the ranges that are in order now."""
        receiver = self.receiver
        held = receiver.out_of_order
        while self.state in _HEARS_TEXT and (ready := receiver.pop_ready()) is not None:
            self._stack.counters[Cell.BUFFER_BYTES] -= held - receiver.out_of_order
            held = receiver.out_of_order
            self._deliver(memoryview(ready))

    def _deliver(self, data: memoryview) -> None:
        """Hand in-order text on, unless earlier text still waits for the upstream."""
        receiver = self.receiver
        receiver.next += len(data)
        taken = 0 if receiver.backlog else self.handler.on_data(data)
        if taken < len(data):
            self._keep(data[taken:])

    def _keep(self, data: memoryview) -> None:
        if self.state is State.CLOSED:
            return  # the handler aborted it
        self.receiver.backlog += data
        self._stack.counters[Cell.BUFFER_BYTES] += len(data)
        self._predicted = 0

    def _tell_eof(self) -> None:
        if self.receiver.backlog or self._eof_told or self.receiver.fin_at is None:
            return
        if self.receiver.next > self.receiver.fin_at:
            self._eof_told = True
            self.handler.on_eof()
            self._tell_finished()

    def _predict(self) -> None:
        receiver = self.receiver
        ready = self.state is State.ESTABLISHED and not receiver.backlog and not receiver.out_of_order
        self._predicted = (self._header_length // 4 << 12 | ACK) if ready else 0

    def too_big(self, mtu: int, quoted_seq: int, now: float) -> None:
        """ICMP says that a segment of ours did not fit a link of `mtu` bytes (RFC 1191, RFC 8201, checks of RFC 5927 4)."""
        sender = self.sender
        position = unwrap(quoted_seq, sender.una)
        if self.state in _HALF_OPEN or not sender.una <= position < sender.next:
            return
        mss = max(mtu, MTU_MIN[self.version]) - (20 if self.version == 4 else 40) - self._header_length
        if mss >= sender.mss:
            return
        sender.set_mss(mss, _whole_segments(mss) if self._stack.config.offload else mss)
        self._header.set_mss(mss)
        self._send_pending(now)

    # leaving segments

    def _send_pending(self, now: float) -> None:
        """Send what the windows allow, and set the timer for what remains."""
        if self.state in _HALF_OPEN or self.state is State.CLOSED:
            return  # data of an upstream that speaks first waits for the handshake
        sender = self.sender
        while sender.has_work and (segment := sender.next_segment(now)) is not None:
            self._emit(segment, now)
        if sender.retransmit_at == math.inf and sender.has_unsent:
            sender.retransmit_at = now + sender.rtt.timeout  # nothing in flight: probe the window (RFC 9293 3.8.6.1)
        self._arm(min(sender.retransmit_at, sender.reorder_at))

    def _emit(self, segment: Segment, now: float) -> None:
        sender, receiver = self.sender, self.receiver
        start, end = segment.start, segment.end
        last = sender.buffer.end
        flags = ACK
        if end >= last:
            flags = ACK | PSH
            if end > last:
                end = last
                flags = ACK | PSH | FIN
                if self.state in _SENDS_TEXT:
                    self._set_state(Event.FIN_SENT)
        if segment.retransmitted:
            self._stack.counters[Cell.TCP_RETRANSMITS] += 1
        size = end - start
        views = sender.buffer.views(start, end) if size else []
        stamp = (int(now * 1000) + self._ts_offset) & MASK
        head = self._header.pack(size, start, receiver.next, flags, receiver.window_field(), stamp, receiver.ts_recent)
        self._acked()
        self._transmit(head, views)

    def _transmit(self, head: bytes, views: list[Buffer]) -> None:
        stack = self._stack
        if not stack.config.offload:
            head = self._header.complete(head, views)
        stack.transmit((head, *views))

    def _send_ack(self, now: float, seq: int | None = None) -> None:
        """Send an ACK with SACK blocks; `seq` is SND.NXT, but in a probe."""
        receiver = self.receiver
        if seq is None:
            seq = self.sender.next
        stamp = (int(now * 1000) + self._ts_offset) & MASK
        window = receiver.window_field()
        if receiver.out_of_order and self.sender.sack:
            options = tcp.timestamp_option(stamp, receiver.ts_recent) if self._timestamps else b""
            options += tcp.sack_option(receiver.sack_blocks())
            self._send_control(seq, ACK, window, options)
        else:
            self._transmit(self._header.pack(0, seq, receiver.next, ACK, window, stamp, receiver.ts_recent), [])
        self._acked()

    def _send_control(self, seq: int, flags: int, window: int, options: bytes) -> None:
        packet = tcp.build(
            self.version, self.destination, self.destination_port, self.source, self.source_port,
            seq=seq & MASK, ack=self.receiver.next & MASK, flags=flags, window=window, options=options,
        )  # fmt: skip
        self._stack.transmit((packet,))

    def _send_syn_ack(self, now: float) -> None:
        stack, receiver, offered = self._stack, self.receiver, self._options
        scale = None
        if offered.window_scale is not None:
            scale = max(receiver.limit.bit_length() - 16, 0)
        receiver.use_scale(scale or 0)
        stamp = (int(now * 1000) + self._ts_offset) & MASK
        options = Options(
            mss=stack.mss[self.version],
            window_scale=scale,
            sack_permitted=offered.sack_permitted,
            timestamps=(stamp, receiver.ts_recent) if self._timestamps else None,
        )
        self._challenged_at = now  # no challenge is due yet; _establish measures the round trip from it
        window = min(receiver.edge - receiver.next, 0xFFFF)  # not scaled in a SYN (RFC 7323 2.2)
        self._send_control(self._iss, SYN | ACK, window, tcp.syn_options(options))
        self.sender.retransmit_at = now + RTO_INITIAL * (1 << self._syn_retries)
        self._arm(self.sender.retransmit_at)

    def _challenge(self, now: float) -> None:
        """An ACK that tells an honest end where we are, and a blind attacker nothing (RFC 5961)."""
        if self.state in _HALF_OPEN or now - self._challenged_at < CHALLENGE_INTERVAL:
            self._stack.counters[Cell.DROP_RATE_LIMIT] += 1
            return
        self._challenged_at = now
        self._stack.counters[Cell.TCP_CHALLENGE_ACKS] += 1
        self._send_ack(now)

    def _acked(self) -> None:
        """A segment has told all there is to acknowledge."""
        self.receiver.acked = self.receiver.next
        self._ack_at = math.inf
        self._ack_now = False

    def _want_ack(self) -> None:
        """Have flush decide on an ACK when the batch is over."""
        if not self.ack_queued:
            self.ack_queued = True
            self._stack.ack_pending.append(self)

    def flush(self, now: float) -> None:
        """The batch is over: send the ACK that is due, or delay it, or nothing if data took it along."""
        self.ack_queued = False
        if self.state is State.CLOSED:
            return
        receiver = self.receiver
        unacked = receiver.next - receiver.acked
        if self._ack_now or unacked >= min(2 * receiver.mss, ACK_EVERY_MAX) or (unacked and self._quick_acks):
            self._quick_acks -= self._quick_acks > 0
            self._send_ack(now)
        elif unacked and self._ack_at == math.inf:
            self._ack_at = now + DELAYED_ACK
            self._arm(self._ack_at)

    # timers

    def _arm(self, at: float) -> None:
        timer = self.timer
        if timer is None or at < timer[0]:
            self._stack.timers.arm(self, at)

    def on_timer(self, now: float) -> float:
        """Act on every deadline that is due; return the next one."""
        sender = self.sender
        if self._ack_at <= now:
            self._quick_acks = QUICK_ACKS
            self._send_ack(now)
        if sender.reorder_at <= now:
            sender.detect_losses(now)
            self._send_pending(now)
        if sender.retransmit_at <= now:
            self._on_retransmit(now)
        if self._silent_at <= now:
            self._on_silence(now)
        return min(self._ack_at, sender.reorder_at, sender.retransmit_at, self._silent_at)

    def _on_retransmit(self, now: float) -> None:
        sender = self.sender
        if self.state is State.SYN_RECEIVED:
            if self._syn_retries == SYN_ACK_RETRIES:
                self.end(CloseReason.TIMEOUT, now)
                return
            self._syn_retries += 1
            self._stack.counters[Cell.TCP_RETRANSMITS] += 1
            self._send_syn_ack(now)
        elif not sender.in_flight:
            self._probe_window(now)
        elif sender.tail_probe:
            if (segment := sender.probe(now)) is not None:
                self._emit(segment, now)
        elif now - sender.stalled_since >= GIVE_UP:
            self.end(CloseReason.TIMEOUT, now)
        else:
            sender.time_out(now)
            self._send_pending(now)

    def _probe_window(self, now: float) -> None:
        """Data waits for a window of 0, or for one too small to be used (RFC 9293 3.8.6.1, 3.8.6.2.1)."""
        sender = self.sender
        sender.retransmit_at = math.inf
        if not sender.has_unsent:
            return
        if now - self._heard_at >= GIVE_UP:
            self.end(CloseReason.TIMEOUT, now)
        elif (segment := sender.next_segment(now, override=True)) is not None:
            self._emit(segment, now)
        else:
            # An old byte's number makes the application answer with its window, and needs no byte beyond it (as Linux).
            self._send_ack(now, seq=sender.una - 1)
            sender.rtt.back_off()
            sender.retransmit_at = now + sender.rtt.timeout

    def _wake_when_silent(self) -> None:
        """Set the deadline of silence for the present state."""
        if self.state in _HALF_CLOSED:
            self._silent_at = self._heard_at + self._stack.config.half_close_timeout
        elif self.state is State.TIME_WAIT:
            self._silent_at = self._stack.now + TIME_WAIT
        else:
            self._silent_at = self._heard_at + self._stack.config.keepalive_idle
        self._arm(self._silent_at)

    def _on_silence(self, now: float) -> None:
        config = self._stack.config
        if self.state is State.TIME_WAIT:
            self._silent_at = math.inf
            self._stack.forget(self)
            self._set_state(Event.ABORT)
            if not self._eof_told:
                self._wake_when_silent()  # the upstream has not taken everything yet
        elif self.state in _HALF_CLOSED:
            self._silent_at = self._heard_at + config.half_close_timeout
            if self._silent_at <= now:
                self.end(CloseReason.TIMEOUT, now)
        elif self._heard_at + config.keepalive_idle > now:
            self._unanswered = 0
            self._silent_at = self._heard_at + config.keepalive_idle
        elif self._unanswered == KEEPALIVE_PROBES:
            self.end(CloseReason.TIMEOUT, now)
        else:
            self._unanswered += 1
            self._silent_at = now + KEEPALIVE_INTERVAL
            self._send_ack(now, seq=self.sender.una - 1)

    # the end

    def _set_state(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._predict()
        if self.state is State.TIME_WAIT:
            self._stack.wait(self)
            self._release()
            self._wake_when_silent()
            self._tell_finished()
        elif self.state is State.FIN_WAIT_2:
            self._wake_when_silent()
        elif self.state is State.CLOSED and event is Event.FIN_ACKED:
            self._stack.forget(self)
            self._release()
            if not self._eof_told:
                self._wake_when_silent()
            self._tell_finished()

    def _release(self) -> None:
        """Both directions are done on the wire: what is left is text that the upstream has not taken."""
        self.sender.clear()
        self._starved = False
        self._ack_at = math.inf

    def _tell_finished(self) -> None:
        """on_closed(FINISHED), when the wire is done and the handler has had everything."""
        if self._eof_told and self.state in (State.TIME_WAIT, State.CLOSED):
            handler, self.handler = self.handler, _SILENCE
            handler.on_closed(CloseReason.FINISHED)
            if self.state is State.CLOSED:
                self._silent_at = math.inf
                self._stack.timers.cancel(self)

    def _close(self, reason: CloseReason) -> None:
        """The connection is gone, now."""
        if self.state is State.CLOSED and self.handler is _SILENCE:
            return
        self.state = TRANSITIONS[self.state, Event.ABORT]
        self._predicted = 0
        stack = self._stack
        stack.counters[Cell.BUFFER_BYTES] -= len(self.receiver.backlog) + self.receiver.out_of_order
        self.receiver.clear()
        self._release()
        self._ack_now = False
        self._silent_at = math.inf
        stack.timers.cancel(self)
        stack.forget(self)
        handler, self.handler = self.handler, _SILENCE
        handler.on_closed(reason)


def _whole_segments(mss: int) -> int:
    """Return the bytes of the largest payload of whole segments that fits an IP packet and a chunk."""
    largest = min(SEGMENT_MAX, CHUNK_SIZES[-1])
    return largest - largest % mss if mss <= largest else largest
