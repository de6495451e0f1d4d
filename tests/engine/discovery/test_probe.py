"""engine/discovery/probe.py against scripted servers; real proxies are met in tests/e2e/test_discovery.py."""

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from engine.discovery import Access, Speech
from engine.discovery.probe import probe, read_http_head
from shared.config import ProxyConfig
from tests.support.peers import Endpoint, closed_port, script, tcp_server


def speech(
    server: AbstractAsyncContextManager[Endpoint], *, password: str | None = None, timeout: float = 5.0
) -> Speech:
    async def session() -> Speech:
        async with server as (host, port):
            user = None if password is None else "alice"
            return await probe(ProxyConfig("socks5", host, port, user, password), timeout=timeout)

    return asyncio.run(session())


NO_UDP = bytes((5, 7, 0, 1))


def test_socks5_whose_udp_is_refused() -> None:
    assert speech(tcp_server(script((4, b"\x05\x00"), (10, NO_UDP)))) == Speech(socks5=Access.OPEN)


def test_socks5_that_prefers_a_password_and_needs_none() -> None:
    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await reader.readexactly(2)
        methods = await reader.readexactly(greeting[1])
        writer.write(b"\x05\x02" if 2 in methods else b"\x05\x00")
        if 2 not in methods:
            await reader.readexactly(10)
            writer.write(bytes((5, 0, 0, 1)))
        await writer.drain()

    assert speech(tcp_server(session)) == Speech(socks5=Access.OPEN, udp=True)


def test_socks5_that_insists_on_a_password() -> None:
    assert speech(tcp_server(script((3, b"\x05\xff")))) == Speech(socks5=Access.PASSWORD)


def test_socks5_that_refuses_the_password() -> None:
    server = tcp_server(script((4, b"\x05\x02"), (2 + 5 + 1 + 5, b"\x01\x01")))
    assert speech(server, password="wrong") == Speech(socks5=Access.REFUSED)


def test_password_that_socks5_cannot_express_is_not_sent() -> None:
    assert speech(tcp_server(script((4, b"\x05\x02"))), password="x" * 256) == Speech(socks5=Access.REFUSED)


def test_socks4_alone() -> None:
    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readexactly(1)) == b"\x04":
            await reader.readuntil(b"\0")
            writer.write(b"\x00\x5b" + bytes(6))
            await writer.drain()

    assert speech(tcp_server(session)) == Speech(socks4=Access.OPEN)


def test_server_that_hangs_up_speaks_nothing() -> None:
    assert speech(tcp_server(script((1, b"")))).trouble == "speaks no protocol of proxies"


def test_server_that_says_nothing_is_given_up() -> None:
    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    assert speech(tcp_server(session), timeout=0.05).trouble == "speaks no protocol of proxies"


def test_port_without_listener() -> None:
    with closed_port() as (host, port):
        found = asyncio.run(probe(ProxyConfig("socks5", host, port), timeout=5.0))
    assert found == Speech(trouble="nobody listens there")


@pytest.mark.parametrize(
    ("head", "access"),
    [
        (b"HTTP/1.1 200 Connection established", Access.OPEN),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", Access.OPEN),
        (b"HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic", Access.PASSWORD),
        (b"HTTP/1.1 503 Service Unavailable\r\nVia: 1.1 cache (squid/5.7)", Access.OPEN),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12", Access.NO),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Access.NO),
        (b"HTTP/1.1 405 Not Allowed\r\nServer: nginx", Access.NO),
        (b"HTTP/1.1 404 Not Found", Access.NO),
        (b"RTSP/1.0 200 OK", Access.NO),
        (b"HTTP/1.1", Access.NO),
        (b"\x05\xff", Access.NO),
        (b"", Access.NO),
    ],
)
def test_http_proxy_is_told_from_a_web_server(head: bytes, access: Access) -> None:
    assert read_http_head(head, with_credentials=False) is access


def test_http_proxy_that_refuses_the_password() -> None:
    for status in 401, 407:
        assert read_http_head(b"HTTP/1.1 %d No" % status, with_credentials=True) is Access.REFUSED
    assert read_http_head(b"HTTP/1.1 401 No", with_credentials=False) is Access.NO
