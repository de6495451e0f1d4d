"""shared/channel.py over a real socket pair: order, large messages, a full socket, an end that goes away."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from shared import control
from shared.channel import QUEUE_MAX, Channel, channel_to_master, channel_to_worker, receive_from_master, send_now
from shared.config import Match, Policy, ProxyConfig, ProxyOutbound, Route, RouteConfig, Rule
from shared.system import darwin, linux
from tests.support.loop import on_loop, until

PROXY = ProxyOutbound(tag="proxy", proxy=ProxyConfig("socks5", "192.0.2.1", 1080, addresses=("192.0.2.1",)))


@pytest.fixture(autouse=True, params=[linux, darwin], ids=["linux", "darwin"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Both kinds of message socket; that of macOS runs here as well."""
    monkeypatch.setattr("shared.channel.sealed_file", request.param.sealed_file)
    monkeypatch.setattr(f"{__name__}.message_pair", request.param.message_pair)
    return request.param  # type: ignore[no-any-return]


message_pair = linux.message_pair


def reload(names: int) -> control.Reload:
    """A policy with a rule about so many names."""
    match = Match(domain=tuple(f"host-{n}.example.com" for n in range(names)))
    rule = Rule(match=match, action=Route(outbound="proxy"), origin="c.json:1:1")
    return control.Reload(1, Policy(outbounds=(PROXY,), route=RouteConfig(rules=(rule,))))


class Ends:
    """Both ends, and what each of them has received."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        master, worker = message_pair()
        self.by_master: list[control.FromWorker] = []
        self.by_worker: list[control.FromMaster] = []
        self.ended: list[str] = []
        self.worker_socket = worker
        self.master: Channel[control.FromWorker] = channel_to_worker(
            loop, master, self.by_master.append, lambda: self.ended.append("worker")
        )
        self.worker: Channel[control.FromMaster] = channel_to_master(
            loop, worker, self.by_worker.append, lambda: self.ended.append("master")
        )


@asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    try:
        yield made
    finally:
        made.master.close()
        made.worker.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@on_loop
async def test_messages_arrive_in_order() -> None:
    async with ends() as e:
        for n in range(20):
            assert e.worker.send(control.Ready(n))
            assert e.master.send(control.CloseFlow(n))
        await until(lambda: len(e.by_worker) == len(e.by_master) == 20)
        assert e.by_master == [control.Ready(n) for n in range(20)]
        assert e.by_worker == [control.CloseFlow(n) for n in range(20)]


@on_loop
async def test_configuration_of_megabytes_arrives() -> None:
    large = reload(100_000)
    async with ends() as e:
        before = open_files()
        assert e.master.send(large)
        assert e.master.send(control.Stop())
        await until(lambda: len(e.by_worker) == 2)
        assert e.by_worker == [large, control.Stop()]
        assert open_files() == before


def test_large_message_cannot_be_changed_on_its_way() -> None:
    master, worker = message_pair()
    with master, worker:
        send_now(master, reload(10_000))
        _, (fd, *_), _, _ = socket.recv_fds(worker, 1024, 1)
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)
        send_now(master, reload(10_000))
        assert receive_from_master(worker) == reload(10_000)


@on_loop
async def test_descriptors_of_a_worker_are_not_taken() -> None:
    async with ends() as e:
        before = open_files()
        reading, writing = os.pipe()
        socket.send_fds(e.worker_socket, [control.encode(control.Ready(1))], [reading, writing])
        os.close(reading)
        os.close(writing)
        await until(lambda: e.by_master == [control.Ready(1)])
        assert open_files() == before


@on_loop
async def test_messages_wait_for_a_full_socket_up_to_a_bound() -> None:
    async with ends() as e:
        sent = 0
        while e.worker.send(control.Failed(f"{sent:04}" * 1000)):
            sent += 1
        assert sent > QUEUE_MAX
        await until(lambda: len(e.by_master) == sent)
        assert [message.reason[:4] for message in e.by_master if isinstance(message, control.Failed)] == [
            f"{n:04}" for n in range(sent)
        ]
        assert e.worker.send(control.Ready(1))
        await until(lambda: e.by_master[-1] == control.Ready(1))


@on_loop
async def test_garbage_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async with ends() as e:
        e.worker_socket.send(b"\xff\xff")
        e.worker.send(control.Ready(2))
        await until(lambda: e.by_master == [control.Ready(2)])
        assert "a message that is none" in caplog.text


@on_loop
async def test_end_is_told_once() -> None:
    async with ends() as e:
        e.worker.send(control.Failed("last words"))
        e.worker.close()
        await until(lambda: e.ended == ["worker"])
        assert e.by_master == [control.Failed("last words")]
        assert not e.master.send(control.Stop())
        e.master.read_left()
        assert e.ended == ["worker"]
