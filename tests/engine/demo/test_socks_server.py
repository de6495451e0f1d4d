"""The SOCKS5 server over real sockets, whole and byte by byte, and as the process that the demo starts."""

import asyncio
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.demo.socks_server import SocksServer
from shared.wire.socks5 import Reply, encode_address, encode_udp_header, parse_udp_header, split_datagram
from tests.support.loop import on_loop
from tests.support.peers import Endpoint, closed_port, echo, tcp_server, udp_echo

GREETING = b"\5\1\0"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def packed(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def request(target: Endpoint, command: int = 1) -> bytes:
    return bytes((5, command, 0)) + encode_address(packed(target[0]), target[1])


@asynccontextmanager
async def client(server: SocksServer) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(*server.endpoint)
    try:
        yield reader, writer
    finally:
        writer.close()


async def reply_to(server: SocksServer, message: bytes) -> int:
    """Greet, send a request, and return the reply code."""
    async with client(server) as (reader, writer):
        writer.write(GREETING + message)
        assert await reader.readexactly(2) == b"\5\0"
        reply = await reader.readexactly(10)
        return reply[1]


def new_server(**options: object) -> SocksServer:
    return SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0, **options)  # type: ignore[arg-type]


@on_loop
async def test_relays_bytes_and_half_close() -> None:
    data = os.urandom(1 << 20) * 4
    async with tcp_server(echo) as target:
        with new_server() as server:
            async with client(server) as (reader, writer):
                writer.write(GREETING + request(target) + data)  # data ahead of the reply is relayed too
                writer.write_eof()
                assert (await reader.readexactly(12))[3] == Reply.SUCCEEDED
                assert hashlib.sha256(await reader.read()).digest() == hashlib.sha256(data).digest()
            assert not server.sessions


@on_loop
async def test_a_handshake_may_come_byte_by_byte() -> None:
    async with tcp_server(echo) as target:
        with new_server(credentials=(b"me", b"secret")) as server:
            async with client(server) as (reader, writer):
                for byte in b"\5\2\0\2" + b"\1\2me\6secret" + request(target) + b"hello":
                    writer.write(bytes((byte,)))
                    await writer.drain()
                assert await reader.readexactly(4) == b"\5\2\1\0"
                assert (await reader.readexactly(10))[1] == Reply.SUCCEEDED
                assert await reader.readexactly(5) == b"hello"


@pytest.mark.parametrize(("user", "password"), [(b"me", b"wrong"), (b"you", b"secret"), (b"", b"")])
@on_loop
async def test_wrong_credentials_are_refused(user: bytes, password: bytes) -> None:
    with new_server(credentials=(b"me", b"secret")) as server:
        async with client(server) as (reader, writer):
            writer.write(b"\5\1\2\1" + bytes((len(user),)) + user + bytes((len(password),)) + password)
            assert await reader.read() == b"\5\2\1\1"


@on_loop
async def test_a_client_without_password_gets_no_method() -> None:
    with new_server(credentials=(b"me", b"secret")) as server:
        async with client(server) as (reader, writer):
            writer.write(GREETING)
            assert await reader.read() == b"\5\xff"


@on_loop
async def test_a_refused_destination_is_reply_5() -> None:
    with new_server() as server, closed_port() as target:
        assert await reply_to(server, request(target)) == Reply.CONNECTION_REFUSED


@on_loop
async def test_a_network_that_cannot_be_reached_is_reply_3() -> None:
    with new_server() as server:
        # TCP knows no multicast: the kernel refuses before a packet is sent.
        assert await reply_to(server, request(("ff0e::1", 80))) == Reply.NETWORK_UNREACHABLE


@on_loop
async def test_bind_and_forbidden_udp_are_reply_7() -> None:
    with new_server(udp=False) as server:
        assert await reply_to(server, request(("127.0.0.1", 80), command=2)) == Reply.COMMAND_NOT_SUPPORTED
        assert await reply_to(server, request(("0.0.0.0", 0), command=3)) == Reply.COMMAND_NOT_SUPPORTED


@on_loop
async def test_connects_to_a_name() -> None:
    async with tcp_server(echo) as (_, port):
        with new_server() as server:
            name = b"127.0.0.1"  # a name as far as SOCKS is concerned: no resolver needed
            assert await reply_to(server, b"\5\1\0\3" + bytes((len(name),)) + name + struct.pack(">H", port)) == 0


@on_loop
async def test_a_name_that_does_not_exist_is_reply_4() -> None:
    with new_server() as server:
        assert await reply_to(server, b"\5\1\0\3\7\xffbad..x\0\x50") == Reply.HOST_UNREACHABLE


@on_loop
async def test_garbage_closes_the_connection() -> None:
    with new_server() as server:
        async with client(server) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
            assert await reader.read() == b""


@on_loop
async def test_a_reset_of_the_target_is_a_reset_for_the_client() -> None:
    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with tcp_server(session) as target:
        with new_server() as server:
            async with client(server) as (reader, writer):
                writer.write(GREETING + request(target) + b"x")
                await reader.readexactly(12)
                with pytest.raises(ConnectionResetError):
                    await reader.read()


@asynccontextmanager
async def association(server: SocksServer) -> AsyncIterator[socket.socket]:
    """A UDP socket connected to the relay of an association, open for as long as the block runs."""
    async with client(server) as (reader, writer):
        writer.write(GREETING + request(("0.0.0.0", 0), command=3))
        answer = await reader.readexactly(12)
        assert answer[3] == Reply.SUCCEEDED
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect((socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big")))
            yield sock


async def receive(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 65536)


@on_loop
async def test_relays_datagrams_of_both_ip_versions() -> None:
    with new_server() as server:
        async with association(server) as sock, udp_echo() as v4, udp_echo("::1") as v6:
            for host, port in (v4, v6, v4):
                datagram = encode_udp_header(packed(host), port) + b"hello"
                sock.send(datagram)
                assert await receive(sock) == datagram


@on_loop
async def test_relays_a_datagram_to_a_name() -> None:
    with new_server() as server:
        async with association(server) as sock, udp_echo() as (host, port):
            sock.send(b"\0\0\0\3\x09127.0.0.1" + struct.pack(">H", port) + b"hello")
            assert await receive(sock) == encode_udp_header(packed(host), port) + b"hello"


@on_loop
async def test_the_largest_datagram_travels_in_fragments_both_ways() -> None:
    payload = os.urandom(65_507)
    with new_server() as server:
        async with association(server) as sock, udp_echo() as (host, port):
            for part in split_datagram(encode_udp_header(packed(host), port), memoryview(payload), 40_000):
                sock.sendmsg(part)
            fragments = [await receive(sock), await receive(sock)]
    headers = [parse_udp_header(memoryview(fragment)) for fragment in fragments]
    assert [header[0] for header in headers if header] == [1, 0x82]
    assert b"".join(fragment[10:] for fragment in fragments) == payload


@on_loop
async def test_malformed_datagrams_do_no_harm() -> None:
    with new_server() as server:
        async with association(server) as sock, udp_echo() as (host, port):
            for garbage in (b"", b"\0", b"\0\0\0\1", b"\0\0\0\x09" + bytes(20), b"\0\0\0\3\xff"):
                sock.send(garbage)
            datagram = encode_udp_header(packed(host), port) + b"hello"
            sock.send(datagram)
            assert await receive(sock) == datagram


@on_loop
async def test_an_association_ends_with_its_control_connection() -> None:
    with new_server() as server:
        async with client(server) as (reader, writer):
            writer.write(GREETING + request(("0.0.0.0", 0), command=3))
            relay_port = int.from_bytes((await reader.readexactly(12))[10:], "big")
            writer.write_eof()
            assert await reader.read() == b""
        assert not server.sessions
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", relay_port))
            sock.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)


def test_runs_as_a_process() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"secret\n")
    os.close(write_end)
    command = [sys.executable, "-m", "engine.demo.socks_server", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--user", "me", "--password-fd", str(read_end)],
        pass_fds=(read_end,),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(read_end)
        assert process.stdout is not None
        word, _, endpoint = process.stdout.readline().strip().partition(" ")
        assert word == "listening"
        host, _, port = endpoint.rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"\5\1\2\1\2me\6secret")
            answer = b""
            while len(answer) < 4:
                answer += sock.recv(4 - len(answer))
            assert answer == b"\5\2\1\0"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
