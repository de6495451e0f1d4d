"""engine/http/door.py: real sockets that come, stay away, say nothing and read nothing."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from aiohttp import web

from engine.http import door as module
from engine.http.access import Access
from engine.http.door import IDLE_TIMEOUT, Door, Rate
from engine.http.server import make_app
from engine.http.state import DOOR
from engine.requests import FollowLog, LogLine, LogPart, Measure, Reply, Request
from tests.engine.http.measurement import Rows
from tests.engine.http.test_server import FakeEngine
from tests.support.loop import on_loop, until

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
TIMEOUT = 60.0  # seconds; only turns a hang into a failure
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_made: list[asyncio.StreamWriter] = []
"""Of a test; closed at its end."""


def answer(request: Request) -> Reply:
    if isinstance(request, Measure):
        return Reply(measurement=Rows().measure("proxy"))
    assert isinstance(request, FollowLog)
    line = LogLine(time=0.0, level="info", process="master", message="x" * 1000, fields={})
    return Reply(log=LogPart(next=request.after + 200, lines=[line] * 200))


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Door, int]]:
    """The door of a whole application, and its port at 127.0.0.1."""
    app = make_app(FakeEngine(answer), Access(secret=""))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = asyncio.ensure_future(app[DOOR].run(runner.server, [listener]))
        try:
            yield app[DOOR], listener.getsockname()[1]
        finally:
            while _made:
                _made.pop().close()
            accepting.cancel()
            await asyncio.wait((accepting,))
            await runner.cleanup()


async def connect(port: int, source: str = "127.0.0.1") -> Streams:
    streams = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    _made.append(streams[1])
    return streams


async def status(streams: Streams, request: bytes = GET) -> int:
    """The status of the answer; 0: the connection is closed."""
    streams[1].write(request)
    async with asyncio.timeout(TIMEOUT):
        try:
            line = await streams[0].readline()
        except ConnectionError:
            return 0
    return int(line.split()[1]) if line else 0


@on_loop
async def test_beyond_the_limits_there_is_503_until_somebody_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 6)
    monkeypatch.setattr(module, "PER_PEER_MAX", 4)
    async with opened() as (door, port):
        first = [await connect(port) for _ in range(4)]
        await until(lambda: door.connections == 4)
        assert [await status(each) for each in first] == [200] * 4
        assert await status(await connect(port)) in (503, 0)
        assert door.refused == {"peer": 1}
        others = [await connect(port, f"127.0.0.{n}") for n in (2, 3)]
        assert [await status(each) for each in others] == [200] * 2
        assert await status(await connect(port, "127.0.0.4")) in (503, 0)
        assert door.refused == {"peer": 1, "connections": 1}
        first[0][1].close()
        await until(lambda: door.connections == 5)
        assert await status(await connect(port, "127.0.0.4")) == 200


@on_loop
async def test_a_thousand_that_say_nothing_take_no_more_than_their_share() -> None:
    async with opened() as (door, port):
        silent = [(await connect(port))[1] for _ in range(1000)]
        await until(lambda: door.connections + door.refused["peer"] == 1000)
        assert door.connections == module.PER_PEER_MAX
        assert await status(await connect(port, "127.0.0.2")) == 200
        for writer in silent:
            writer.close()
        await until(lambda: door.connections <= 1)


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost: loc", GET])
@on_loop
async def test_who_is_idle_is_let_go(said: bytes) -> None:
    async with opened() as (door, port):
        reader, writer = await connect(port)
        writer.write(said)
        await until(lambda: door.connections == 1)
        if said is GET:
            await reader.readuntil(b"}")
        door.look(monotonic() + IDLE_TIMEOUT / 2)
        assert door.connections == 1
        door.look(monotonic() + IDLE_TIMEOUT + 1)
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1 << 20)
        assert (door.refused["idle"], door.connections) == (1, 0)


@on_loop
async def test_a_stream_is_not_idle() -> None:
    async with opened() as (door, port):
        reader, writer = await connect(port)
        assert await status((reader, writer), b"GET /traffic HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
        door.look(monotonic() + IDLE_TIMEOUT + 1)
        assert (door.refused["idle"], door.connections) == (0, 1)
        writer.close()
        await until(lambda: door.connections == 0)


@pytest.mark.parametrize("headers", ["", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"])  # fmt: skip
@on_loop
async def test_a_reader_of_the_log_that_takes_nothing_is_let_go(headers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.http.clash.streams.SEND_TIMEOUT", 0.5)
    async with opened() as (door, port):
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(f"GET /logs HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
            await until(lambda: door.refused["slow"] == 1)
            await until(lambda: door.connections == 0)


@on_loop
async def test_what_costs_something_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.DEAR, "/metrics", Rate(0.001, 3, 1))
    async with opened() as (door, port):
        request = GET.replace(b"/healthz", b"/metrics")
        found = []
        for _ in range(5):
            streams = await connect(port)
            found.append(await status(streams, request))
        assert found == [200, 200, 200, 429, 429]
        assert door.refused == {"rate": 2}
        streams = await connect(port)
        assert await status(streams) == 200


@pytest.mark.parametrize(
    ("request_text", "code"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 400),
        (b"PATCH /configs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000, 413),
        (b"\x16\x03\x01\x02\x00", 400),
    ],
    ids=["path", "header", "body", "tls"],
)
@on_loop
async def test_what_is_too_long_or_no_http_is_refused(request_text: bytes, code: int) -> None:
    async with opened() as (_, port):
        streams = await connect(port)
        assert await status(streams, request_text) in (code, 0)


@on_loop
async def test_all_that_is_counted_is_shown() -> None:
    async with opened() as (_, port):
        streams = await connect(port)
        assert await status(streams, GET.replace(b"/healthz", b"/metrics")) == 200
        text = (await streams[0].readuntil(b'reason="slow"} 0.0')).decode()
        assert 'tunloom_http_refused_total{reason="connections"} 0.0' in text
        assert "tunloom_http_connections 1.0" in text


@on_loop
async def test_few_dear_requests_are_under_way_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.DEAR, "/metrics", Rate(1, 100, 2))
    now, most, may_answer = 0, 0, asyncio.Event()

    async def slow(engine: FakeEngine, request: Request, *, timeout: float) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await may_answer.wait()
        now -= 1
        return answer(request)

    monkeypatch.setattr(FakeEngine, "ask", slow)
    async with opened() as (door, port):
        waiting = [await connect(port) for _ in range(10)]
        answers = [asyncio.ensure_future(status(each, GET.replace(b"/healthz", b"/metrics"))) for each in waiting]
        await until(lambda: sum(guest.under_way for guest in door._guests.values()) == 10)
        may_answer.set()
        assert await asyncio.gather(*answers) == [200] * 10
        assert most == 2


@on_loop
async def test_a_defect_ends_it_rather_than_leave_nobody_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(door: Door, now: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Door, "look", fail)
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.01)
    runner = web.AppRunner(make_app(FakeEngine(answer), Access(secret="")))
    await runner.setup()
    assert runner.server is not None
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ExceptionGroup) as failed:
        await Door().run(runner.server, [listener])
    assert failed.group_contains(ZeroDivisionError)
    await runner.cleanup()
