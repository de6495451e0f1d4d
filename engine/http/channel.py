"""Messages between the master and its HTTP process: one stream socket, 4 bytes of length and msgpack each.

The first message goes to the HTTP process and configures it. After that it asks and the master answers; questions carry a
number, so that a slow answer (the delay of a proxy) holds up no other.
"""

import asyncio
import itertools
import socket

import msgspec

from engine.requests import Reply, Request

__all__ = ["Answer", "Channel", "Closed", "Configure", "Engine", "Question", "receive_configuration"]

MESSAGE_MAX = 64 * 1024 * 1024
"""Bytes; twenty thousand flows take about ten million."""


class Configure(msgspec.Struct, frozen=True, kw_only=True):
    """Master -> HTTP process, first."""

    uid: int | None
    """User to become; None: stay."""
    secret: str
    origins: tuple[str, ...]
    names: tuple[str, ...]
    """Host names by which the listeners are known."""
    ui: str | None
    """Directory with the files of a dashboard, served below /ui/."""
    log_level: str
    log_format: str


class Question(msgspec.Struct, frozen=True):
    """HTTP process -> master."""

    number: int
    request: Request


class Answer(msgspec.Struct, frozen=True):
    """Master -> HTTP process; `number` is the question's."""

    number: int
    reply: Reply


class Closed(Exception):
    """The other end is gone."""


class Channel:
    """One end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> "Channel":
        """Take over a connected Unix stream socket; it is closed when this is cancelled."""
        try:
            return cls(*await asyncio.open_unix_connection(sock=sock))
        except BaseException:
            sock.close()
            raise

    async def receive(self) -> bytes:
        """Return the next message. Raises Closed."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            if length > MESSAGE_MAX:
                raise Closed
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            raise Closed from None

    async def send(self, message: msgspec.Struct) -> None:
        """Send a message, and wait while the other end is slow. Raises Closed."""
        data = msgspec.msgpack.encode(message)
        self._writer.writelines((len(data).to_bytes(4, "big"), data))
        try:
            await self._writer.drain()
        except OSError:
            raise Closed from None

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


def receive_configuration(sock: socket.socket) -> Configure:
    """Return the first message; blocks, since there is no loop yet. Raises Closed."""

    def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            if not more:
                raise Closed
            data += more
        return data

    try:
        return msgspec.msgpack.decode(read(int.from_bytes(read(4), "big")), type=Configure)
    except OSError:
        raise Closed from None


class Engine:
    """The HTTP process's view of the engine: asks the master. `run` must be running."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._decode = msgspec.msgpack.Decoder(Answer).decode

    async def run(self) -> None:
        """Hand out answers until the master is gone."""
        try:
            while True:
                answer = self._decode(await self._channel.receive())
                waiter = self._waiting.get(answer.number)
                if waiter is not None and not waiter.done():
                    waiter.set_result(answer.reply)
        except Closed:
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(Closed())

    async def ask(self, request: Request, *, timeout: float) -> Reply:
        """Return the master's answer. Raises TimeoutError after `timeout` seconds, Closed."""
        number = next(self._numbers)
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            async with asyncio.timeout(timeout):
                await self._channel.send(Question(number, request))
                return await waiter
        finally:
            del self._waiting[number]
