"""Whether a proxy relays UDP, asked of real SOCKS servers on loopback with a DNS server behind them, or none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.demo.socks_server import SocksServer
from shared.config import DnsConfig, DnsServer, ProxyConfig, ProxyOutbound
from shared.metrics import CELLS, OutboundCell, UdpState
from tests.support.loop import on_loop, until
from tests.support.peers import Endpoint, closed_port
from tests.workers.dns.servers.peers import at_once, framed_server, udp_server
from workers.dns import udp_probe
from workers.dns.udp_probe import UdpProbe, server_to_ask
from workers.upstream import UdpUnsupported
from workers.upstream.proxy import UNVERIFIED, ProxyUpstream


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_probe, "SEND_AGAIN_AFTER", (0.02, 0.02))


class Asked:
    """A probe and what the proxy has told of it."""

    def __init__(self, proxy: Endpoint, server: Endpoint) -> None:
        host, port = proxy
        self.told: list[tuple[bool, str]] = []
        self.known = 0
        self.counters = [0] * CELLS
        config = ProxyConfig(kind="socks5", host=host, port=port, addresses=(host,))
        loop = asyncio.get_running_loop()
        self.proxy = ProxyUpstream(
            ProxyOutbound(tag="proxy", proxy=config),
            loop,
            self.counters,
            0,
            mark=None,
            buffer=bytearray(65536),
            on_udp_support=lambda tag, supported, reason: self.told.append((supported, reason)),
        )
        self.probe = UdpProbe(loop, self.proxy, server, self.note)

    def note(self) -> None:
        self.known += 1

    @property
    def state(self) -> int:
        return self.counters[OutboundCell.UDP]


@asynccontextmanager
async def asked(proxy: Endpoint, server: Endpoint) -> AsyncIterator[Asked]:
    made = Asked(proxy, server)
    try:
        await until(lambda: made.known == 1)
        yield made
    finally:
        made.probe.close()
        for _ in range(5):
            await asyncio.sleep(0)


def answers(query: bytes) -> list[bytes]:
    return [query[:2] + b"\x81\x80" + query[4:]]


@on_loop
async def test_an_answer_verifies_it() -> None:
    with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0) as proxy, udp_server(answers) as server:
        async with asked(proxy.endpoint, server) as made:
            assert (made.told, made.state) == ([(True, "")], UdpState.WORKS)
            assert made.proxy.refuses_udp() is None


@on_loop
async def test_a_proxy_that_refuses_has_none() -> None:
    with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0, udp=False) as proxy, udp_server(answers) as server:
        async with asked(proxy.endpoint, server) as made:
            assert (made.told[0][0], made.state) == (False, UdpState.NONE)
            assert isinstance(made.proxy.refuses_udp(), UdpUnsupported)


@on_loop
async def test_when_only_tcp_answers_it_has_none() -> None:
    async with framed_server(at_once) as server:
        with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0) as proxy:
            async with asked(proxy.endpoint, server.endpoint) as made:
                assert (made.told[0][0], made.state) == (False, UdpState.NONE)
                assert "no answer of 127.0.0.1 comes through them" in made.told[0][1]
                assert isinstance(made.proxy.refuses_udp(), UdpUnsupported)


@on_loop
async def test_when_nobody_answers_it_is_not_verified() -> None:
    with SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0) as proxy, closed_port() as server:
        async with asked(proxy.endpoint, server) as made:
            assert (made.told, made.state) == ([(True, UNVERIFIED)], UdpState.UNVERIFIED)
            assert made.proxy.refuses_udp() is None


def test_the_server_asked_is_the_policys_or_a_public_one() -> None:
    servers = (
        DnsServer(tag="a", kind="tls", server="192.0.2.1"),
        DnsServer(tag="b", kind="udp", server="192.0.2.2"),
        DnsServer(tag="c", kind="tcp", server="192.0.2.3", port=54),
        DnsServer(tag="d", kind="udp", server="name.example"),
    )
    assert server_to_ask(DnsConfig(servers=servers)) == ("192.0.2.2", 53)
    assert server_to_ask(DnsConfig(servers=servers, final="c")) == ("192.0.2.3", 54)
    assert server_to_ask(DnsConfig(servers=(servers[0], servers[3]))) == ("1.1.1.1", 53)
