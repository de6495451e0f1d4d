"""Segments leaving: puts the state of both halves of a connection into headers and hands them to the tun.

Every segment tells RCV.NXT and the window, so every one of them settles the ACK that was due.
"""

from shared.wire import tcp
from shared.wire.tcp import ACK, FIN, PSH, SYN, Options
from workers.stack import Transmit
from workers.stack.tcp.flight import Segment
from workers.stack.tcp.header import HeaderTemplate
from workers.stack.tcp.receiver import Receiver
from workers.stack.tcp.sender import Sender
from workers.stack.tcp.seqnum import MASK

__all__ = ["Output"]


class Output:
    """The segments of one connection. `key` is its flow key, as the application's packets have it."""

    __slots__ = (
        "_header", "_key", "_offload", "_receiver", "_sender", "_timestamps", "_transmit", "_ts_offset",
    )  # fmt: skip

    def __init__(
        self,
        transmit: Transmit,
        key: bytes,
        sender: Sender,
        receiver: Receiver,
        *,
        ts_offset: int | None,
        offload: bool,
    ) -> None:
        """`ts_offset`: what our timestamp clock began with (RFC 7323 7.1); None: no timestamps."""
        self._transmit = transmit
        self._key = key
        self._sender = sender
        self._receiver = receiver
        self._timestamps = ts_offset is not None
        self._ts_offset = ts_offset or 0
        self._offload = offload
        self._header = HeaderTemplate(key, mss=sender.mss, timestamps=self._timestamps, offload=offload)

    def set_mss(self, mss: int) -> None:
        """Let the kernel cut segments at `mss` bytes."""
        self._header.set_mss(mss)

    def data(self, segment: Segment, now: float) -> None:
        """Send a segment of the sender's buffer, with FIN when it reaches beyond it."""
        sender, receiver = self._sender, self._receiver
        start, end = segment.start, segment.end
        last = sender.buffer.end
        flags = ACK
        if end >= last:
            flags = ACK | PSH
            if end > last:
                flags = ACK | PSH | FIN
                end = last
        size = end - start
        views = sender.buffer.views(start, end) if size else []
        stamp = (int(now * 1000) + self._ts_offset) & MASK
        head = self._header.pack(size, start, receiver.next, flags, receiver.window_field(), stamp, receiver.ts_recent)
        receiver.settle_ack()
        if not self._offload:
            head = self._header.complete(head, views)
        self._transmit((head, *views))

    def ack(self, now: float, seq: int | None = None) -> None:
        """Send an ACK, with SACK blocks when text is missing or came twice; `seq` is SND.NXT, but in a probe."""
        receiver = self._receiver
        if seq is None:
            seq = self._sender.next
        stamp = (int(now * 1000) + self._ts_offset) & MASK
        window = receiver.window_field()
        receiver.settle_ack()
        if (receiver.out_of_order or receiver.duplicate) and self._sender.sack:
            options = tcp.timestamp_option(stamp, receiver.ts_recent) if self._timestamps else b""
            self._control(seq, ACK, window, options + tcp.sack_option(receiver.sack_blocks()))
            return
        head = self._header.pack(0, seq, receiver.next, ACK, window, stamp, receiver.ts_recent)
        if not self._offload:
            head = self._header.complete(head, [])
        self._transmit((head,))

    def syn_ack(self, now: float, mss: int, *, scales: bool) -> None:
        """Send the SYN-ACK: `mss` bytes and what the application offered; `scales`: it scales windows."""
        receiver = self._receiver
        stamp = (int(now * 1000) + self._ts_offset) & MASK
        options = Options(
            mss=mss,
            window_scale=receiver.scale if scales else None,
            sack_permitted=self._sender.sack,
            timestamps=(stamp, receiver.ts_recent) if self._timestamps else None,
        )
        window = min(receiver.edge - receiver.next, 0xFFFF)  # not scaled in a SYN (RFC 7323 2.2)
        self._control(self._sender.una - 1, SYN | ACK, window, tcp.syn_options(options))

    def _control(self, seq: int, flags: int, window: int, options: bytes) -> None:
        packet = tcp.build(
            tcp.reverse(self._key),
            seq=seq & MASK,
            ack=self._receiver.next & MASK,
            flags=flags,
            window=window,
            options=options,
        )
        self._transmit((packet,))
