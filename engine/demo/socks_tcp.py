"""The data of a CONNECT: two sockets joined, with half-close, resets passed on, and back-pressure by not reading.

splice(2) was tried in place of recv and send: with pipes of 256 KiB it costs the same CPU per byte, with pipes of 1 MiB a
fifth less, and no more bytes per second; not worth a pipe per direction, when ten thousand sessions are held.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

__all__ = ["BUFFER_SIZE", "Joint", "close_with_reset"]

BUFFER_SIZE = 256 * 1024
"""Bytes per read; what a socket holds beyond it waits there."""

_LINGER_RESET = struct.pack("ii", 1, 0)  # close sends RST (tcp(7), SO_LINGER)


def close_with_reset(sock: socket.socket) -> None:
    """Close so that the peer sees RST, not FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


class Joint:
    """Two connected non-blocking sockets, relayed until both directions have ended. Takes the sockets over.

    `buffer` (BUFFER_SIZE bytes) may be shared by all joints of a loop: it is empty again when a callback returns.
    `on_closed` is called once, after both sockets have been closed.
    """

    __slots__ = ("_directions", "_on_closed")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        target: socket.socket,
        buffer: memoryview,
        on_closed: Callable[["Joint"], None],
    ) -> None:
        self._on_closed = on_closed
        self._directions = (
            _Direction(loop, client, target, buffer, self),
            _Direction(loop, target, client, buffer, self),
        )

    def start(self, early: bytes) -> None:
        """Relay; `early` is what the client sent ahead of the reply."""
        for direction in self._directions:
            direction.start()
        if early:
            self._directions[0].send(memoryview(early))

    def reset(self) -> None:
        """Close both sockets with RST; also when either fails."""
        for direction in self._directions:
            direction.stop()
        for direction in self._directions:
            close_with_reset(direction.source)
        self._on_closed(self)

    def direction_ended(self) -> None:
        """One direction has passed its end of file on; close when both have."""
        if all(direction.ended for direction in self._directions):
            for direction in self._directions:
                direction.source.close()
            self._on_closed(self)


class _Direction:
    """From one socket to the other: read, send, and wait for whichever is not ready."""

    __slots__ = ("_buffer", "_joint", "_loop", "_recv_into", "_send", "_sink", "_unsent", "ended", "source")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        sink: socket.socket,
        buffer: memoryview,
        joint: Joint,
    ) -> None:
        self._loop = loop
        self.source = source
        self._sink = sink
        self._buffer = buffer
        self._joint = joint
        self._recv_into = source.recv_into
        self._send = sink.send
        self._unsent = memoryview(b"")
        self.ended = False

    def start(self) -> None:
        self._loop.add_reader(self.source.fileno(), self._on_readable)

    def stop(self) -> None:
        self._loop.remove_reader(self.source.fileno())
        self._loop.remove_writer(self._sink.fileno())

    def send(self, data: memoryview) -> None:
        """Send `data`; copy what the sink does not take, and read no more until it is gone."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._joint.reset()
            return
        if sent < len(data):
            self._unsent = memoryview(bytes(data[sent:]))
            self._loop.remove_reader(self.source.fileno())
            self._loop.add_writer(self._sink.fileno(), self._on_writable)

    def _on_readable(self) -> None:
        buffer = self._buffer
        try:
            received = self._recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self._joint.reset()
            return
        if received:
            self.send(buffer[:received])
        else:
            self._end()

    def _on_writable(self) -> None:
        try:
            self._unsent = self._unsent[self._send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._joint.reset()
            return
        if not self._unsent:
            self._loop.remove_writer(self._sink.fileno())
            self.start()

    def _end(self) -> None:
        self._loop.remove_reader(self.source.fileno())
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._joint.reset()
            return
        self.ended = True
        self._joint.direction_ended()
