"""DNS over a byte stream: TCP (RFC 1035 4.2.2, RFC 7766) and TLS (RFC 7858). Each message has its length before it."""

import asyncio
import secrets
from struct import Struct

from workers.dns import ConnectionLost
from workers.dns.servers.connection import Connection
from workers.dns.wire import HEADER

__all__ = ["FramedConnection"]

_LENGTH = Struct(">H")
_IDENTIFIERS = 65536


class FramedConnection(Connection):
    """One connection with any number of questions under way, told apart by their identifiers."""

    idle_timeout = 10.0  # servers keep a connection for some seconds only (RFC 7766 6.2.3)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._received = bytearray()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._next = secrets.randbelow(_IDENTIFIERS)

    async def ask(self, message: bytes) -> bytes:
        """Return the answer to a message. Raises ConnectionLost."""
        if not self.usable or self._transport is None or len(self._waiting) >= _IDENTIFIERS - 1:
            raise ConnectionLost
        ident = self._free_identifier()
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[ident] = answer
        self._stop_idle()
        self._transport.write(_LENGTH.pack(len(message)) + ident.to_bytes(2, "big") + message[2:])
        try:
            return await answer
        finally:
            # An answer that comes too late finds nobody: identifiers are used in turn, so that this one rests for long.
            del self._waiting[ident]
            if not self._waiting:
                self._start_idle()

    def _free_identifier(self) -> int:
        while self._next in self._waiting:
            self._next = (self._next + 1) % _IDENTIFIERS
        ident = self._next
        self._next = (ident + 1) % _IDENTIFIERS
        return ident

    def data_received(self, data: bytes) -> None:
        """Take whole messages out of what has come."""
        super().data_received(data)
        received = self._received
        received += data
        at = 0
        while len(received) - at >= 2:
            (length,) = _LENGTH.unpack_from(received, at)
            if len(received) - at - 2 < length:
                break
            self._on_message(bytes(received[at + 2 : at + 2 + length]))
            at += 2 + length
        del received[:at]

    def _on_message(self, message: bytes) -> None:
        if len(message) < HEADER.size:
            self.abort()
            return
        answer = self._waiting.get(int.from_bytes(message[:2], "big"))
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _fail_all(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost())
