"""engine/control.py over a real socket: what a client may say, and what it gets when it says something else."""

import asyncio
import fcntl
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.control import REQUEST_MAX, ControlServer, NotRunning, ask
from engine.requests import EngineStatus, FlowsPart, ListFlows, Reply, Request, Status, Stop, WorkerStatus
from engine.run_dir import wait_until_unlocked
from tests.support.loop import on_loop

WORKER = WorkerStatus(
    index=0, generation=1, drain_left=None, pid=4711, state="running", restarts=1, last_end="was killed", uptime=2.5,
    memory=34_603_008, ring_waiting=7, flows=3, tcp_active=2, tcp_opened=9, udp_active=1, udp_opened=1, connect_failed=4,
    packets_in=5, bytes_in=6, packets_out=7, bytes_out=8, tcp_retransmits=0, drops={"malformed": 2},
)  # fmt: skip
STATUS = EngineStatus(
    version="0.1.0", pid=42, uptime=3725.0, memory=31_457_280, mode="rule",
    modes=["rule", "global", "direct"], log_level="info", interface="tun0", mtu=65535,
    offload=["csum", "tso4"], link_up=True,
    proxy="socks5://u:***@[2001:db8::1]:1080", udp="no: refused", packets_in=10, bytes_in=20, drops={}, tun_dropped=0,
    pool_slots=512, pool_free=511, kill_switch=True, guardian_pid=18, guardian_restarts=1,
    http_pid=19, http_restarts=0, http_memory=36_700_160, generation=1, drain_cut=0, workers=[WORKER],
)  # fmt: skip


async def answer(request: Request) -> Reply:
    return Reply(status=STATUS) if isinstance(request, Status) else Reply(ok=True)


@asynccontextmanager
async def server(run_dir: Path) -> AsyncIterator[ControlServer]:
    made = ControlServer(run_dir / "control.sock", answer)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def converse(run_dir: Path, data: bytes) -> bytes:
    """Send `data`, close our side, and return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(run_dir / "control.sock"))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@on_loop
async def test_request_gets_its_reply(tmp_path: Path) -> None:
    async with server(tmp_path):
        assert await asyncio.to_thread(ask, tmp_path, Status()) == Reply(status=STATUS)
        assert await asyncio.to_thread(ask, tmp_path, Stop()) == Reply(ok=True)


@pytest.mark.parametrize("parts", [0, 1, 3])
@on_loop
async def test_flows_come_in_parts_and_are_one_reply(tmp_path: Path, parts: int) -> None:
    wanted = Reply(flows=[FlowsPart(number, bytes([number]) * 40_000) for number in range(parts)])

    async def answer(request: Request) -> Reply:
        return wanted

    server = ControlServer(tmp_path / "control.sock", answer)
    await server.start()
    try:
        assert await asyncio.to_thread(ask, tmp_path, ListFlows()) == wanted
        line = await converse(tmp_path, b'{"command": "flows"}\n')
        assert line == msgspec.json.encode(wanted) + b"\n"
    finally:
        await server.stop()


@on_loop
async def test_one_line_of_json_suffices_as_client(tmp_path: Path) -> None:
    async with server(tmp_path):
        assert await converse(tmp_path, b'{"command": "stop"}\n') == b'{"ok":true}\n'


@on_loop
async def test_socket_is_its_owners_alone_and_goes_with_the_engine(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        async with server(tmp_path):
            mode = (tmp_path / "control.sock").stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
        assert os.umask(0) == 0, "the mask of the process was not put back"
    finally:
        os.umask(mask)
    assert not (tmp_path / "control.sock").exists()


@on_loop
async def test_socket_left_by_a_crash_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(tmp_path / "control.sock"))
    async with server(tmp_path):
        assert (await asyncio.to_thread(ask, tmp_path, Stop())).ok


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello\n",
        b"{}\n",
        b'{"command": "explode"}\n',
        b'{"command": 1}\n',
        b"[1]\n",
        b"\xff\xfe\n",
        b'{"command": "stop"',
        b'{"x":' * 5000 + b"\n",
    ],
)
@on_loop
async def test_garbage_gets_an_error_and_the_server_lives(tmp_path: Path, line: bytes) -> None:
    async with server(tmp_path):
        reply = msgspec.json.decode(await converse(tmp_path, line), type=Reply)
        assert reply.error is not None and reply.error.startswith("not a request: ")
        assert (await asyncio.to_thread(ask, tmp_path, Stop())).ok


@on_loop
async def test_line_without_end_is_cut_off(tmp_path: Path) -> None:
    async with server(tmp_path):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        writer.write(b"x" * (2 * REQUEST_MAX + 1))
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass  # what it had not read yet was thrown away
        writer.close()
        assert (await asyncio.to_thread(ask, tmp_path, Stop())).ok


@on_loop
async def test_start_says_that_the_path_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        await ControlServer(tmp_path / ("x" * 120), answer).start()


# the client


def test_no_engine_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match=r"^no engine is running \(nothing listens on .*/control\.sock\)$"):
        ask(tmp_path, Status())


def test_socket_of_a_dead_engine_is_no_engine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunning, match="no engine is running"):
        ask(tmp_path, Status())


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [(b"", "went away"), (b"hello\n", "does not answer like an engine"), (b'{"status": 1}\n', "version")],
)
def test_reply_that_is_none_is_one_sentence(tmp_path: Path, reply: bytes, sentence: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(NotRunning, match=sentence):
                ask(tmp_path, Status())
        finally:
            thread.join()


def test_wait_until_unlocked_waits_for_the_lock(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiter = threading.Thread(target=wait_until_unlocked, args=(tmp_path,))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    os.close(lock)
    waiter.join(10)
    assert not waiter.is_alive()
