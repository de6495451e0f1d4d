"""UDP through the embedded server and scripted proxies: mapping, queues, fragments, refusals, and the ends of associations."""

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from engine.demo.socks_server import SocksServer
from shared.config import Policy, ProxyConfig, ProxyOutbound, Resolve, UdpConfig
from shared.metrics import CELLS, Cell
from shared.rules.matcher import Compiler
from shared.wire.socks5 import encode_udp_header
from tests.support.dns import worker_dns
from tests.support.loop import on_loop, until
from tests.support.peers import Endpoint, closed_port, recvfrom, script, tcp_server, udp_echo
from tests.workers.relay.application import Datagrams
from workers.relay.accounts import Accounts
from workers.relay.loops import LoopWatch
from workers.relay.policy import PolicyInForce
from workers.relay.udp_flow import QUEUE_DATAGRAMS
from workers.relay.udp_relay import UdpRelay
from workers.stack import Refusal
from workers.upstream import ProxyFailed
from workers.upstream import proxy as proxy_module
from workers.upstream.build import Outbounds, Surroundings

APP = (socket.inet_aton("10.0.0.2"), 40000)
OTHER_APP = (socket.inet_aton("10.0.0.2"), 40001)
APP_V6 = (socket.inet_pton(socket.AF_INET6, "fd00::2"), 40000)
FAR = (socket.inet_aton("203.0.113.9"), 53)

Address = tuple[bytes, int]


@dataclass
class Setup:
    """A UdpRelay and what it has said."""

    relay: UdpRelay
    app: Datagrams
    counters: list[int]
    support: list[bool]
    failures: list[ProxyFailed]

    def send(self, source: Address, destination: Address, payload: bytes) -> None:
        """A datagram of the application; the packet it lay in is overwritten afterwards."""
        packet = bytearray(payload)
        self.relay.on_datagram(4 if len(source[0]) == 4 else 6, *source, *destination, memoryview(packet))
        packet[:] = b"\xee" * len(packet)

    async def receive(self) -> tuple[Address, Address, bytes]:
        """The next datagram that reaches the application: peer, application's endpoint, payload."""
        source, source_port, destination, destination_port, payload = await self.app.received.get()
        return (source, source_port), (destination, destination_port), payload


async def no_names(name: str, how: Resolve) -> Sequence[bytes]:
    raise AssertionError(f"nobody asks for {name}")


@contextmanager
def relay(proxy: Endpoint, kind: str = "socks5", **udp: Any) -> Iterator[Setup]:
    host, port = proxy
    config = ProxyConfig(kind=kind, host=host, port=port, addresses=(host,))  # type: ignore[arg-type]
    app, counters, support, failures = Datagrams(), [0] * CELLS, list[bool](), list[ProxyFailed]()
    loop = asyncio.get_running_loop()
    outbounds = Outbounds(
        Surroundings(
            loop=loop,
            counters=counters,
            mark=None,
            tun=(),
            measures=False,
            look_up=no_names,
            on_udp_support=lambda tag, supported, reason: support.append(supported),
            on_used=lambda tag: None,
            on_measured=lambda group, delays, has_changed: None,
            on_passed_over=lambda found: None,
        )
    )
    policy = PolicyInForce(outbounds, worker_dns(counters), cast(Any, None))
    policy.load(Policy(outbounds=(ProxyOutbound(tag="proxy", proxy=config),)), Compiler())
    accounts = Accounts(counters, lambda message: True)
    udp_relay = UdpRelay(
        loop, policy, UdpConfig(**udp), counters, accounts, failures.append, LoopWatch(counters, print)
    )
    udp_relay.stack = cast(Any, app)
    try:
        yield Setup(udp_relay, app, counters, support, failures)
    finally:
        udp_relay.close()
        assert counters[Cell.UDP_ACTIVE] == 0
        assert counters[Cell.UDP_OPENED] == counters[Cell.UDP_CLOSED]


def server(**options: Any) -> SocksServer:
    return SocksServer(asyncio.get_running_loop(), "127.0.0.1", 0, **options)


def at(endpoint: Endpoint) -> Address:
    host, port = endpoint
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host), port


@pytest.mark.parametrize(("host", "app"), [("127.0.0.1", APP), ("::1", APP_V6)])
@on_loop
async def test_datagrams_go_there_and_back(host: str, app: Address) -> None:
    with server() as proxy, relay(proxy.endpoint) as setup:
        async with udp_echo(host) as peer:
            for payload in (b"first", b"", b"x" * 1400):
                setup.send(app, at(peer), payload)
                assert await setup.receive() == (at(peer), app, payload)
        assert setup.support == [True]


@on_loop
async def test_one_endpoint_has_one_association_whatever_the_destination() -> None:
    with server() as proxy, relay(proxy.endpoint) as setup:
        async with udp_echo() as one, udp_echo() as two:
            for source, peer in ((APP, one), (APP, two), (OTHER_APP, one)):
                setup.send(source, at(peer), b"x")
                assert await setup.receive() == (at(peer), source, b"x")
        assert setup.counters[Cell.UDP_OPENED] == 2
        assert setup.counters[Cell.UDP_ACTIVE] == 2


@on_loop
async def test_any_peer_reaches_the_application() -> None:
    # Endpoint-independent filtering: the application has never sent anything to the second peer.
    with (
        server() as proxy,
        relay(proxy.endpoint) as setup,
        socket.socket(type=socket.SOCK_DGRAM) as known,
        socket.socket(type=socket.SOCK_DGRAM) as stranger,
    ):
        for sock in (known, stranger):
            sock.bind(("127.0.0.1", 0))
        setup.send(APP, at(known.getsockname()), b"here I am")
        _, mapped = await recvfrom(known)
        stranger.sendto(b"hello", mapped)
        assert await setup.receive() == (at(stranger.getsockname()), APP, b"hello")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@on_loop
async def test_the_largest_datagram_goes_there_and_back(host: str) -> None:
    payload = os.urandom(65_507)
    with SocksServer(asyncio.get_running_loop(), host, 0) as proxy, relay(proxy.endpoint) as setup:
        async with udp_echo() as peer:
            for _ in range(2):  # while the association is made, and afterwards
                setup.send(APP, at(peer), payload)
                assert await setup.receive() == (at(peer), APP, payload)


@on_loop
async def test_datagrams_wait_for_the_association_in_order_and_in_bounds() -> None:
    with server() as proxy, relay(proxy.endpoint) as setup:
        async with udp_echo() as peer:
            for n in range(QUEUE_DATAGRAMS + 3):
                setup.send(APP, at(peer), b"%d" % n)
            assert setup.counters[Cell.DROP_UDP_QUEUE] == 3
            received = [(await setup.receive())[2] for _ in range(QUEUE_DATAGRAMS)]
            assert received == [b"%d" % n for n in range(QUEUE_DATAGRAMS)]


@on_loop
async def test_the_queue_is_bounded_in_bytes() -> None:
    with server() as proxy, relay(proxy.endpoint) as setup:
        for _ in range(5):
            setup.send(APP, FAR, bytes(60_000))
        assert setup.counters[Cell.DROP_UDP_QUEUE] == 1


@pytest.mark.parametrize("kind", ["socks5", "http", "socks4"])
@on_loop
async def test_a_proxy_without_udp_is_answered_with_port_unreachable(kind: str) -> None:
    with server(udp=False) as proxy, relay(proxy.endpoint, kind) as setup:
        setup.send(APP, FAR, b"waits")
        assert await setup.app.errors.get() == (Refusal.PORT_UNREACHABLE, *APP, *FAR, b"waits")
        setup.send(OTHER_APP, FAR, b"at once")
        assert setup.app.errors.get_nowait() == (Refusal.PORT_UNREACHABLE, *OTHER_APP, *FAR, b"at once")
        assert setup.counters[Cell.UDP_REFUSED] == 2
        assert setup.counters[Cell.UDP_OPENED] == 1
        assert setup.support == [False]


@on_loop
async def test_udp_is_tried_again_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "UNSUPPORTED_FOR", 0.0)
    with server(udp=False) as proxy, relay(proxy.endpoint) as setup:
        setup.send(APP, FAR, b"x")
        await setup.app.errors.get()
        proxy.udp = True
        async with udp_echo() as peer:
            setup.send(APP, at(peer), b"x")
            assert await setup.receive() == (at(peer), APP, b"x")
        assert setup.support == [False, True]


@on_loop
async def test_a_dead_proxy_is_not_mistaken_for_one_without_udp() -> None:
    with closed_port() as proxy, relay(proxy) as setup:
        setup.send(APP, FAR, b"x")
        assert (await setup.app.errors.get())[0] is Refusal.PORT_UNREACHABLE
        assert setup.support == []
        assert len(setup.failures) == 1
        assert setup.counters[Cell.CONNECT_FAILED] == 1


async def until_closed(setup: Setup, count: int) -> None:
    """Wait for the relay to have closed `count` associations."""
    await until(lambda: setup.counters[Cell.UDP_CLOSED] >= count)


@on_loop
async def test_the_end_of_the_control_connection_ends_the_association() -> None:
    with server() as proxy, relay(proxy.endpoint) as setup:
        async with udp_echo() as peer:
            setup.send(APP, at(peer), b"one")
            await setup.receive()
            for session in tuple(proxy.sessions):
                session.reset()
            await until_closed(setup, 1)
            setup.send(APP, at(peer), b"two")
            assert await setup.receive() == (at(peer), APP, b"two")
        assert setup.counters[Cell.UDP_OPENED] == 2


@on_loop
async def test_a_relay_whose_port_is_closed_ends_the_association() -> None:
    with closed_port() as (_, port):
        reply = b"\5\0\0\1" + bytes(4) + port.to_bytes(2, "big")
        async with tcp_server(script((3, b"\5\0"), (10, reply), (1, b""))) as proxy:
            with relay(proxy) as setup:
                setup.send(APP, FAR, b"x")
                await until_closed(setup, 1)


@on_loop
async def test_an_idle_association_is_closed() -> None:
    with server() as proxy, relay(proxy.endpoint, idle_timeout=0.01) as setup:
        async with udp_echo() as peer:
            setup.send(APP, at(peer), b"x")
            await setup.receive()
            await until_closed(setup, 1)


@on_loop
async def test_the_least_recently_used_association_gives_way() -> None:
    with server() as proxy, relay(proxy.endpoint, max_associations=2) as setup:
        async with udp_echo() as peer:
            for port in (1, 2, 1, 3):
                setup.send((APP[0], port), at(peer), b"x")
                await setup.receive()
            assert setup.counters[Cell.UDP_OPENED] == 3
            setup.send((APP[0], 1), at(peer), b"x")
            await setup.receive()
            assert setup.counters[Cell.UDP_EVICTED] == 1
            assert setup.counters[Cell.UDP_OPENED] == 3  # 1 is still there: 2 was the one that went


@on_loop
async def test_only_datagrams_of_the_applications_ip_version_arrive() -> None:
    mapped = bytes(10) + b"\xff\xff" + FAR[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        reply = b"\5\0\0\1" + socket.inet_aton("127.0.0.1") + udp.getsockname()[1].to_bytes(2, "big")
        async with tcp_server(script((3, b"\5\0"), (10, reply), (1, b""))) as proxy:
            with relay(proxy) as setup:
                setup.send(APP, FAR, b"x")
                datagram, client = await recvfrom(udp)
                assert datagram == encode_udp_header(*FAR) + b"x"
                for answer in (
                    b"",
                    b"\0\0\0\7garbage",
                    b"\0\0\0\3\4host\0\x35name",
                    encode_udp_header(bytes(15) + b"\1", 53) + b"IPv6",
                    encode_udp_header(mapped, 53) + b"IPv4 in IPv6",
                ):
                    udp.sendto(answer, client)
                assert await setup.receive() == (FAR, APP, b"IPv4 in IPv6")
                assert setup.counters[Cell.DROP_UDP_UPSTREAM] == 4
