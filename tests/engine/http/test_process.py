"""engine/http/process.py with the real process: it serves as nobody, it is replaced when it dies, it cannot stop the engine."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from engine.http import HttpOptions
from engine.http.channel import Channel, Engine
from engine.http.process import HttpProcess
from engine.requests import Measure, Reply, Request, Status, Stop
from tests.engine.http.measurement import Rows
from tests.support.loop import on_loop

ANYBODY = 60923 if os.geteuid() == 0 else None  # uid of the process


async def answer(request: Request) -> Reply:
    return Reply(measurement=Rows().measure("proxy")) if isinstance(request, Measure) else Reply(ok=True)


@asynccontextmanager
async def running(**options: str) -> AsyncIterator[tuple[HttpProcess, str]]:
    """A process and the URL of its /healthz."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/healthz"
    http = HttpOptions(addresses=(("127.0.0.1", 0),), is_named=True, **options)
    process = HttpProcess(http, [listener], answer, uid=ANYBODY, log_level="info", log_format="text")
    process.start()
    try:
        yield process, url
    finally:
        await process.stop()
    assert process.pid is None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url.split(":")[2].split("/")[0]))


async def get(url: str, **headers: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        await response.read()
        return response.status


def proc(process: HttpProcess, name: str) -> bytes:
    return Path(f"/proc/{process.pid}/{name}").read_bytes()


@on_loop
async def test_serves_whoever_connects_before_it_is_up() -> None:
    async with running() as (process, url):
        assert await get(url) == 200
        assert process.pid is not None


@on_loop
async def test_secret_reaches_it_and_no_command_line() -> None:
    async with running(secret="s3cret") as (process, url):
        assert await get(url) == 401
        assert await get(url, Authorization="Bearer s3cret") == 200
        assert b"s3cret" not in proc(process, "cmdline")
        assert b"s3cret" not in proc(process, "environ")


@pytest.mark.skipif(ANYBODY is None, reason="needs root: only root can become somebody else")
@on_loop
async def test_is_nobody_and_can_become_nobody_else() -> None:
    async with running() as (process, url):
        assert await get(url) == 200
        lines = proc(process, "status").decode().splitlines()
        fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        assert fields["Uid"] == fields["Gid"] == [str(ANYBODY)] * 4
        assert fields["Groups"] == []
        assert fields["CapPrm"] == fields["CapEff"] == fields["CapAmb"] == ["0000000000000000"]
        assert fields["NoNewPrivs"] == ["1"]


@on_loop
async def test_successor_serves_when_it_was_killed() -> None:
    async with running() as (process, url):
        assert await get(url) == 200
        killed = process.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert await get(url) == 200
        assert process.pid not in (None, killed)
        assert process.restarts == 1


@on_loop
async def test_signals_meant_for_the_master_do_not_end_it() -> None:
    """Ctrl-C reaches the whole foreground group, and a service manager signals everything in the cgroup."""
    async with running() as (process, url):
        assert await get(url) == 200
        pid = process.pid
        assert pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert await get(url) == 200
        assert (process.pid, process.restarts) == (pid, 0)


@on_loop
async def test_process_that_hangs_is_killed_at_the_end() -> None:
    async with running() as (process, url):
        assert await get(url) == 200
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)


@on_loop
async def test_what_it_may_not_ask_is_refused() -> None:
    """A defect in the HTTP process shall not be able to stop the engine."""
    process = HttpProcess(
        HttpOptions(addresses=(), is_named=True), [], answer, uid=None, log_level="info", log_format="text"
    )
    ours, theirs = socket.socketpair()
    master, asking = await Channel.open(ours), await Channel.open(theirs)
    serving = asyncio.ensure_future(process._answer_all(master))
    engine = Engine(asking)
    receiving = asyncio.ensure_future(engine.run())
    assert await engine.ask(Status(), timeout=5) == Reply(ok=True)
    assert (await engine.ask(Stop(), timeout=5)).error == "the engine is not stopped over HTTP"
    master.close()
    await receiving
    asking.close()
    await asyncio.wait((serving,))


@on_loop
async def test_defect_of_the_master_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Reply:
        raise ZeroDivisionError

    process = HttpProcess(
        HttpOptions(addresses=(), is_named=True), [], fail, uid=None, log_level="info", log_format="text"
    )
    ours, theirs = socket.socketpair()
    master, asking = await Channel.open(ours), await Channel.open(theirs)
    serving = asyncio.ensure_future(process._answer_all(master))
    engine = Engine(asking)
    receiving = asyncio.ensure_future(engine.run())
    assert (await engine.ask(Status(), timeout=5)).error == "a defect of the engine; its log tells more"
    assert "ZeroDivisionError" in caplog.text
    master.close()
    await receiving
    asking.close()
    await asyncio.wait((serving,))
