"""One TCP flow: bytes between a TcpConnection of the stack and a socket of an outbound.

    application -> outbound   on_data: one send straight from the packet; what the socket does not take stays in the stack and
                              is offered again by resume, once the socket is writable
    outbound -> application   _pump: recv_into the connection's send buffer, commit; while that buffer is full the socket is
                              not read, so the other side is held back by TCP itself

A FIN stays a FIN (each direction closes alone) and a reset stays a reset, both ways.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from time import monotonic

from workers.relay.facts import FlowFacts
from workers.stack import CloseReason, Refusal
from workers.stack.tcp.connection import TcpConnection
from workers.stack.tcp.states import State
from workers.upstream.sockets import round_trip_of

__all__ = ["TcpFlow"]

READS_PER_TURN = 4
"""Reads of one socket before other flows get their turn."""

_LINGER_RESET = struct.pack("ii", 1, 0)  # close sends RST and drops what is unsent (tcp(7), SO_LINGER)


class TcpFlow:
    """The relay's side of one connection (TcpHandler). `on_closed` of the constructor is called once, when it is over."""

    __slots__ = (
        "_commit",
        "_connection",
        "_down_from",
        "_fd",
        "_loop",
        "_on_closed",
        "_reader_added",
        "_recv_into",
        "_send",
        "_send_blocked",
        "_send_buffer",
        "_socket",
        "_starved",
        "_up_from",
        "_writer_added",
        "facts",
        "task",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: TcpConnection,
        facts: FlowFacts,
        on_closed: Callable[["TcpFlow"], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._on_closed = on_closed
        self._socket: socket.socket | None = None
        self._fd = -1
        self._reader_added = False
        self._writer_added = False
        self._send_blocked = False  # the socket took less than it was offered since the last resume
        self._starved = False  # reading waits for space in the send buffer
        self._up_from = connection.receiver.next
        self._down_from = connection.sender.buffer.end
        self.facts = facts
        self.task: asyncio.Task[None] | None = (
            None  # decides and dials; dropped when it is done, as thousands of flows idle for hours
        )

    @property
    def connection(self) -> TcpConnection:
        """The application's side."""
        return self._connection

    @property
    def state(self) -> str:
        """Of the application's side, as views name it."""
        return self._connection.state.name.lower()

    @property
    def is_dialing(self) -> bool:
        """Whether the application still waits for the answer to its SYN, or for a rule."""
        return self.task is not None

    @property
    def up(self) -> int:
        """Bytes that have come from the application."""
        receiver = self._connection.receiver
        has_fin = receiver.fin_at is not None and receiver.next > receiver.fin_at
        return receiver.next - self._up_from - has_fin

    @property
    def down(self) -> int:
        """Bytes that were put in the buffer to the application."""
        return self._connection.sender.buffer.end - self._down_from

    @property
    def rtt(self) -> float | None:
        """Seconds to the application and back; None while nothing was measured."""
        return self._connection.sender.rtt.smoothed or None

    @property
    def upstream_rtt(self) -> float | None:
        """Seconds to the other end of the outbound's connection and back, as the kernel has measured them."""
        return round_trip_of(self._socket) if self._socket is not None else None

    def start(self, sock: socket.socket) -> None:
        """The outbound has connected: answer the application's SYN and begin to relay. Takes over the socket."""
        self.task = None
        self._socket = sock
        self._fd = sock.fileno()
        # Bound once: looking a method up costs as much as some of these calls do.
        self._send = sock.send
        self._recv_into = sock.recv_into
        self._send_buffer = self._connection.send_buffer
        self._commit = self._connection.commit
        self._connection.accept(monotonic())
        self._add_reader()

    def refuse(self, refusal: Refusal) -> None:
        """The flow is not carried: tell the application why; once its handshake is complete, only a reset can."""
        self.task = None
        now = monotonic()
        if self._connection.state is State.DIALING:
            self._connection.refuse(refusal, now)
        elif self._connection.state is not State.CLOSED:
            self._connection.abort(now)

    def drop(self) -> None:
        """The flow is not carried, and the application is told nothing."""
        self.task = None
        if self._connection.state is not State.CLOSED:
            self._connection.evict()

    def abort(self) -> None:
        """Reset both sides."""
        self._connection.abort(monotonic())

    # application -> outbound

    def on_data(self, data: memoryview) -> int:
        """TcpHandler: send from where the packet lies."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._upstream_lost()
            return 0
        if sent < len(data):
            self._send_blocked = True
            if not self._writer_added:
                self._writer_added = True
                self._loop.add_writer(self._fd, self._on_writable)
        return sent

    def _on_writable(self) -> None:
        self._send_blocked = False
        self._connection.resume(monotonic())
        if not self._send_blocked and self._writer_added:
            self._writer_added = False
            self._loop.remove_writer(self._fd)

    def on_eof(self) -> None:
        """TcpHandler: pass the FIN on; the other direction goes on."""
        assert self._socket is not None, "end of file after the connection was accepted"
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._upstream_lost()

    # outbound -> application

    def _pump(self) -> None:
        """Move what the socket holds into the send buffer. Called when it is readable, and when space is free again."""
        now = monotonic()
        for _ in range(READS_PER_TURN):
            if self._socket is None:  # closed meanwhile
                return
            buffer = self._send_buffer()
            if buffer is None:
                self._starved = True
                self._remove_reader()
                return
            try:
                received = self._recv_into(buffer)
            except BlockingIOError:
                self._commit(0, now)  # thousands of idle flows shall hold no memory
                break
            except OSError:
                self.abort()
                return
            if not received:
                self._commit(0, now)
                self._remove_reader()
                self._connection.shutdown(now)
                return
            self._commit(received, now)
            if received < len(buffer):  # drained: no need to ask for EAGAIN
                break
        if not self._reader_added and self._socket is not None:
            self._add_reader()

    def on_send_space(self) -> None:
        """TcpHandler: read again, after the stack has processed the whole batch of acknowledgements.

        The reader is not registered again before the socket is found empty: as long as the application is the slower side,
        its acknowledgements alone drive the flow, without epoll.
        """
        if self._starved:
            self._starved = False
            self._loop.call_soon(self._pump)

    # the end

    def on_closed(self, reason: CloseReason) -> None:
        """TcpHandler: release the upstream."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        sock = self._socket
        if sock is not None:
            self._remove_reader()
            if self._writer_added:
                self._writer_added = False
                self._loop.remove_writer(self._fd)
            if reason is not CloseReason.FINISHED:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            sock.close()
            self._socket = None
        self._on_closed(self)

    def _upstream_lost(self) -> None:
        """A send failed, within a call from the stack: reset the application's side once the stack has returned."""
        # The error is reported once only: reading now would show a clean end of file instead of it.
        self._remove_reader()
        self._starved = False
        self._loop.call_soon(self._abort_lost)

    def _abort_lost(self) -> None:
        if self._socket is not None:
            self.abort()

    def _add_reader(self) -> None:
        self._reader_added = True
        self._loop.add_reader(self._fd, self._pump)

    def _remove_reader(self) -> None:
        if self._reader_added:
            self._reader_added = False
            self._loop.remove_reader(self._fd)
