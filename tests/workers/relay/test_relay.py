"""The relay with one SOCKS5 proxy and no rules, between kernel sockets (world.py): every byte, every refusal, every end."""

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from engine.demo.socks_server import SocksServer
from engine.tun import Offload
from shared.config import Policy
from shared.metrics import Cell
from tests.support.loop import on_loop, until
from tests.support.netns import TARGET_V4, TARGET_V6
from tests.support.peers import Endpoint, closed_port, echo, tcp_server, udp_echo
from tests.workers.relay.world import World, network, proxy_outbound

pytestmark = pytest.mark.e2e

PROXY = "127.0.0.1"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@contextlib.asynccontextmanager
async def world(offload: Offload = "auto", mtu: int = 1500, **server: Any) -> AsyncIterator[tuple[World, SocksServer]]:
    """Everything between an application's socket and its target."""
    with (
        network(offload, mtu) as (client, tun),
        SocksServer(asyncio.get_running_loop(), PROXY, 0, **server) as proxy,
        World(client, tun, Policy(outbounds=(proxy_outbound(proxy.endpoint),))) as made,
    ):
        yield made, proxy


async def transfer(world: World, target: Endpoint, data: bytes) -> bytes:
    """Send `data` and close; return all that comes back."""
    reader, writer = await world.connect(target)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(send(), reader.read())
    writer.close()
    return received


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.mark.parametrize("offload", ["auto", "csum", "no-header"])
@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6])
@on_loop
async def test_every_byte_goes_there_and_back(host: str, offload: Offload) -> None:
    data = os.urandom(1 << 20) * 6
    async with world(offload) as (w, _), tcp_server(echo, host) as target:
        assert digest(await transfer(w, target, data)) == digest(data)
        assert w.counters[Cell.TCP_OPENED] == 1
        assert w.counters[Cell.CALLBACK_ERRORS] == 0


@on_loop
async def test_many_flows_at_once() -> None:
    async with world() as (w, proxy), tcp_server(echo, TARGET_V4) as target:
        sent = [os.urandom(1000 * n) for n in range(100)]
        assert await asyncio.gather(*(transfer(w, target, data) for data in sent)) == sent
        await until(lambda: w.counters[Cell.TCP_ACTIVE] == 0 and not proxy.sessions)
        assert w.counters[Cell.TCP_OPENED] == w.counters[Cell.TCP_CLOSED] == len(sent)


@on_loop
async def test_the_server_may_speak_first() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")

    async with world() as (w, _), tcp_server(greet, TARGET_V4) as target:
        assert await transfer(w, target, b"") == b"220 hello\r\n"


@on_loop
async def test_a_slow_application_holds_the_server_back() -> None:
    size = 64 << 20
    all_sent = asyncio.Event()

    async def send_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _send(writer, size)
        all_sent.set()

    async with world() as (w, _), tcp_server(send_much, TARGET_V4) as target:
        reader, writer = await w.connect(target)
        assert not await _happens(all_sent)
        assert w.counters[Cell.BUFFER_BYTES] <= 2 << 20
        assert len(await reader.read()) == size
        writer.close()


async def _happens(event: asyncio.Event) -> bool:
    """Whether `event` comes about while nobody takes the data: half a second moves a hundred times what the buffers hold."""
    try:
        await asyncio.wait_for(event.wait(), 0.5)
    except TimeoutError:
        return False
    return True


@on_loop
async def test_a_slow_server_holds_the_application_back() -> None:
    size = 64 << 20
    go_on, all_sent = asyncio.Event(), asyncio.Event()
    received = 0

    async def read_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await go_on.wait()
        while data := await reader.read(1 << 20):
            received += len(data)

    async with world() as (w, _), tcp_server(read_late, TARGET_V4) as target:
        reader, writer = await w.connect(target)

        async def send_much() -> None:
            await _send(writer, size)
            all_sent.set()

        sending = asyncio.get_running_loop().create_task(send_much())
        assert not await _happens(all_sent)
        assert w.counters[Cell.BUFFER_BYTES] <= 2 << 20
        go_on.set()
        await sending
        assert await reader.read() == b""
        assert received == size
        writer.close()


async def _send(writer: asyncio.StreamWriter, size: int) -> None:
    piece = bytes(1 << 20)
    for _ in range(size >> 20):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6])
@on_loop
async def test_a_refused_connection_is_refused(host: str) -> None:
    async with world() as (w, _):
        with closed_port(host) as target, pytest.raises(ConnectionRefusedError):
            await w.connect(target)
        assert w.counters[Cell.CONNECT_FAILED] == 1


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6])
@on_loop
async def test_a_dead_proxy_is_an_unreachable_network(host: str) -> None:
    async with world() as (w, proxy):
        proxy.close()
        with pytest.raises(OSError) as caught:
            await w.connect((host, 80))
        assert caught.value.errno == errno.ENETUNREACH


@on_loop
async def test_a_reset_reaches_the_application() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        writer.transport.abort()

    async with world() as (w, _), tcp_server(reset, TARGET_V4) as target:
        reader, writer = await w.connect(target)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@on_loop
async def test_a_server_that_hangs_up_on_data_resets_the_application() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.abort()  # with data unread, so that the kernel sends RST

    async with world() as (w, _), tcp_server(reset, TARGET_V4) as target:
        _, writer = await w.connect(target)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await _send(writer, 256 << 20)
        writer.close()


@on_loop
async def test_close_resets_both_sides() -> None:
    async with world() as (w, proxy), tcp_server(echo, TARGET_V4) as target:
        reader, writer = await w.connect(target)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        w.relay.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await until(lambda: not proxy.sessions)
        writer.close()


@on_loop
async def test_a_reset_reaches_the_server() -> None:
    heard: asyncio.Future[type[BaseException] | None] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            await reader.read()
            heard.set_result(None)
        except OSError as error:
            heard.set_result(type(error))

    async with world() as (w, _), tcp_server(listen, TARGET_V4) as target:
        reader, writer = await w.connect(target)
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        writer.transport.abort()
        assert await heard is ConnectionResetError


@on_loop
async def test_the_application_may_give_up_while_the_proxy_dials() -> None:
    dialed, hung_up = asyncio.Event(), asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialed.set()
        await reader.read()
        hung_up.set()

    with network() as (client, tun):
        async with tcp_server(never_answers, PROXY) as proxy:
            with World(client, tun, Policy(outbounds=(proxy_outbound(proxy),))) as w:
                connecting = asyncio.get_running_loop().create_task(w.connect((TARGET_V4, 80)))
                await dialed.wait()
                for connection in tuple(w.stack.connections.values()):
                    connection.abort(monotonic())
                await hung_up.wait()
                with pytest.raises(ConnectionRefusedError):
                    await connecting


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6])
@on_loop
async def test_datagrams_of_every_size_go_there_and_back(host: str) -> None:
    loop = asyncio.get_running_loop()
    # Up to this MTU the largest datagram needs no IP fragments: to join those is the master's part.
    async with world(mtu=65535) as (w, _), udp_echo(host) as target:
        with await w.udp(target) as sock:
            for size in (0, 1, 1400, 8000, 65_507 if host == TARGET_V4 else 65_487):
                payload = os.urandom(size)
                sock.send(payload)
                assert await loop.sock_recv(sock, 65536) == payload
        assert w.counters[Cell.UDP_OPENED] == 1


@on_loop
async def test_without_udp_the_application_hears_it_at_once() -> None:
    async with world(udp=False) as (w, _):
        with await w.udp((TARGET_V4, 53)) as sock:
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.get_running_loop().sock_recv(sock, 100)
