"""CONNECT through proxies: the embedded SOCKS5 server, a real v2ray (HTTP, SOCKS4a), and scripted answers for each error."""

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator

import pytest

from engine.demo.socks_server import SocksServer
from shared.config import DialConfig, ProxyConfig
from shared.metrics import CELLS
from tests.support.loop import on_loop
from tests.support.peers import Endpoint, closed_port, echo, script, tcp_server
from workers.stack import Refusal
from workers.upstream import DestinationRefused, ProxyFailed, UpstreamError
from workers.upstream.sockets import Sockets
from workers.upstream.socks import Dialer, SocksUpstream


def upstream(
    endpoint: Endpoint, kind: str = "socks5", timeout: float = 10.0, mark: int | None = None, **credentials: str
) -> SocksUpstream:
    host, port = endpoint
    proxy = ProxyConfig(kind=kind, host=host, port=port, addresses=(host,), **credentials)  # type: ignore[arg-type]
    sockets = Sockets(asyncio.get_running_loop(), DialConfig(connect_timeout=timeout), [0] * CELLS, mark=mark)
    return SocksUpstream(Dialer(sockets, proxy))


async def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send `data`, close our side, and return all that comes until the other side is closed too."""
    with sock:
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


async def failure(upstream: SocksUpstream, target: Endpoint = ("203.0.113.1", 80)) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await upstream.connect(*target)
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@on_loop
async def test_connects_through_socks5(host: str) -> None:
    loop = asyncio.get_running_loop()
    async with tcp_server(echo, host) as target:
        with SocksServer(loop, host, 0) as server:
            sock = await upstream(server.endpoint).connect(*target)
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert await exchange(sock, b"hello") == b"hello"


@on_loop
async def test_gives_the_password_when_asked() -> None:
    async with tcp_server(echo) as target:
        with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0, credentials=(b"me", b"secret")) as server:
            sock = await upstream(server.endpoint, username="me", password="secret").connect(*target)
            assert await exchange(sock, b"x" * 100_000) == b"x" * 100_000


@pytest.mark.parametrize(
    "credentials", [{}, {"username": "me", "password": "wrong"}, {"username": "mé", "password": "ü"}]
)
@on_loop
async def test_refused_credentials_are_the_proxys_failure(credentials: dict[str, str]) -> None:
    with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0, credentials=(b"me", b"secret")) as server:
        error = await failure(upstream(server.endpoint, **credentials))
    assert isinstance(error, ProxyFailed)
    assert error.refusal is Refusal.NET_UNREACHABLE
    assert "wrong" not in str(error)


@on_loop
async def test_a_refused_destination_is_refused() -> None:
    with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0) as server, closed_port() as target:
        error = await failure(upstream(server.endpoint), target)
    assert isinstance(error, DestinationRefused)
    assert error.refusal is Refusal.REFUSED


SOCKS5_GREETING = (3, b"\5\0")
SOCKS5_REQUEST = 10  # bytes, to an IPv4 address


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (1, Refusal.REFUSED),
        (2, Refusal.PROHIBITED),
        (3, Refusal.NET_UNREACHABLE),
        (4, Refusal.HOST_UNREACHABLE),
        (5, Refusal.REFUSED),
        (6, Refusal.HOST_UNREACHABLE),
        (7, Refusal.REFUSED),
        (8, Refusal.REFUSED),
    ],
)
@on_loop
async def test_socks5_reply_codes(code: int, refusal: Refusal) -> None:
    async with tcp_server(script(SOCKS5_GREETING, (SOCKS5_REQUEST, bytes((5, code, 0, 1)) + bytes(6)))) as proxy:
        error = await failure(upstream(proxy))
    assert isinstance(error, DestinationRefused)
    assert error.refusal is refusal


@pytest.mark.parametrize("bound", [bytes((1, *range(6))), bytes((4, *range(18))), b"\3\0\0\1", b"\3\4name\0\1"])
@pytest.mark.parametrize("size", [1, 4, 100])
@on_loop
async def test_what_the_server_says_behind_the_socks5_reply_is_not_lost(bound: bytes, size: int) -> None:
    answer = b"\5\0\0" + bound + b"220 the server speaks first\r\n"

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\5\0")
        await reader.readexactly(SOCKS5_REQUEST)
        for at in range(0, len(answer), size):
            writer.write(answer[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)

    async with tcp_server(session) as proxy:
        sock = await upstream(proxy).connect("203.0.113.1", 25)
        assert await exchange(sock, b"") == b"220 the server speaks first\r\n"


@pytest.mark.parametrize("answer", [b"\4\0\0\1" + bytes(6), b"\5\0\0\2" + bytes(18)])
@on_loop
async def test_what_answers_a_request_with_something_else_has_failed(answer: bytes) -> None:
    async with tcp_server(script(SOCKS5_GREETING, (SOCKS5_REQUEST, answer))) as proxy:
        assert isinstance(await failure(upstream(proxy)), ProxyFailed)


@pytest.mark.parametrize(
    ("status", "kind", "refusal"),
    [
        ("403 Forbidden", DestinationRefused, Refusal.PROHIBITED),
        ("407 Proxy Authentication Required", ProxyFailed, Refusal.NET_UNREACHABLE),
        ("502 Bad Gateway", DestinationRefused, Refusal.HOST_UNREACHABLE),
        ("503 Service Unavailable", DestinationRefused, Refusal.REFUSED),
        ("504 Gateway Timeout", DestinationRefused, Refusal.HOST_UNREACHABLE),
    ],
)
@on_loop
async def test_http_status_codes(status: str, kind: type[UpstreamError], refusal: Refusal) -> None:
    async with tcp_server(script((1, f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()))) as proxy:
        error = await failure(upstream(proxy, "http"))
    assert isinstance(error, kind)
    assert error.refusal is refusal


@pytest.mark.parametrize(
    ("code", "kind"), [(0x5B, DestinationRefused), (0x5C, ProxyFailed), (0x5D, ProxyFailed), (0x00, ProxyFailed)]
)
@on_loop
async def test_socks4_reply_codes(code: int, kind: type[UpstreamError]) -> None:
    async with tcp_server(script((9, bytes((0, code)) + bytes(6)))) as proxy:
        assert isinstance(await failure(upstream(proxy, "socks4")), kind)


@on_loop
async def test_a_proxy_that_hangs_up_on_the_request_has_refused_the_destination() -> None:
    # As OpenSSH does.
    async with tcp_server(script(SOCKS5_GREETING, (SOCKS5_REQUEST, b""))) as proxy:
        assert (await failure(upstream(proxy))).refusal is Refusal.REFUSED


@pytest.mark.parametrize("answer", [b"", b"\4\0", b"\5\xff", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
@on_loop
async def test_what_does_not_speak_socks5_has_failed(answer: bytes) -> None:
    async with tcp_server(script((3, answer))) as proxy:
        assert isinstance(await failure(upstream(proxy)), ProxyFailed)


@on_loop
async def test_a_proxy_that_is_not_there_has_failed() -> None:
    with closed_port() as proxy:
        error = await failure(upstream(proxy))
    assert isinstance(error, ProxyFailed)
    assert "Connection refused" in str(error)


@on_loop
async def test_the_next_address_is_tried() -> None:
    async with tcp_server(echo, "::1") as target:
        with SocksServer(asyncio.get_running_loop(), "::1", 0) as server:
            proxy = ProxyConfig(kind="socks5", host="p", port=server.endpoint[1], addresses=("127.0.0.1", "::1"))
            sockets = Sockets(asyncio.get_running_loop(), DialConfig(), [0] * CELLS, mark=None)
            sock = await SocksUpstream(Dialer(sockets, proxy)).connect(*target)
            assert await exchange(sock, b"second") == b"second"


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Session: read, and never answer."""
    await reader.read()


async def silent_after_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Session: a SOCKS5 proxy whose destination never answers."""
    await reader.readexactly(3)
    writer.write(b"\5\0")
    await reader.read()


@on_loop
async def test_a_destination_that_does_not_answer_is_unreachable() -> None:
    async with tcp_server(silent_after_greeting) as proxy:
        error = await failure(upstream(proxy, timeout=0.05))
    assert isinstance(error, DestinationRefused)
    assert error.refusal is Refusal.HOST_UNREACHABLE


@on_loop
async def test_a_proxy_that_does_not_answer_has_failed() -> None:
    async with tcp_server(silent) as proxy:
        assert isinstance(await failure(upstream(proxy, timeout=0.05)), ProxyFailed)


@on_loop
async def test_the_socket_is_marked_before_it_connects() -> None:
    async with tcp_server(echo) as target:
        with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0) as server:
            sock = await upstream(server.endpoint, mark=0x7E57).connect(*target)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x7E57
            sock.close()


@pytest.mark.parametrize("split", [1, 20, 38, 39, 40, 41, 1000])
@on_loop
async def test_what_the_server_says_behind_the_http_answer_is_not_lost(split: int) -> None:
    answer = b"HTTP/1.1 200 Connection established\r\n\r\n220 the server speaks first\r\n"

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer[:split])
        await writer.drain()
        writer.write(answer[split:])

    async with tcp_server(session) as proxy:
        sock = await upstream(proxy, "http").connect("203.0.113.1", 25)
        assert await exchange(sock, b"") == b"220 the server speaks first\r\n"


@contextlib.asynccontextmanager
async def v2ray(kind: str) -> AsyncIterator[Endpoint]:
    """A v2ray with one inbound; it lets everything out directly."""
    with closed_port() as endpoint:
        pass
    config = {
        "log": {"loglevel": "warning"},
        "inbounds": [{"listen": endpoint[0], "port": endpoint[1], "protocol": kind, "settings": {}}],
        "outbounds": [{"protocol": "freedom", "settings": {}}],
    }
    process = await asyncio.create_subprocess_exec(
        "v2ray", "run", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(config).encode())
        process.stdin.write_eof()
        while b"started" not in (line := await process.stdout.readline()):
            assert line, "v2ray has ended"
        yield endpoint
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.skipif(shutil.which("v2ray") is None, reason="v2ray is not installed")
@pytest.mark.parametrize(("kind", "inbound"), [("http", "http"), ("socks4", "socks"), ("socks5", "socks")])
@on_loop
async def test_connects_through_v2ray(kind: str, inbound: str) -> None:
    async with tcp_server(echo) as target, v2ray(inbound) as proxy:
        sock = await upstream(proxy, kind).connect(*target)
        assert await exchange(sock, b"hello " * 50_000) == b"hello " * 50_000
