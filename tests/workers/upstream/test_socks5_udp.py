"""UDP ASSOCIATE against the embedded server and scripted proxies, and the choice of the relay's address."""

import asyncio
import socket

import pytest

from engine.demo.socks_server import SocksServer
from shared.config import DialConfig, ProxyConfig
from shared.metrics import CELLS
from shared.wire.socks5 import encode_udp_header
from tests.support.loop import on_loop
from tests.support.peers import Endpoint, closed_port, script, tcp_server, udp_echo
from workers.upstream import ProxyFailed, UdpUnsupported
from workers.upstream.sockets import Sockets
from workers.upstream.socks import Dialer
from workers.upstream.socks5_udp import Association, associate, relay_address


async def open_association(
    endpoint: Endpoint, kind: str = "socks5", timeout: float = 10.0, name: str | None = None, **credentials: str
) -> Association:
    host, port = endpoint
    proxy = ProxyConfig(kind=kind, host=name or host, port=port, addresses=(host,), **credentials)  # type: ignore[arg-type]
    sockets = Sockets(asyncio.get_running_loop(), DialConfig(connect_timeout=timeout), [0] * CELLS, mark=None)
    return await associate(Dialer(sockets, proxy))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("credentials", [None, (b"me", "geheim-ß".encode())])
@on_loop
async def test_a_datagram_goes_through_and_back(host: str, credentials: tuple[bytes, bytes] | None) -> None:
    loop = asyncio.get_running_loop()
    with SocksServer(loop, host, 0, credentials=credentials) as server:
        async with udp_echo() as (peer, port):
            association = await open_association(server.endpoint, username="me", password="geheim-ß")
            datagram = encode_udp_header(socket.inet_aton(peer), port) + b"hello"
            await loop.sock_sendall(association.relay, datagram)
            assert await loop.sock_recv(association.relay, 1000) == datagram
            assert association.over_ipv6 == (host == "::1")
            association.close()


GREETING = (3, b"\5\0")
REQUEST = 10  # bytes


@pytest.mark.parametrize(
    "answer", [b"\5\7\0\1" + bytes(6), b"\5\1\0\1" + bytes(6), b"\5\x42\0\1" + bytes(6), b"\5\0\0\1" + bytes(6), b""]
)
@on_loop
async def test_a_proxy_that_answers_otherwise_carries_no_udp(answer: bytes) -> None:
    async with tcp_server(script(GREETING, (REQUEST, answer))) as proxy:
        with pytest.raises(UdpUnsupported):
            await open_association(proxy)


@pytest.mark.parametrize("kind", ["http", "socks4"])
@on_loop
async def test_only_socks5_carries_udp(kind: str) -> None:
    with closed_port() as proxy, pytest.raises(UdpUnsupported):
        await open_association(proxy, kind)


@on_loop
async def test_a_proxy_that_is_not_there_has_failed() -> None:
    with closed_port() as proxy, pytest.raises(ProxyFailed):
        await open_association(proxy)


@pytest.mark.parametrize("turn", [(3, b"\5\xff"), (3, b"\5\2"), (3, b"\4\0"), (3, b"")])
@on_loop
async def test_a_proxy_that_does_not_let_us_in_has_failed(turn: tuple[int, bytes]) -> None:
    async with tcp_server(script(turn)) as proxy:
        with pytest.raises(ProxyFailed):
            await open_association(proxy)


@on_loop
async def test_a_wrong_password_is_the_proxys_failure() -> None:
    with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0, credentials=(b"me", b"secret")) as server:
        with pytest.raises(ProxyFailed, match="refuses the user name") as caught:
            await open_association(server.endpoint, username="me", password="hunter2")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (b"\1\x7f\0\0\1", "127.0.0.1"),
        (b"\1\0\0\0\0", "127.0.0.1"),
        (b"\4" + bytes(16), "127.0.0.1"),
        (b"\4" + bytes(15) + b"\1", "::1"),
        (b"\3\x09127.0.0.1", "127.0.0.1"),
        (b"\3\x09proxy.lan", "127.0.0.1"),
    ],
)
@on_loop
async def test_every_form_of_the_relays_address(bound: bytes, expected: str) -> None:
    async with tcp_server(script(GREETING, (REQUEST, b"\5\0\0" + bound + b"\x12\x34"))) as proxy:
        association = await open_association(proxy, name="proxy.lan")
    assert association.relay.getpeername()[:2] == (expected, 0x1234)
    association.close()


@pytest.mark.parametrize(
    ("bound", "proxy", "expected"),
    [
        ("0.0.0.0", "8.8.8.8", "8.8.8.8"),
        ("::", "8.8.8.8", "8.8.8.8"),
        ("8.8.4.4", "8.8.8.8", "8.8.4.4"),  # a pool of relays
        ("10.0.0.5", "8.8.8.8", "8.8.8.8"),  # behind NAT
        ("127.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("fe80::1", "2606:4700::1111", "2606:4700::1111"),
        ("10.0.0.6", "10.0.0.5", "10.0.0.6"),
        ("127.0.0.1", "10.0.0.5", "10.0.0.5"),  # v2ray's default, reached over the LAN
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::ffff:8.8.4.4", "8.8.8.8", "8.8.4.4"),
    ],
)
def test_where_datagrams_are_sent(bound: str, proxy: str, expected: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    assert relay_address(socket.inet_pton(family, bound), proxy) == expected
