r"""Bulk transfers whose every byte is checked, at both ends and without limiting the throughput.

A flow carries a stream that both ends derive from the same key, and the receiver compares each byte with the one that
belongs at its position. That costs one memcmp, a tenth of what the quickest hash costs, and it names the position at fault.

    client                                   server
    direction, key (17 bytes)        ->
    upload:    stream ... FIN        ->
                                     <-      verdict: bytes received, position of the first wrong one
    download:  order: n bytes        ->      (as many orders as the client likes, ahead of the data)
                                     <-      the next n bytes of the stream
               FIN                   ->
                                     <-      FIN
"""

import hashlib
import os
import socket
import struct
from collections.abc import Callable
from time import monotonic

__all__ = ["KeyedStream", "TransferError", "download", "serve", "upload"]

KEY_SIZE = 16
PERIOD = 1_048_583
"""Bytes after which a stream repeats. A prime: buffers and segments are powers of two, so data that is a lap of some
buffer too old never agrees with the data expected."""
PIECE_SIZE = 256 * 1024
"""Bytes per system call."""
ORDER_SIZE = 4 * 1024 * 1024
"""Bytes per order of a download."""
ORDERS_AHEAD = 4
"""Orders made and not yet received: more than all buffers on the way hold."""
STALL_TIMEOUT = 10.0
"""Seconds without a byte after which a transfer has failed."""

_UPLOAD, _DOWNLOAD = b"U", b"D"
_ORDER = struct.Struct("!Q")
_VERDICT = struct.Struct("!Qq")
_ALL_RIGHT = -1  # in place of a position


class TransferError(Exception):
    """Bytes were damaged, lost or made up on the way; the message says at which position."""


class KeyedStream:
    """An endless pseudo-random stream: the first PERIOD bytes of SHAKE128(key), again and again."""

    def __init__(self, key: bytes) -> None:
        block = hashlib.shake_128(key).digest(PERIOD)
        self._block = block + block[:PIECE_SIZE]  # a piece never has to be put together from two ends
        self._view = memoryview(self._block)

    def piece(self, at: int, size: int) -> memoryview:
        """Return the `size` bytes (at most PIECE_SIZE) at position `at`."""
        start = at % PERIOD
        return self._view[start : start + size]

    def first_difference(self, at: int, data: memoryview) -> int | None:
        """Return the position of the first byte of `data` (at most PIECE_SIZE) that does not belong at `at`; None if all do."""
        if self._block.startswith(data, at % PERIOD):
            return None
        pairs = zip(data, self.piece(at, len(data)), strict=True)
        return at + next(i for i, (is_, should_be) in enumerate(pairs) if is_ != should_be)


def upload(flow: socket.socket, seconds: float, on_progress: Callable[[int], None]) -> int:
    """Send for `seconds` and half-close; return the bytes that the server has received and found right.

    `on_progress` is told the bytes of each piece. Raises TransferError, and OSError when the flow breaks.
    """
    key = os.urandom(KEY_SIZE)
    stream = KeyedStream(key)
    flow.settimeout(STALL_TIMEOUT)
    flow.sendall(_UPLOAD + key)
    sent = 0
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        size = flow.send(stream.piece(sent, PIECE_SIZE))
        sent += size
        on_progress(size)
    flow.shutdown(socket.SHUT_WR)
    received, wrong_at = _VERDICT.unpack(_receive_exactly(flow, _VERDICT.size))
    _judge(sent, received, wrong_at)
    return sent


def download(
    flow: socket.socket, seconds: float, on_progress: Callable[[int], None], *, order_size: int = ORDER_SIZE
) -> int:
    """Order data for `seconds` and receive all that was ordered; return its size in bytes.

    `on_progress` is told the bytes of each piece. Orders are small where `on_progress` holds the transfer back: what is
    ordered is received to its end. Raises TransferError, and OSError when the flow breaks.
    """
    key = os.urandom(KEY_SIZE)
    check = _Receiver(key)
    flow.settimeout(STALL_TIMEOUT)
    flow.sendall(_DOWNLOAD + key)
    ordered = 0
    deadline = monotonic() + seconds
    while True:
        while ordered - check.received < ORDERS_AHEAD * order_size and monotonic() < deadline:
            flow.sendall(_ORDER.pack(order_size))
            ordered += order_size
        if check.received >= ordered:
            break
        size = check.receive(flow)
        if size == 0:
            break
        on_progress(size)
    flow.shutdown(socket.SHUT_WR)
    while check.receive(flow):  # more than was ordered is as wrong as less
        pass
    _judge(ordered, check.received, check.wrong_at)
    return ordered


def serve(flow: socket.socket) -> None:
    """The server's end of one flow, to its close. Raises OSError when the flow breaks."""
    flow.settimeout(STALL_TIMEOUT)
    direction = _receive_exactly(flow, 1)
    key = _receive_exactly(flow, KEY_SIZE)
    if direction == _UPLOAD:
        check = _Receiver(key)
        while check.receive(flow):
            pass
        flow.sendall(_VERDICT.pack(check.received, check.wrong_at))
    else:
        _serve_orders(flow, KeyedStream(key))


def _serve_orders(flow: socket.socket, stream: KeyedStream) -> None:
    sent = 0
    while order := _receive_exactly(flow, _ORDER.size, or_nothing=True):
        end = sent + _ORDER.unpack(order)[0]
        while sent < end:
            sent += flow.send(stream.piece(sent, min(PIECE_SIZE, end - sent)))


class _Receiver:
    """Receives a keyed stream and remembers how much of it came and where it first went wrong."""

    def __init__(self, key: bytes) -> None:
        self.received = 0
        self.wrong_at = _ALL_RIGHT
        self._stream = KeyedStream(key)
        self._buffer = memoryview(bytearray(PIECE_SIZE))

    def receive(self, flow: socket.socket) -> int:
        """Receive and check one piece; return its size, 0 at the end."""
        size = flow.recv_into(self._buffer)
        if self.wrong_at == _ALL_RIGHT:
            wrong_at = self._stream.first_difference(self.received, self._buffer[:size])
            if wrong_at is not None:
                self.wrong_at = wrong_at
        self.received += size
        return size


def _receive_exactly(flow: socket.socket, size: int, *, or_nothing: bool = False) -> bytes:
    """Return exactly `size` bytes, or with `or_nothing` none at a clean end. Raises ConnectionError on any other end."""
    data = b""
    while len(data) < size:
        piece = flow.recv(size - len(data))
        if not piece:
            if or_nothing and not data:
                return b""
            raise ConnectionError(f"the peer closed after {len(data)} of {size} bytes")
        data += piece
    return data


def _judge(expected: int, received: int, wrong_at: int) -> None:
    """Raise TransferError unless exactly the expected bytes have come."""
    if wrong_at != _ALL_RIGHT:
        raise TransferError(f"the byte at position {wrong_at} is not the one that was sent")
    if received != expected:
        raise TransferError(f"{received} bytes received, {expected} sent")
