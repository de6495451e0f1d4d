"""Servers on loopback for tests of proxies: TCP and UDP echo, and one that answers from a script."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

Endpoint = tuple[str, int]
Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def tcp_server(session: Session, host: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    """A TCP server that runs `session` for each connection and closes it afterwards."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await session(reader, writer)
        except OSError:  # the client went away
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, host, 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Session: send back what comes, then FIN."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def script(*turns: tuple[int, bytes]) -> Session:
    """Session: for each turn read so many bytes, then answer; then close."""

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size, answer in turns:
            await reader.readexactly(size)
            writer.write(answer)
            await writer.drain()

    return session


@contextlib.contextmanager
def closed_port(host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """An endpoint that refuses TCP connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        yield sock.getsockname()[:2]


@contextlib.asynccontextmanager
async def udp_echo(host: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    """A UDP server that sends each datagram back to where it came from, up to 65,507 bytes."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, 0))

        def answer() -> None:
            sock.sendto(*sock.recvfrom(65536))

        loop.add_reader(sock.fileno(), answer)
        try:
            yield sock.getsockname()[:2]
        finally:
            loop.remove_reader(sock.fileno())


async def recvfrom(sock: socket.socket) -> tuple[bytes, Endpoint]:
    """Wait for a datagram (uvloop has no sock_recvfrom)."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())
    return sock.recvfrom(65536)
