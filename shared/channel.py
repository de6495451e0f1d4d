"""One end of the master <-> worker socket on an event loop: messages of shared/control.py, large ones in a file.

A message holds some 200 KB at most (SOCK_SEQPACKET), and a configuration with rule-sets has megabytes. What is larger than
INLINE_MAX travels as a sealed memfd (shared/system) over SCM_RIGHTS, beside a message of one byte. Only the master sends such:
a worker, which is not trusted, may not hand descriptors to root, and keeps its messages short.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from shared.control import FromMaster, FromWorker, Message, decode_from_master, decode_from_worker, encode
from shared.system import MessageSocket, sealed_file

__all__ = ["Channel", "channel_to_master", "channel_to_worker", "receive_from_master", "send_now"]

log = logging.getLogger(__name__)

INLINE_MAX = 32 * 1024
"""Bytes of a message that is sent as it is."""
QUEUE_MAX = 1024
"""Messages that wait for a full socket; beyond it they are dropped, and `send` says so."""
_IN_MEMFD = b"\0"  # no message begins so: they are maps (msgpack)

M = TypeVar("M")


def send_now(sock: MessageSocket, message: Message) -> None:
    """Send one message. Raises BlockingIOError when the socket is full, OSError when the other end is gone."""
    data = encode(message)
    if len(data) <= INLINE_MAX:
        sock.send(data)
        return
    fd = sealed_file(data)
    try:
        socket.send_fds(sock, [_IN_MEMFD], [fd])
    finally:
        os.close(fd)


def receive_from_master(sock: MessageSocket) -> FromMaster | None:
    """Receive one message; None when the master is gone. Raises BlockingIOError, OSError."""
    data, fds, _, _ = socket.recv_fds(sock, INLINE_MAX, 1)
    if fds:
        with open(fds[0], "rb") as file:
            data = file.read()
    return decode_from_master(data) if data else None


def _receive_from_worker(sock: MessageSocket) -> FromWorker | None:
    data = sock.recv(INLINE_MAX)  # descriptors that come along are closed by the kernel
    return decode_from_worker(data) if data else None


class Channel(Generic[M]):
    """Made by channel_to_master and channel_to_worker; takes over the socket.

    `on_end` is called once, when the other end is gone. A message that is none is logged and ignored.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: MessageSocket,
        receive: Callable[[MessageSocket], M | None],
        on_message: Callable[[M], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._receive = receive
        self._on_message = on_message
        self._on_end = on_end
        self._ended = False
        self._queue: deque[Message] = deque()
        loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, message: Message) -> bool:
        """Send now or as soon as there is room, in order. False: it is lost, since the other end is gone or does not read."""
        if self._queue:
            if len(self._queue) >= QUEUE_MAX:
                return False
            self._queue.append(message)
            return True
        try:
            send_now(self._socket, message)
        except BlockingIOError:
            self._queue.append(message)
            self._loop.add_writer(self._socket.fileno(), self._on_writable)
        except OSError:
            return False
        if self._socket.has_unsent:
            self._loop.add_writer(self._socket.fileno(), self._on_writable)
        return True

    def _on_writable(self) -> None:
        try:
            self._socket.flush()
            while self._queue:
                send_now(self._socket, self._queue[0])
                self._queue.popleft()
            self._socket.flush()
        except BlockingIOError:
            return
        except OSError:
            self._queue.clear()
        self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        while self._read_one() and self._socket.fileno() >= 0 and self._socket.has_unread:
            pass

    def _read_one(self) -> bool:
        """Take in one message; False when there is none."""
        try:
            message = self._receive(self._socket)
        except BlockingIOError:
            return False
        except msgspec.MsgspecError as error:
            log.error("a message that is none: %s", error)
            return True
        except OSError:
            message = None
        if message is not None:
            self._on_message(message)
            return True
        if not self._ended:
            self._ended = True
            self._loop.remove_reader(self._socket.fileno())
            self._on_end()
        return False

    def read_left(self) -> None:
        """Take in what was not read yet: the last words of a process that is dead."""
        while self._socket.fileno() >= 0 and self._read_one():
            pass

    def close(self) -> None:
        """Release the socket; harmless when repeated."""
        fd = self._socket.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self._queue.clear()
            self._socket.close()


def channel_to_master(
    loop: asyncio.AbstractEventLoop,
    sock: MessageSocket,
    on_message: Callable[[FromMaster], None],
    on_end: Callable[[], None],
) -> Channel[FromMaster]:
    """The worker's end."""
    return Channel(loop, sock, receive_from_master, on_message, on_end)


def channel_to_worker(
    loop: asyncio.AbstractEventLoop,
    sock: MessageSocket,
    on_message: Callable[[FromWorker], None],
    on_end: Callable[[], None],
) -> Channel[FromWorker]:
    """The master's end."""
    return Channel(loop, sock, _receive_from_worker, on_message, on_end)
