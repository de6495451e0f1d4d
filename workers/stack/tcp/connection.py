"""One TCP connection with an application, the passive side of RFC 9293.

    arriving   process: header prediction, else _process_any in the order of RFC 9293 3.10.7.4 -> handler
    leaving    relay: send_buffer, commit -> _send_pending -> Sender.next_segment -> Output -> Transmit
    ACKs       marked while a batch of packets is processed, sent by flush, at most one per batch
    timers     on_timer: delayed ACK, retransmission or window probe, silence (keep-alive, half-closed, TIME-WAIT)

Positions are unwrapped sequence numbers (seqnum.py), times monotonic seconds, sizes bytes.
"""

import math
from typing import TYPE_CHECKING

from shared.metrics import Cell
from shared.wire import tcp
from shared.wire.tcp import ACK, FIN, PSH, RST, SYN, TIMESTAMP, TIMESTAMP_LAYOUT, Options
from workers.stack import CloseReason, Refusal, TcpHandler
from workers.stack.tcp.buffer import SendBuffer
from workers.stack.tcp.flight import Segment
from workers.stack.tcp.mss import largest_payload, mss_of_path, mss_of_syn
from workers.stack.tcp.nobody import NOBODY
from workers.stack.tcp.output import Output
from workers.stack.tcp.receiver import Receiver
from workers.stack.tcp.rtt import RTO_INITIAL
from workers.stack.tcp.sender import Sender
from workers.stack.tcp.seqnum import HALF, MASK, is_before, unwrap
from workers.stack.tcp.silence import HALF_CLOSED, Silence, Verdict
from workers.stack.tcp.states import TRANSITIONS, Event, State
from workers.stack.timers import Entry

if TYPE_CHECKING:
    from workers.stack.stack import Stack

__all__ = ["TcpConnection"]

DELAYED_ACK = 0.04  # seconds a lone segment's ACK waits for data to ride on; RFC 9293 3.8.6.3 allows 0.5
ACK_EVERY_MAX = 4096  # bytes after which an ACK goes out with the batch, however large the MSS: more is not a request
QUICK_ACKS = 16  # ACKs not delayed after a delay was in vain: the application waits for ACKs, not for answers
GIVE_UP = 120.0  # seconds of retransmission in vain; RFC 9293 3.8.3 R2 asks for at least 100
CHALLENGE_INTERVAL = 0.5  # seconds between challenge ACKs (RFC 5961 7), of a connection (CVE-2016-5696)
PAWS_VALID = 24 * 86400.0  # seconds after which TS.Recent is out of date (RFC 7323 5.5)

_HEARS_TEXT = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})
_SENDS_TEXT = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})
_FIN_IS_OUT = frozenset({State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
_HALF_OPEN = frozenset({State.DIALING, State.SYN_RECEIVED})
_WIRE_IS_DONE = frozenset({State.TIME_WAIT, State.CLOSED})
_NOT_PSH = 0xFFFF & ~PSH


class TcpConnection:
    """One flow. `source` is the application, `destination` what it connects to.

    The relay sets `handler` when Stack calls on_syn with a connection in state DIALING, and decides: accept or refuse.
    """

    __slots__ = (
        "_challenged_at", "_eof_told", "_header_length", "_heard_at", "_irs", "_local", "_offers_scale", "_output", "_predicted",
        "_quick_acks", "_shutdown", "_silence", "_stack", "_starved", "_syn", "_syn_ack_at", "_syn_retries",
        "_timestamps", "_window_position", "_window_scale", "ack_queued", "destination",
        "destination_port", "handler", "key", "receiver", "sender", "source", "source_port", "state", "timer", "version",
    )  # fmt: skip

    def __init__(
        self, stack: "Stack", key: bytes, irs: int, iss: int, ts_offset: int, options: Options, window: int, syn: bytes,
        *, local: bool,
    ) -> None:  # fmt: skip
        """A SYN with sequence number `irs`, `options` and `window` has come from `key`; `syn` is its IP packet, to quote.

        `local`: it was sent by this machine.
        """
        config = stack.config
        size = len(key) // 2 - 2
        self.version = version = 4 if size == 4 else 6
        self.key = key
        self.source, self.destination = key[:size], key[size : 2 * size]
        self.source_port = int.from_bytes(key[-4:-2], "big")
        self.destination_port = int.from_bytes(key[-2:], "big")
        self.handler: TcpHandler = NOBODY
        self.state = State.DIALING
        self.timer: Entry | None = None
        self.ack_queued = False
        self._stack = stack
        self._syn, self._irs, self._local = syn, irs, local
        self._timestamps = timestamps = options.timestamps is not None
        self._header_length = 32 if timestamps else 20
        self._offers_scale = options.window_scale is not None
        self._window_scale = options.window_scale or 0
        own_mss = stack.mss[version]
        self.receiver = Receiver(irs + 1, config.receive_buffer, own_mss, stack.chunks, scales=self._offers_scale)
        if options.timestamps is not None:
            self.receiver.ts_recent = options.timestamps[0]
        mss = mss_of_syn(version, options.mss, own_mss, timestamps=timestamps)
        largest = largest_payload(version, mss)
        buffer = SendBuffer(stack.chunks, iss + 1, config.send_buffer, largest)
        self.sender = Sender(buffer, mss, largest if config.offload else mss, window, sack=options.sack_permitted)
        self._output = Output(
            stack.transmit, key, self.sender, self.receiver,
            ts_offset=ts_offset if timestamps else None, offload=config.offload,
        )  # fmt: skip
        self._predicted = 0  # the offset and flags of the segment that header prediction takes; 0: none
        self._window_position = irs  # SND.WL1
        self._silence = Silence(config)
        self._shutdown = self._starved = self._eof_told = False
        self._quick_acks = self._syn_retries = 0
        self._syn_ack_at = self._challenged_at = -math.inf
        self._heard_at = stack.now

    def __repr__(self) -> str:
        return f"<TcpConnection {self.key.hex()} {self.state.name}>"

    # the relay's calls

    def accept(self, now: float) -> None:
        """The upstream is connected: answer the SYN. Nothing happens to a connection that is gone meanwhile."""
        if self.state is State.DIALING:
            self._syn = b""
            self._set_state(Event.ACCEPT)
            self._stack.answered(self)
            self._send_syn_ack(now)

    def refuse(self, refusal: Refusal, now: float) -> None:
        """The upstream cannot be reached: RST, or an ICMP error that quotes the SYN. Ends with on_closed(ABORTED)."""
        if self.state is not State.DIALING:
            return
        if refusal.value is None:
            self._stack.reset(self.key, seq=0, ack=self._irs + 1)
        else:
            self._stack.icmp.send_error(refusal, self.version, self.destination, self.source, self._syn, now)
        self._close(CloseReason.ABORTED)

    def resume(self, now: float) -> None:
        """The upstream can be written again: offer the backlog until it takes less than it is offered."""
        receiver = self.receiver
        while receiver.backlog:
            with memoryview(receiver.backlog) as view:
                offered = len(view)
                taken = self.handler.on_data(view)
            if not receiver.backlog:
                return  # the handler aborted the connection
            self._stack.counters[Cell.BUFFER_BYTES] -= taken
            del receiver.backlog[:taken]
            if taken < offered:
                break
        if self.state in _HEARS_TEXT:
            if receiver.may_open_window():
                self._output.ack(now)
            self._predict()
        self._tell_eof()

    def send_buffer(self) -> memoryview | None:
        """Return a writable view for data to the application; None when the buffer is full (on_send_space will follow).

        The same place is returned until `commit`.
        """
        if self._shutdown or self.state is State.CLOSED:
            return None
        space = self.sender.buffer.space()
        self._starved = space is None
        return space

    def commit(self, length: int, now: float) -> None:
        """The first `length` bytes of the view are stream data: send what the windows allow. 0 gives the view back."""
        if self.state is not State.CLOSED:
            self.sender.buffer.commit(length)
            if length:
                self._send_pending(now)

    def shutdown(self, now: float) -> None:
        """No more data follows: FIN after what is buffered."""
        if not self._shutdown and self.state is not State.CLOSED:
            self._shutdown = self.sender.fin = True
            self._send_pending(now)

    def abort(self, now: float) -> None:
        """Reset the connection. Ends with on_closed(ABORTED)."""
        self.end(CloseReason.ABORTED, now)

    # the stack's calls, beside process, flush and on_timer

    def end(self, reason: CloseReason, now: float) -> None:
        """Reset the connection for any reason."""
        if self.state is State.DIALING:
            self._stack.reset(self.key, seq=0, ack=self._irs + 1)
        elif self.state not in _WIRE_IS_DONE:
            self._stack.reset(self.key, seq=self.sender.next, ack=self.receiver.next)
        self._close(reason)

    def evict(self) -> None:
        """Forget the connection without a word to the application. Ends with on_closed(EVICTED)."""
        self._close(CloseReason.EVICTED)

    def too_big(self, mtu: int, quoted_seq: int, now: float) -> None:
        """ICMP says that a segment of ours did not fit a link of `mtu` bytes (RFC 1191, RFC 8201, checks of RFC 5927 4)."""
        sender = self.sender
        if self.state in _HALF_OPEN or not sender.una <= unwrap(quoted_seq, sender.una) < sender.next:
            self._stack.counters[Cell.DROP_OUT_OF_WINDOW] += 1
            return
        mss = mss_of_path(self.version, mtu, timestamps=self._timestamps)
        if mss < sender.mss:
            sender.set_mss(mss, largest_payload(self.version, mss) if self._stack.config.offload else mss)
            self._output.set_mss(mss)
            self._send_pending(now)

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
            self._process_any(packet, start, end, seq, ack, offset_flags, window, now)
            return
        if self._timestamps:
            layout, value, _ = TIMESTAMP.unpack_from(packet, start + 20)
            if layout != TIMESTAMP_LAYOUT or (value - receiver.ts_recent) & MASK >= HALF:
                self._process_any(packet, start, end, seq, ack, offset_flags, window, now)
                return
            if receiver.acked == receiver.next:
                receiver.ts_recent = value
        self._heard_at = now
        window <<= self._window_scale
        if acked or not size or window != sender.window:
            self._process_ack(sender.una + acked, window, receiver.next, size, now)
            if not self._predicted:  # the handler did something in on_send_space
                if size and self.state in _HEARS_TEXT:
                    self._process_text(packet[at:end], receiver.next)
                return
        if size:
            receiver.next += size
            if size > receiver.mss or not offset_flags & PSH:
                receiver.ack_now = True  # its sender has more, and waits for its window to grow
            if not self.ack_queued:
                self.ack_queued = True
                self._stack.ack_pending.append(self)
            taken = self.handler.on_data(packet[at:end])
            if taken < size:
                self._keep(packet[at + taken : end])

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
            self._challenge(now)  # RFC 5961 4.2
            return
        if not flags & ACK or self.state is State.DIALING:
            self._stack.counters[Cell.DROP_STALE] += 1
            return
        self._heard_at = now
        self.receiver.note_timestamps(position, options.timestamps)
        if not self._is_ack_valid(ack, now):
            return
        una = self.sender.una
        blocks = [(unwrap(left, una), unwrap(right, una)) for left, right in options.sack]
        self._process_ack(unwrap(ack, una), window << self._window_scale, position, length, now, blocks)
        if self.state in _HEARS_TEXT and length:
            self._process_text(packet[at:end], position, fin=bool(flags & FIN), pushed=bool(flags & PSH))

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
            self._close(CloseReason.FINISHED)
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
        is_fresh = True
        if self._timestamps and not flags & RST:
            if options.timestamps is None:
                self._stack.counters[Cell.DROP_MALFORMED] += 1  # RFC 7323 3.2: drop in silence
                return False
            is_old = is_before(options.timestamps[0], receiver.ts_recent)
            # A pure ACK that was overtaken does no harm, and may carry SACK blocks (as Linux, tcp_disordered_ack).
            is_overtaken = not length and position == receiver.next
            is_fresh = not is_old or is_overtaken or now - self._heard_at > PAWS_VALID
        if is_fresh and receiver.is_inside(position, length):
            return True
        self._stack.counters[Cell.DROP_OUT_OF_WINDOW] += 1
        if flags & RST or self.state is State.DIALING:
            return False
        if self.state is State.TIME_WAIT:
            self._listen_for_silence()  # its FIN again: our ACK was lost
        if flags & SYN or not length:
            self._challenge(now)  # rate-limited: two ends that disagree must not ACK each other for ever
        else:
            if position + length <= receiver.next:
                receiver.duplicate = (position, position + length)
            self._output.ack(now)
        return False

    def _process_reset(self, position: int, now: float) -> None:
        if self.state is State.TIME_WAIT:
            # An old duplicate makes an end that has forgotten the connection send one (RFC 1337): the upstream may not have
            # taken all yet of what was acknowledged.
            self._stack.counters[Cell.DROP_STALE] += 1
        elif position == self.receiver.next:
            self._stack.counters[Cell.TCP_RESETS_RECEIVED] += 1
            self._close(CloseReason.RESET)
        elif self.state is not State.DIALING:
            self._challenge(now)  # RFC 5961 3.2: in the window is not enough

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
        self.sender.open(None if self._syn_retries else now - self._syn_ack_at, now, local=self._local)
        self._listen_for_silence()

    def _process_ack(
        self, ack: int, window: int, position: int, length: int, now: float, blocks: list[tuple[int, int]] | None = None
    ) -> None:
        """The ACK, window and SACK blocks of an acceptable segment at `position`, `length` long; then send what they allow."""
        sender = self.sender
        advances = ack > sender.una
        if advances:
            sender.acknowledge(ack, now)
        elif ack < sender.una:
            if blocks:
                sender.selectively_acknowledge(blocks, ack, now)  # overtaken, but it may tell of what came twice
            return
        elif not length and window == sender.window and sender.in_flight:
            sender.duplicate_ack()
        if advances or position >= self._window_position:
            self._window_position = position
            if window != sender.window:
                sender.update_window(window)
        if blocks:
            sender.selectively_acknowledge(blocks, ack, now)
        if sender.has_work:
            self._send_pending(now)
        else:
            self._arm(min(sender.retransmit_at, sender.reorder_at))
        if advances and self._shutdown and sender.fin_acked and self.state in _FIN_IS_OUT:
            self._set_state(Event.FIN_ACKED)
        if self._starved and sender.buffer.has_room():
            self._starved = False
            self.handler.on_send_space()

    def _process_text(self, data: memoryview, position: int, *, fin: bool = False, pushed: bool = True) -> None:
        """Text and FIN at `position`, in a state that hears them (RFC 9293 3.10.7.4, steps 7 and 8)."""
        receiver = self.receiver
        if fin:
            receiver.note_fin(position + len(data))
        # Nothing beyond the window, nor beyond the FIN, nor twice.
        last = receiver.edge if receiver.fin_at is None else min(receiver.edge, receiver.fin_at)
        skip = max(receiver.next - position, 0)
        if skip:
            receiver.duplicate = (position, min(receiver.next, position + len(data)))
        data = data[skip : max(last - position, skip)]
        in_order = position <= receiver.next
        if not in_order or not data or skip or receiver.out_of_order or fin or not pushed or len(data) > receiver.mss:
            receiver.ack_now = True  # RFC 5681 4.2: at once, when anything is out of the ordinary
        self._want_ack()
        if data and not in_order:
            stored = None if self._is_short(len(data)) else receiver.store(position, data)
            if stored is None:
                self._stack.counters[Cell.DROP_BUFFER_LIMIT] += 1
            else:
                self._stack.counters[Cell.BUFFER_BYTES] += stored
                # Each one at once, or its sender could not count them (RFC 5681 4.2, RFC 2883).
                self._output.ack(self._stack.now)
        elif data:
            self._deliver(data)
            while self.state in _HEARS_TEXT and (ready := receiver.pop_ready()) is not None:
                held, text = ready
                self._stack.counters[Cell.BUFFER_BYTES] -= held
                self._deliver(text)
        if receiver.next == receiver.fin_at and self.state in _HEARS_TEXT:
            receiver.next += 1
            self._set_state(Event.FIN_RECEIVED)
            self._tell_eof()
        else:
            self._predict()

    def _deliver(self, data: memoryview) -> None:
        """Hand in-order text on, unless earlier text still waits for the upstream."""
        receiver = self.receiver
        receiver.next += len(data)
        taken = 0 if receiver.backlog else self.handler.on_data(data)
        if taken < len(data):
            self._keep(data[taken:])

    def _keep(self, data: memoryview) -> None:
        """Hold in-order text that the upstream does not take; when memory is short, let it come again, promised or not."""
        receiver, size = self.receiver, len(data)
        if self.state is State.CLOSED:
            return  # the handler has aborted the connection
        if self._is_short(size) and receiver.acked <= receiver.next - size:
            receiver.next -= size
            self._stack.counters[Cell.DROP_BUFFER_LIMIT] += 1
            return
        receiver.backlog += data
        self._stack.counters[Cell.BUFFER_BYTES] += size
        self._predicted = 0

    def _is_short(self, size: int) -> bool:
        """Whether there is no memory for `size` more bytes of text."""
        return self._stack.chunks.is_short(len(self.receiver.backlog) + self.receiver.out_of_order + size)

    def _predict(self) -> None:
        is_plain = self.state is State.ESTABLISHED and self.receiver.is_plain
        self._predicted = (self._header_length // 4 << 12 | ACK) if is_plain else 0

    # leaving segments

    def _send_pending(self, now: float) -> None:
        """Send what the windows allow, and set the timer for what remains."""
        if self.state in _HALF_OPEN or self.state is State.CLOSED:
            return  # data of an upstream that speaks first waits for the handshake
        sender = self.sender
        while sender.has_work and (segment := sender.next_segment(now)) is not None:
            self._emit(segment, now)
        if sender.retransmit_at == sender.send_at and sender.has_unsent:  # both infinite
            sender.retransmit_at = now + sender.rtt.timeout  # nothing in flight: probe the window (RFC 9293 3.8.6.1)
        self._arm(min(sender.retransmit_at, sender.reorder_at, sender.send_at))

    def _emit(self, segment: Segment, now: float) -> None:
        if segment.retransmitted:
            self._stack.counters[Cell.TCP_RETRANSMITS] += 1
        if segment.end > self.sender.buffer.end and self.state in _SENDS_TEXT:
            self._set_state(Event.FIN_SENT)
        self._output.data(segment, now)

    def _send_syn_ack(self, now: float) -> None:
        self._syn_ack_at = now
        self._output.syn_ack(now, self._stack.mss[self.version], scales=self._offers_scale)
        self.sender.retransmit_at = now + RTO_INITIAL * (1 << self._syn_retries)
        self._arm(self.sender.retransmit_at)

    def _challenge(self, now: float) -> None:
        """An ACK that tells an honest end where we are, and a blind attacker nothing (RFC 5961)."""
        if self.state in _HALF_OPEN or now - self._challenged_at < CHALLENGE_INTERVAL:
            self._stack.counters[Cell.DROP_RATE_LIMIT] += 1
            return
        self._challenged_at = now
        self._stack.counters[Cell.TCP_CHALLENGE_ACKS] += 1
        self._output.ack(now)

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
        if receiver.ack_now or unacked >= min(2 * receiver.mss, ACK_EVERY_MAX) or (unacked and self._quick_acks):
            self._quick_acks -= self._quick_acks > 0
            self._output.ack(now)
        elif unacked and receiver.ack_at == math.inf:
            receiver.ack_at = now + DELAYED_ACK
            self._arm(receiver.ack_at)

    # timers

    def _arm(self, at: float) -> None:
        timer = self.timer
        if timer is None or at < timer[0]:
            self._stack.timers.arm(self, at)

    def on_timer(self, now: float) -> float:
        """Act on every deadline that is due; return the next one."""
        sender, receiver = self.sender, self.receiver
        if receiver.ack_at <= now:
            self._quick_acks = QUICK_ACKS
            self._output.ack(now)
        if sender.reorder_at <= now:
            sender.detect_losses(now)
            self._send_pending(now)
        if sender.send_at <= now:
            sender.send_at = math.inf
            self._send_pending(now)
        if sender.retransmit_at <= now:
            self._on_retransmit(now)
        if self._silence.at <= now:
            self._on_silence(now)
        return min(receiver.ack_at, sender.reorder_at, sender.send_at, sender.retransmit_at, self._silence.at)

    def _on_retransmit(self, now: float) -> None:
        sender = self.sender
        if self.state is State.SYN_RECEIVED:
            if self._syn_retries == self._stack.config.syn_ack_retries:
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
            self._output.ack(now, seq=sender.una - 1)
            sender.rtt.back_off()
            sender.retransmit_at = now + sender.rtt.timeout

    def _listen_for_silence(self) -> None:
        self._silence.listen(self.state, self._heard_at, self._stack.now)
        self._arm(self._silence.at)

    def _on_silence(self, now: float) -> None:
        match self._silence.act(self.state, self._heard_at, now):
            case Verdict.PROBE:
                self._output.ack(now, seq=self.sender.una - 1)
            case Verdict.GIVE_UP:
                self.end(CloseReason.TIMEOUT, now)
            case Verdict.FINISH:
                self._set_state(Event.ABORT)  # with text that the upstream has not taken, it waits on as half-closed

    # the end

    def _set_state(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._predict()
        if self.state is State.TIME_WAIT:
            self._stack.wait(self)
        elif self.state is State.CLOSED:
            self._stack.forget(self)
        elif self.state not in HALF_CLOSED:
            return
        if self.state in _WIRE_IS_DONE:
            self.sender.clear()
            self._starved = False
        if self.state is not State.CLOSED or not self._eof_told:
            self._listen_for_silence()
        self._tell_finished()

    def _tell_eof(self) -> None:
        receiver = self.receiver
        if (
            receiver.fin_at is not None
            and receiver.next > receiver.fin_at
            and not receiver.backlog
            and not self._eof_told
        ):
            self._eof_told = True
            self.handler.on_eof()
            self._tell_finished()

    def _tell_finished(self) -> None:
        """on_closed(FINISHED), when the wire is done and the handler has had everything."""
        if self._eof_told and self.state in _WIRE_IS_DONE:
            if self.state is State.CLOSED:
                self._silence.at = math.inf
                self._stack.timers.cancel(self)
            handler, self.handler = self.handler, NOBODY
            handler.on_closed(CloseReason.FINISHED)

    def _close(self, reason: CloseReason) -> None:
        """The connection is gone, now."""
        self.state = TRANSITIONS[self.state, Event.ABORT]
        self._predicted = 0
        self._starved = False
        self._silence.at = math.inf
        receiver, stack = self.receiver, self._stack
        stack.counters[Cell.BUFFER_BYTES] -= len(receiver.backlog) + receiver.out_of_order
        receiver.clear()
        self.sender.clear()
        stack.timers.cancel(self)
        stack.forget(self)
        handler, self.handler = self.handler, NOBODY
        handler.on_closed(reason)
