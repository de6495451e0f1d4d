"""Queries over a connection of the stack, from a TCP client of the test's own."""

import asyncio
from time import monotonic
from typing import Any

import pytest

from shared.rules.flow import Ends
from tests.support.loop import on_loop, until
from tests.support.stack_bed import Bed
from tests.support.tcp_peer import TcpPeer
from tests.workers.dns.messages import ask, read, reply, texts
from workers.dns import Respond
from workers.relay import dns_stream
from workers.relay.dns_stream import DnsStream
from workers.stack import CloseReason
from workers.stack.tcp.connection import TcpConnection


class Service:
    """Collects queries; a test answers them."""

    def __init__(self) -> None:
        self.queries: list[tuple[bytes, Ends, Respond]] = []

    def ask(self, data: bytes, asker: Ends, respond: Respond) -> None:
        self.queries.append((data, asker, respond))


class Flow:
    """What a DnsStream stands in for."""

    def __init__(self, connection: TcpConnection) -> None:
        self.connection = connection
        self.closed: CloseReason | None = None

    def on_closed(self, reason: CloseReason) -> None:
        self.closed = reason


class World(Bed):
    """A stack all of whose connections are flows of the DNS service."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.service = Service()
        self.flows: list[Flow] = []
        self.now = monotonic()  # the flows know no other clock

    def _on_syn(self, connection: TcpConnection) -> None:
        flow = Flow(connection)
        ends = Ends(
            "tcp", connection.source, connection.source_port, connection.destination, connection.destination_port
        )
        DnsStream(connection, flow, ends, self.service)  # type: ignore[arg-type]
        self.flows.append(flow)

    def connected(self) -> TcpPeer:
        client = TcpPeer(destination="203.0.113.10")
        client.connect(self.now)
        self.exchange(client)
        return client

    def end(self) -> None:
        for flow in self.flows:
            flow.connection.abort(self.now)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def messages(received: bytes) -> list[bytes]:
    found = []
    while received:
        size = int.from_bytes(received[:2], "big")
        found.append(bytes(received[2 : 2 + size]))
        received = received[2 + size :]
    return found


@on_loop
async def test_queries_come_in_any_pieces_and_answers_in_any_order() -> None:
    world = World()
    client = world.connected()
    queries = [ask(f"name{n}.example", ident=n) for n in range(3)]
    for byte in b"".join(map(framed, queries)):
        client.write(bytes((byte,)), world.now)
        world.exchange(client)
    assert [data for data, _, _ in world.service.queries] == queries
    asker = world.service.queries[0][1]
    assert (asker.network, asker.source, asker.source_port) == ("tcp", client.source, client.port)
    assert (asker.destination, asker.destination_port) == (client.destination, 443)
    for data, _, respond in reversed(world.service.queries):
        respond(reply(data, "x.example. 1 IN TXT " + "y" * 200))
    world.exchange_from(client)
    assert [read(message).id for message in messages(client.received)] == [2, 1, 0]
    world.end()


@on_loop
async def test_half_closed_client_gets_its_answers_and_then_the_end() -> None:
    world = World()
    client = world.connected()
    client.write(framed(ask()), world.now)
    client.close(world.now)
    world.exchange(client)
    assert not client.eof
    data, _, respond = world.service.queries[0]
    respond(reply(data, "example.com. 1 IN A 192.0.2.1"))
    world.exchange_from(client)
    assert texts(messages(client.received)[0]) == ["example.com. 1 A 192.0.2.1"]
    assert client.eof
    assert world.flows[0].closed is not None


@on_loop
async def test_answer_after_the_end_goes_nowhere() -> None:
    world = World()
    client = world.connected()
    client.write(framed(ask()), world.now)
    world.exchange(client)
    world.end()
    world.service.queries[0][2](reply(ask()))
    assert world.flows[0].closed is not None


@on_loop
async def test_no_more_queries_are_read_than_may_be_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_stream, "PENDING_MAX", 2)
    world = World()
    client = world.connected()
    for ident in range(20):
        client.write(framed(ask(ident=ident)), world.now)
        world.exchange(client)
    for answered in range(20):
        await until(lambda: len(world.service.queries) > answered)  # noqa: B023
        assert len(world.service.queries) - answered <= 2
        data, _, respond = world.service.queries[answered]
        respond(reply(data))
        await asyncio.sleep(0)
        world.exchange_from(client)
    assert [read(message).id for message in messages(client.received)] == list(range(20))
    world.end()


@on_loop
async def test_answers_that_are_not_taken_stop_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_stream, "OUTPUT_MAX", 40_000)
    world = World(send_buffer=4096)
    client = world.connected()
    client.window = 0
    for ident in range(5):
        client.write(framed(ask(ident=ident)), world.now)
        world.exchange(client)
        if len(world.service.queries) > ident:
            world.service.queries[ident][2](bytes(30_000))
    assert len(world.service.queries) == 2
    world.end()


@on_loop
async def test_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_stream, "IDLE_TIMEOUT", 0.02)
    world = World()
    client = world.connected()
    await until(lambda: bool(world.out))
    world.exchange_from(client)
    assert client.eof
    world.end()
