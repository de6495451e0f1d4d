"""Flows take the outbound that rules give them, between kernel sockets (world.py): two proxies, direct, block, groups."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from engine.demo.socks_server import SocksServer
from shared import control
from shared.config import (
    BlockOutbound,
    DialConfig,
    DirectOutbound,
    FallbackOutbound,
    HijackDns,
    Match,
    OutboundConfig,
    Policy,
    Reject,
    Resolve,
    Route,
    RouteConfig,
    RouteOptions,
    Rule,
    SelectorOutbound,
    Sniff,
)
from shared.metrics import Cell, OutboundCell, outbound_at
from shared.process import ProcessInfo
from shared.rules.flow import Ends
from shared.rules.matcher import Compiler
from tests.support.loop import on_loop, until
from tests.support.netns import TARGET_V4, TARGET_V6
from tests.support.peers import Endpoint, closed_port, echo, recvfrom, tcp_server, udp_echo
from tests.workers.relay.world import World, network, proxy_outbound
from workers.relay.router import REJECTS_MAX
from workers.relay.services import TakePolicy

pytestmark = pytest.mark.e2e

CURL = ProcessInfo(pid=7, name="curl", path="/usr/bin/curl")
FAKE = "198.18.5.5"
HTTP_REQUEST = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"


def rule(action: Any, **match: Any) -> Rule:
    """A rule; its origin is its own text, so that tests can tell which one it was."""
    return Rule(match=Match(**match), action=action, origin=f"{action.__class__.__name__} {match}")


def to(outbound: str, **match: Any) -> Rule:
    return rule(Route(outbound=outbound), **match)


class Names:
    """A DNS service that knows two things: fake addresses, and what names they and others stand for."""

    def __init__(self, fake: dict[str, str] | None = None, known: dict[str, str] | None = None) -> None:
        self.fake = {socket.inet_aton(address): name for address, name in (fake or {}).items()}
        self.known = known or {}
        self.asked: list[tuple[bytes, Ends]] = []

    def ask(self, query: bytes, ends: Ends, respond: Callable[[bytes], object]) -> None:
        self.asked.append((query, ends))
        respond(query[::-1])

    def answer_at_once(self, query: bytes, destination: bytes, now: float) -> bytes | None:
        return None

    async def look_up(self, name: str, how: Resolve) -> Sequence[bytes]:
        return [socket.inet_aton(self.known[name])]

    def prepare(self, policy: Policy, compiler: Compiler) -> TakePolicy:
        return lambda outbounds, direct, final: None

    def note_outbounds(self) -> None:
        pass

    def name_of(self, address: bytes) -> tuple[str | None, bool]:
        return self.fake.get(address) or None, address in self.fake


class Setup:
    """A world with two proxies, `one` and `two`, and what they have been asked for."""

    def __init__(self, world: World, one: SocksServer, two: SocksServer, policy: Policy) -> None:
        self.world = world
        self.one, self.two = one, two
        self._policy = policy

    def use(self, *rules: Rule) -> None:
        """Have new flows follow these rules."""
        self.world.load(msgspec.structs.replace(self._policy, route=RouteConfig(rules=rules)))

    def who(self) -> list[int]:
        """How many sessions each proxy has now."""
        return [len(self.one.sessions), len(self.two.sessions)]

    async def exchange(self, target: Endpoint, data: bytes = b"hello") -> bytes:
        """Send `data` over TCP, close, and return what comes back."""
        reader, writer = await self.world.connect(target)
        writer.write(data)
        writer.write_eof()
        received = await reader.read()
        writer.close()
        return received

    async def flows(self) -> list[control.FlowView]:
        """What the relay tells of its flows."""
        number = len(self.world.told)
        self.world.relay.list_flows(control.ListFlows(number))

        def answers() -> list[control.Flows]:
            return [m for m in self.world.told if isinstance(m, control.Flows) and m.id == number]

        await until(lambda: bool(answers()) and answers()[-1].last)
        return [view for message in answers() for view in control.decode_views(message.flows)]


@contextlib.asynccontextmanager
async def setup(
    *rules: Rule,
    outbounds: Sequence[OutboundConfig] = (DirectOutbound(tag="direct"), BlockOutbound(tag="block")),
    first: Sequence[OutboundConfig] = (),
    dns: Names | None = None,
    policy: dict[str, Any] | None = None,
    mtu: int = 1500,
) -> AsyncIterator[Setup]:
    """Everything; `first` stand before the two proxies, so that the first of them is the final outbound."""
    loop = asyncio.get_running_loop()
    with (
        network(mtu=mtu) as (client, tun),
        SocksServer(loop, "127.0.0.1", 0) as one,
        SocksServer(loop, "127.0.0.1", 0) as two,
    ):
        made = Policy(
            outbounds=(*first, proxy_outbound(one.endpoint, "one"), proxy_outbound(two.endpoint, "two"), *outbounds),
            route=RouteConfig(rules=rules),
            **(policy or {}),
        )
        with World(client, tun, made, dns=dns) as w:
            yield Setup(w, one, two, made)
            assert w.counters[Cell.CALLBACK_ERRORS] == 0


async def served_by(s: Setup, target: Endpoint, first: bytes = b"") -> str:
    """Connect, send `first` to the echo, and tell by which way: the proxies know their sessions."""
    before = s.who()
    reader, writer = await s.world.connect(target)
    writer.write(first)
    assert await reader.readexactly(len(first)) == first
    after = s.who()
    writer.close()
    await until(lambda: s.who() == before)
    return {(1, 0): "one", (0, 1): "two", (0, 0): "direct"}[after[0] - before[0], after[1] - before[1]]


# outbounds


@on_loop
async def test_rules_choose_among_proxies_and_direct() -> None:
    rules = (
        to("two", ip_cidr=("203.0.113.0/24",), port_range=((1, 65535),), ip_version=4, network=("tcp",)),
        to("direct", ip_version=6),
    )
    async with setup(*rules) as s, tcp_server(echo, TARGET_V4) as v4, tcp_server(echo, TARGET_V6) as v6:
        assert await served_by(s, v4) == "two"
        assert await served_by(s, v6) == "direct"
        s.world.load(Policy(outbounds=(proxy_outbound(s.one.endpoint, "one"),)))
        assert await served_by(s, v4) == "one"


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6])
@on_loop
async def test_every_byte_goes_there_and_back_directly(host: str) -> None:
    data = os.urandom(3 << 20)
    async with setup(to("direct")) as s, tcp_server(echo, host) as target:
        assert await s.exchange(target, data) == data


@on_loop
async def test_direct_tells_the_truth_about_a_closed_port() -> None:
    async with setup(to("direct")) as s:
        with closed_port(TARGET_V4) as target, pytest.raises(ConnectionRefusedError):
            await s.world.connect(target)
        with pytest.raises(OSError) as caught:
            await s.world.connect(("192.0.2.77", 80))
        assert caught.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize("host", ["172.18.0.2", "fd00:18::2"])
@on_loop
async def test_nothing_goes_directly_to_the_tun_itself(host: str) -> None:
    """From a worker it would enter the tun again, and so on for ever."""
    async with setup(to("direct")) as s:
        with pytest.raises(OSError) as caught:
            await s.world.connect((host, 80))
        assert caught.value.errno == errno.EHOSTUNREACH
        with pytest.raises(ConnectionRefusedError):
            await talk(s.world, (host, 53), b"x")


@on_loop
async def test_direct_binds_its_sockets_to_an_interface() -> None:
    for interface, reaches in (("lo", True), ("nothere0", False)):
        direct = DirectOutbound(tag="direct", dial=DialConfig(bind_interface=interface))
        async with (
            setup(to("direct"), outbounds=(direct,)) as s,
            tcp_server(echo, TARGET_V4) as target,
            udp_echo(TARGET_V4) as peer,
        ):
            if reaches:
                assert await s.exchange(target) == b"hello"
                assert await talk(s.world, peer, b"x") == b"x"
            else:
                with pytest.raises(OSError) as caught:
                    await s.world.connect(target)
                assert caught.value.errno == errno.ENETUNREACH
                with pytest.raises(ConnectionRefusedError):
                    await talk(s.world, peer, b"x")


@on_loop
async def test_block_refuses_tcp_and_udp() -> None:
    async with setup(to("block")) as s, tcp_server(echo, TARGET_V4) as target:
        with pytest.raises(ConnectionRefusedError):
            await s.world.connect(target)
        sock = await s.world.udp(target)
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            await recvfrom(sock)
        sock.close()


@on_loop
async def test_proxy_for_one_network_refuses_the_other() -> None:
    async with (
        setup(to("only udp")) as s,
        tcp_server(echo, TARGET_V4) as target,
        udp_echo(TARGET_V4) as peer,
    ):
        only_udp = proxy_outbound(s.one.endpoint, "only udp", network="udp")
        s.world.load(Policy(outbounds=(only_udp,)))
        with pytest.raises(ConnectionRefusedError):
            await s.world.connect(target)
        assert await talk(s.world, peer, b"hi") == b"hi"
        s.world.load(Policy(outbounds=(proxy_outbound(s.one.endpoint, "only tcp", network="tcp"),)))
        assert await served_by(s, target) == "one"
        with pytest.raises(ConnectionRefusedError):
            await talk(s.world, peer, b"hi")


async def talk(world: World, peer: Endpoint, data: bytes) -> bytes:
    """Send a datagram from a new socket and return the answer."""
    sock = await world.udp(peer)
    try:
        sock.send(data)
        return (await recvfrom(sock))[0]
    finally:
        sock.close()


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6])
@on_loop
async def test_datagrams_go_directly_and_back(host: str) -> None:
    async with setup(to("direct"), mtu=65535) as s, udp_echo(host) as peer:
        for size in (0, 1, 1400, 9000, 65_000):
            data = os.urandom(size)
            assert await talk(s.world, peer, data) == data
        assert s.world.counters[Cell.DROP_UDP_UPSTREAM] == 0


@on_loop
async def test_direct_udp_is_one_mapping_for_all_peers() -> None:
    async with setup(to("direct")) as s:
        with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
            for sock in (one, two):
                sock.bind((TARGET_V4, 0))
            application = s.world.new_socket((TARGET_V4, 1), socket.SOCK_DGRAM)
            application.sendto(b"to one", one.getsockname())
            application.sendto(b"to two", two.getsockname())
            _, seen_by_one = await recvfrom(one)
            _, seen_by_two = await recvfrom(two)
            assert seen_by_one == seen_by_two
            with socket.socket(type=socket.SOCK_DGRAM) as stranger:
                stranger.bind((TARGET_V4, 0))
                stranger.sendto(b"from a stranger", seen_by_one)
                assert await recvfrom(application) == (b"from a stranger", stranger.getsockname())
            application.close()


@on_loop
async def test_direct_udp_tells_the_application_of_a_closed_port() -> None:
    async with setup(to("direct")) as s:
        with socket.socket(type=socket.SOCK_DGRAM) as closed:
            closed.bind((TARGET_V4, 0))
            peer = closed.getsockname()
        with pytest.raises(ConnectionRefusedError):
            await talk(s.world, peer, b"anybody?")


@on_loop
async def test_one_endpoint_sends_through_several_outbounds() -> None:
    async with setup() as s, udp_echo(TARGET_V4) as near, udp_echo(TARGET_V4) as far:
        s.use(to("direct", port=(near[1],)), to("two", port=(far[1],)))
        application = s.world.new_socket(near, socket.SOCK_DGRAM)
        for peer in (near, far, near, far):
            application.sendto(b"%05d" % peer[1], peer)
            assert await recvfrom(application) == (b"%05d" % peer[1], peer)
        assert s.who() == [0, 1]
        assert s.world.counters[Cell.UDP_OPENED] == 1
        views = {view.destination_port: view for view in await s.flows()}
        application.close()
        assert {port: view.chain for port, view in views.items()} == {near[1]: ("direct",), far[1]: ("two",)}
        assert all(view.up == view.down == 10 for view in views.values())


@on_loop
async def test_udp_connect_lets_none_but_the_destination_answer() -> None:
    rules = (rule(RouteOptions(udp_connect=True)), to("direct"))
    async with setup(*rules) as s, udp_echo(TARGET_V4) as peer:
        with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as stranger:
            for sock in (one, stranger):
                sock.bind((TARGET_V4, 0))
            application = s.world.new_socket(peer, socket.SOCK_DGRAM)
            application.sendto(b"to one", one.getsockname())
            _, seen = await recvfrom(one)
            stranger.sendto(b"from a stranger", seen)
            one.sendto(b"from one", seen)
            assert await recvfrom(application) == (b"from one", one.getsockname())
            application.sendto(b"x", peer)
            assert await recvfrom(application) == (b"x", peer)
            assert len(await s.flows()) == 2
            application.close()


# reject


@pytest.mark.parametrize("method", ["default", "drop"])
@on_loop
async def test_reject(method: Any) -> None:
    async with setup(rule(Reject(method=method))) as s, tcp_server(echo, TARGET_V4) as target:
        connecting = asyncio.ensure_future(s.world.connect(target))
        cell = Cell.REJECTED if method == "default" else Cell.DROP_RULE
        await until(lambda: s.world.counters[cell] == 1)
        if method == "default":
            with pytest.raises(ConnectionRefusedError):
                await connecting
        else:
            connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connecting
            assert s.world.counters[Cell.TCP_RESETS_SENT] == 0
            assert s.world.counters[Cell.TCP_ACTIVE] == 0


@on_loop
async def test_a_rule_that_rejects_too_often_falls_silent() -> None:
    async with setup(rule(Reject())) as s:
        application = s.world.new_socket((TARGET_V4, 1), socket.SOCK_DGRAM)
        for _ in range(REJECTS_MAX + 5):
            application.sendto(b"x", (TARGET_V4, 9))
        await until(lambda: s.world.counters[Cell.REJECTED] + s.world.counters[Cell.DROP_RULE] == REJECTS_MAX + 5)
        assert s.world.counters[Cell.DROP_RULE] == 5
        assert s.world.counters[Cell.UDP_ACTIVE] == 0
        application.close()


# sniff


@on_loop
async def test_sniffed_name_decides() -> None:
    rules = (rule(Sniff()), to("two", domain=("www.example.com",)))
    async with setup(*rules) as s, tcp_server(echo, TARGET_V4) as target:
        assert await served_by(s, target, HTTP_REQUEST) == "two"
        assert await served_by(s, target, b"\0\1no protocol\r\n") == "one"


@on_loop
async def test_first_bytes_in_pieces_arrive_whole_and_in_order() -> None:
    async with setup(rule(Sniff()), to("two", protocol=("http",))) as s, tcp_server(echo, TARGET_V4) as target:
        reader, writer = await s.world.connect(target)
        data = HTTP_REQUEST + os.urandom(300_000)
        for at in range(20):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(data[20:])
        writer.write_eof()
        assert await reader.read() == data
        assert [view.chain for view in await s.flows()] in ([], [("two",)])
        writer.close()


@on_loop
async def test_silent_client_is_routed_when_the_time_is_up() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello")

    async with setup(rule(Sniff(timeout=0.02)), to("direct")) as s, tcp_server(greet, TARGET_V4) as target:
        reader, writer = await s.world.connect(target)
        assert await reader.read() == b"220 hello"
        writer.close()


@on_loop
async def test_client_that_closes_at_once_is_routed_too() -> None:
    async with setup(rule(Sniff(timeout=30.0)), to("direct")) as s, tcp_server(echo, TARGET_V4) as target:
        assert await s.exchange(target, b"") == b""
        assert await s.exchange(target, b"x") == b"x"


@on_loop
async def test_refused_after_sniffing_is_reset() -> None:
    async with setup(rule(Sniff(timeout=0.01)), to("direct")) as s:
        with closed_port(TARGET_V4) as target:
            reader, writer = await s.world.connect(target)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


@on_loop
async def test_rejected_after_sniffing_is_reset() -> None:
    async with setup(rule(Sniff()), rule(Reject(), protocol=("http",))) as s:
        reader, writer = await s.world.connect((TARGET_V4, 80))
        writer.write(HTTP_REQUEST)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@on_loop
async def test_overridden_destination_is_the_sniffed_name() -> None:
    names = Names(known={"www.example.com": TARGET_V4})
    rules = (rule(Sniff(override_destination=True)), to("direct"))
    async with setup(*rules, dns=names) as s, tcp_server(echo, TARGET_V4) as target:
        assert await s.exchange(("192.0.2.1", target[1]), HTTP_REQUEST) == HTTP_REQUEST


@on_loop
async def test_flow_reset_while_it_is_sniffed_leaves_nothing() -> None:
    async with setup(rule(Sniff(timeout=30.0))) as s:
        _, writer = await s.world.connect((TARGET_V4, 80))
        writer.transport.abort()
        await until(lambda: s.world.counters[Cell.TCP_ACTIVE] == 0)
        assert await s.flows() == []


@on_loop
async def test_sniffed_datagram_decides_and_none_is_lost() -> None:
    query = bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001")  # example.com A
    rules = (rule(Sniff()), to("two", protocol=("dns",)), to("direct"))
    async with setup(*rules) as s, udp_echo(TARGET_V4) as peer:
        assert await talk(s.world, peer, query) == query
        assert s.who() == [0, 1]
        views = await s.flows()
        assert [(view.protocol, view.name, view.chain) for view in views] == [("dns", None, ("two",))]
        assert await talk(s.world, peer, b"\xff" * 40) == b"\xff" * 40
        assert s.who() == [0, 1]


@on_loop
async def test_sniffed_dns_that_is_hijacked_leaves_nothing() -> None:
    query = bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001")
    async with setup(rule(Sniff()), rule(HijackDns(), protocol=("dns",)), dns=Names()) as s:
        assert await talk(s.world, (TARGET_V4, 53), query) == query[::-1]
        assert s.world.counters[Cell.UDP_OPENED] == 0


# DNS


@on_loop
async def test_hijacked_datagram_is_answered_and_leaves_nothing() -> None:
    names = Names()
    async with setup(rule(HijackDns(), port=(53,)), dns=names) as s:
        for _ in range(3):
            assert await talk(s.world, (TARGET_V4, 53), b"question") == b"noitseuq"
        assert s.world.counters[Cell.UDP_OPENED] == 0
        assert [query for query, _ in names.asked] == [b"question"] * 3
        assert names.asked[0][1].destination == socket.inet_aton(TARGET_V4)


@on_loop
async def test_hijacked_stream_is_answered_message_by_message() -> None:
    names = Names()
    questions = [b"question %03d" % n * 40 for n in range(200)]
    wire = b"".join(len(question).to_bytes(2, "big") + question for question in questions)
    for rules in ((rule(HijackDns(), port=(53,)),), (rule(Sniff(timeout=0.01)), rule(HijackDns()))):
        async with setup(*rules, dns=names) as s:
            reader, writer = await s.world.connect((TARGET_V4, 53))
            writer.write(wire[:7])
            await writer.drain()
            writer.write(wire[7:])
            writer.write_eof()
            for question in questions:
                size = int.from_bytes(await reader.readexactly(2), "big")
                assert await reader.readexactly(size) == question[::-1]
            assert await reader.read() == b""
            writer.close()


@on_loop
async def test_name_of_a_fake_address_is_what_rules_see_and_the_proxy_is_asked_for() -> None:
    names = Names(fake={FAKE: "localhost"})
    rules = (to("two", domain_suffix=("localhost",)), to("block"))
    async with setup(*rules, dns=names) as s, tcp_server(echo, "127.0.0.1") as (_, port), udp_echo("127.0.0.1") as peer:
        assert await served_by(s, (FAKE, port)) == "two"
        # The answer comes from where the application has sent to, not from where the name has led.
        assert await talk(s.world, (FAKE, peer[1]), b"by name") == b"by name"
        assert [(view.destination, view.name) for view in await s.flows() if view.network == "udp"] == [
            (FAKE, "localhost")
        ]


@on_loop
async def test_fake_address_whose_name_is_forgotten_is_refused() -> None:
    names = Names(fake={FAKE: ""})
    async with setup(to("direct"), dns=names) as s:
        with pytest.raises(ConnectionRefusedError):
            await s.world.connect((FAKE, 80))
        with pytest.raises(ConnectionRefusedError):
            await talk(s.world, (FAKE, 443), b"x")


@on_loop
async def test_fake_address_goes_directly_by_its_real_one() -> None:
    names = Names(fake={FAKE: "www.example.com"}, known={"www.example.com": TARGET_V4})
    async with setup(to("direct"), dns=names) as s, tcp_server(echo, TARGET_V4) as target, udp_echo(TARGET_V4) as peer:
        assert await s.exchange((FAKE, target[1])) == b"hello"
        assert await talk(s.world, (FAKE, peer[1]), b"by name") == b"by name"


@on_loop
async def test_resolved_name_meets_address_rules() -> None:
    names = Names(fake={FAKE: "nas.home"}, known={"nas.home": "127.0.0.1"})
    rules = (rule(Resolve()), to("direct", ip_is_private=True), to("block"))
    async with setup(*rules, dns=names) as s, tcp_server(echo, "127.0.0.1") as (_, port), udp_echo("127.0.0.1") as peer:
        assert await served_by(s, (FAKE, port)) == "direct"
        assert await talk(s.world, (FAKE, peer[1]), b"x") == b"x"


@on_loop
async def test_overridden_address_and_port() -> None:
    async with setup() as s, tcp_server(echo, TARGET_V4) as target, udp_echo(TARGET_V4) as peer:
        options = RouteOptions(override_address=TARGET_V4, override_port=target[1])
        udp_options = RouteOptions(override_address=TARGET_V4, override_port=peer[1])
        s.use(
            rule(options, network=("tcp",)),
            rule(Route(outbound="direct", options=udp_options), network=("udp",)),
        )
        assert await served_by(s, ("192.0.2.1", 9)) == "one"
        assert await talk(s.world, ("192.0.2.1", 9), b"x") == b"x"


# processes


@on_loop
async def test_process_decides_and_is_asked_for_once_an_endpoint() -> None:
    rules = (to("two", process_name=("curl",)), to("direct"))
    async with setup(*rules) as s, tcp_server(echo, TARGET_V4) as target, udp_echo(TARGET_V4) as peer:
        s.world.processes = {target[1]: (CURL, False), peer[1]: (CURL, False)}
        assert await served_by(s, target) == "two"
        application = s.world.new_socket(peer, socket.SOCK_DGRAM)
        for destination in (peer, (TARGET_V4, 9), peer):
            application.sendto(b"x", destination)
            if destination == peer:
                assert await recvfrom(application) == (b"x", peer)
        asked = [message for message in s.world.told if isinstance(message, control.FindProcess)]
        assert [(message.network, message.destination_port) for message in asked] == [
            ("tcp", target[1]),
            ("udp", peer[1]),
        ]
        application.close()


@on_loop
async def test_flows_of_the_local_proxy_itself_go_out_directly() -> None:
    guarded = {"loop_guard": True}
    async with setup(policy=guarded) as s, tcp_server(echo, TARGET_V4) as own, tcp_server(echo, TARGET_V4) as other:
        s.world.processes = {own[1]: (ProcessInfo(name="v2ray"), True), other[1]: (CURL, False)}
        assert await served_by(s, own) == "direct"
        assert await served_by(s, other) == "one"


@on_loop
async def test_master_that_does_not_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.relay.processes.TIMEOUT", 0.01)
    async with setup(to("two", process_name=("curl",))) as s, tcp_server(echo, TARGET_V4) as target:
        assert await served_by(s, target) == "one"
        assert s.world.counters[Cell.PROCESS_UNKNOWN] == 1


# groups


@on_loop
async def test_fallback_tries_the_next_member_within_the_same_flow() -> None:
    with closed_port() as dead:
        group = FallbackOutbound(tag="group", outbounds=("dead", "two"), retry=0.05)
        async with (
            setup(first=(group, proxy_outbound(dead, "dead"))) as s,
            tcp_server(echo, TARGET_V4) as target,
            udp_echo(TARGET_V4) as peer,
        ):
            assert await served_by(s, target) == "two"
            assert await talk(s.world, peer, b"x") == b"x"
            assert {view.chain for view in await s.flows()} == {("group", "two")}
            assert s.world.counters[outbound_at(1) + OutboundCell.FAILED] == 1, "it was passed over the second time"


@on_loop
async def test_selector_takes_what_the_user_selects() -> None:
    group = SelectorOutbound(tag="group", outbounds=("one", "two"), default="two", interrupt_exist_connections=True)
    async with setup(first=(group,)) as s, tcp_server(echo, TARGET_V4) as target:
        assert await served_by(s, target) == "two"
        reader, writer = await s.world.connect(target)
        s.world.relay.select("group", "one")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert await served_by(s, target) == "one"
        s.world.relay.select("group", "nobody")
        s.world.relay.select("nothing", "one")
        assert await served_by(s, target) == "one"


@on_loop
async def test_tag_of_the_tun_is_what_rules_call_it() -> None:
    rules = (to("two", inbound=("my tun",)), to("block"))
    async with setup(*rules, policy={"inbound": "my tun"}) as s, tcp_server(echo, TARGET_V4) as target:
        assert await served_by(s, target) == "two"


# reload, views


@on_loop
async def test_reload_keeps_flows_and_what_the_user_has_selected() -> None:
    group = SelectorOutbound(tag="group", outbounds=("one", "two"))
    async with setup(first=(group,)) as s, tcp_server(echo, TARGET_V4) as target, udp_echo(TARGET_V4) as peer:
        s.world.relay.select("group", "two")
        reader, writer = await s.world.connect(target)
        application = s.world.new_socket(peer, socket.SOCK_DGRAM)
        application.sendto(b"x", peer)
        await recvfrom(application)
        one, two = proxy_outbound(s.one.endpoint, "one"), proxy_outbound(s.two.endpoint, "two")
        s.world.load(Policy(outbounds=(group, one, two, DirectOutbound(tag="direct"))))
        writer.write(b"still there")
        assert await reader.readexactly(11) == b"still there"
        application.sendto(b"y", peer)
        assert (await recvfrom(application))[0] == b"y"
        assert s.who() == [0, 2]
        writer.close()
        application.close()
        await until(lambda: s.who() == [0, 1])
        assert await served_by(s, target) == "two"


@on_loop
async def test_wrong_policy_leaves_the_old_one_in_force() -> None:
    async with setup() as s, tcp_server(echo, TARGET_V4) as target:
        bad = RouteConfig(rules=(to("direct", domain_regex=("(",)),))
        with pytest.raises(ValueError, match="regular expression"):
            s.world.load(Policy(outbounds=(DirectOutbound(tag="direct"),), route=bad))
        assert await served_by(s, target) == "one"


@on_loop
async def test_flows_are_told_with_rule_chain_and_bytes() -> None:
    async with setup(to("two", port_range=((1, 65535),))) as s, tcp_server(echo, TARGET_V4) as target:
        reader, writer = await s.world.connect(target)
        writer.write(b"hello")
        await reader.readexactly(5)
        (view,) = await s.flows()
        own = writer.get_extra_info("sockname")
        assert (view.network, view.source, view.source_port) == ("tcp", own[0], own[1])
        assert (view.destination, view.destination_port) == target
        assert (view.rule, view.chain) == ("Route {'port_range': ((1, 65535),)}", ("two",))
        assert (view.up, view.down, view.state) == (5, 5, "established")
        writer.close()
        await until(lambda: s.world.counters[Cell.TCP_ACTIVE] == 0)
        cells = outbound_at(1)
        row = s.world.counters[cells : cells + 6]
        assert row == [1, 0, 0, 0, 5, 5]


@on_loop
async def test_flow_is_closed_on_request() -> None:
    async with setup() as s, tcp_server(echo, TARGET_V4) as target, udp_echo(TARGET_V4) as peer:
        reader, writer = await s.world.connect(target)
        application = s.world.new_socket(peer, socket.SOCK_DGRAM)
        application.sendto(b"x", peer)
        await recvfrom(application)
        numbers = {view.network: view.id for view in await s.flows()}
        s.world.relay.close_flow(numbers["udp"])
        assert s.world.counters[Cell.UDP_ACTIVE] == 0
        assert s.world.counters[Cell.TCP_ACTIVE] == 1
        s.world.relay.close_flow(None)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        application.close()
