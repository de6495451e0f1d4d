"""Messages on a stream socket, for systems without SOCK_SEQPACKET: 5 bytes before each, length and number of descriptors."""

import array
import errno
import os
import socket
import struct
from collections import deque
from typing import Any

__all__ = ["StreamMessages"]

_HEADER = struct.Struct("=IB")
MESSAGE_MAX = 1024 * 1024
"""Bytes; those of us have at most 32 KiB (shared/channel.py). Who announces more speaks something else."""
FDS_MAX = 4
READ_SIZE = 64 * 1024
_INT = struct.calcsize("i")


class StreamMessages(socket.socket):
    """Sends and receives as a SOCK_SEQPACKET socket does: a message at a time, whole or not at all.

    When it does not block, the kernel may take a part of a message: the rest is kept and goes first (`has_unsent`, `flush`); and
    it may give several at once: those that were not asked for are kept (`has_unread`).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unsent = b""
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._ended = False

    @property
    def has_unsent(self) -> bool:
        """Whether a part of a message is still to be sent."""
        return bool(self._unsent)

    @property
    def has_unread(self) -> bool:
        """Whether a whole message is here already."""
        return self._length() is not None

    def flush(self) -> None:
        """Send what is unsent. Raises BlockingIOError, OSError."""
        while self._unsent:
            self._unsent = self._unsent[super().send(self._unsent) :]

    def send(self, data: Any, flags: int = 0) -> int:
        """Send one message. Raises BlockingIOError, when nothing of it is sent; OSError."""
        return self._send(bytes(data), ())

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        """Send one message, with descriptors if `ancillary` has some (socket.send_fds)."""
        fds = [fd for _, _, data in ancillary for fd in array.array("i", bytes(data))]
        return self._send(b"".join(bytes(one) for one in buffers), fds)

    def _send(self, data: bytes, fds: Any) -> int:
        self.flush()
        frame = _HEADER.pack(len(data), len(fds)) + data
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = super().sendmsg([frame], rights)
        else:
            sent = super().send(frame)
        self._unsent = frame[sent:]
        if self._unsent and self.getblocking():
            self.flush()
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive one message; empty at the end. Descriptors that come along are closed. Raises BlockingIOError, OSError."""
        data, fds = self._receive(take_fds=False)
        assert not fds
        return data

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> tuple[bytes, list[Any], int, Any]:
        """Receive one message and its descriptors (socket.recv_fds)."""
        data, fds = self._receive(take_fds=True)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        return data, rights, 0, None

    def close(self) -> None:
        """Close it, and descriptors that nobody has asked for."""
        while self._fds:
            os.close(self._fds.popleft())
        super().close()

    def _receive(self, *, take_fds: bool) -> tuple[bytes, list[int]]:
        while (length := self._length()) is None:
            if self._ended:
                return b"", []
            self._read(take_fds=take_fds)
        _, count = _HEADER.unpack_from(self._received)
        data = bytes(self._received[_HEADER.size : _HEADER.size + length])
        del self._received[: _HEADER.size + length]
        if not take_fds:
            return data, []
        if count > len(self._fds):
            raise OSError(errno.EBADMSG, "a message without its descriptors")
        return data, [self._fds.popleft() for _ in range(count)]

    def _read(self, *, take_fds: bool) -> None:
        if not take_fds:  # the kernel closes what is not asked for
            chunk = super().recv(READ_SIZE)
        else:
            chunk, ancillary, _, _ = super().recvmsg(READ_SIZE, socket.CMSG_SPACE(FDS_MAX * _INT))
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i", data[: len(data) - len(data) % _INT])
                    for fd in fds:
                        os.set_inheritable(fd, False)
                    self._fds.extend(fds)
        self._received += chunk
        self._ended = not chunk

    def _length(self) -> int | None:
        """Length of the first message if it is here, whole."""
        if len(self._received) < _HEADER.size:
            return None
        length: int = _HEADER.unpack_from(self._received)[0]
        if length > MESSAGE_MAX:
            raise OSError(errno.EMSGSIZE, "a message longer than any")
        return length if len(self._received) >= _HEADER.size + length else None
