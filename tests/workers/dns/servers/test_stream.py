"""TCP, TLS and HTTPS servers on loopback: connections are shared, kept, and replaced; what fails says why."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.certificates import Certificate, make_certificate
from tests.support.loop import on_loop, until
from tests.support.peers import Endpoint, closed_port
from tests.workers.dns.messages import ask, reply, texts
from tests.workers.dns.servers.peers import answer_a, at_once, closed, doh_server, framed_server, socket_to
from workers.dns import ServerFailed
from workers.dns.servers import stream
from workers.dns.servers.framed import FramedConnection
from workers.dns.servers.https import HttpsConnection
from workers.dns.servers.stream import StreamServer, tls_context
from workers.stack import Refusal
from workers.upstream import DestinationRefused

NAME = "dns.example"
EXPECTED = ["example.com. 300 A 192.0.2.1"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"), f"DNS:{NAME}")


def dial(endpoint: Endpoint) -> Callable[[], Awaitable[socket.socket]]:
    async def connect() -> socket.socket:
        try:
            return await socket_to(endpoint)
        except OSError as error:
            raise DestinationRefused("nobody is there", Refusal.REFUSED) from error

    return connect


def framed(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> StreamServer:
    loop = asyncio.get_running_loop()
    return StreamServer(loop, "test", dial(endpoint), lambda: FramedConnection(loop), tls=tls, tls_name=NAME)


def https(endpoint: Endpoint, tls: ssl.SSLContext) -> StreamServer:
    loop = asyncio.get_running_loop()
    make = lambda: HttpsConnection(loop, NAME, "/dns-query")  # noqa: E731
    return StreamServer(loop, "test", dial(endpoint), make, tls=tls, tls_name=NAME)


async def failure(server: StreamServer) -> str:
    with pytest.raises(ServerFailed) as caught:
        await server.exchange(ask())
    await closed(server)
    return str(caught.value)


@on_loop
async def test_questions_share_one_connection() -> None:
    async with framed_server(at_once) as peer:
        server = framed(peer.endpoint)
        answers = await asyncio.gather(*(server.exchange(ask()) for _ in range(50)))
        assert [texts(answer) for answer in answers] == [EXPECTED] * 50
        assert peer.connections == 1
        assert len({question[:2] for question in peer.questions}) == 50
        await closed(server)


@on_loop
async def test_answers_come_in_any_order() -> None:
    def backwards(questions: list[bytes]) -> list[bytes]:
        if len(questions) < 10:
            return []
        answers = [reply(question, "example.com. 1 IN TXT " + question[:2].hex()) for question in reversed(questions)]
        questions.clear()
        return answers

    async with framed_server(backwards) as peer:
        server = framed(peer.endpoint)
        answers = await asyncio.gather(*(server.exchange(ask()) for _ in range(10)))
        assert all(answer[:2].hex() in texts(answer)[0] for answer in answers)
        assert len({answer[:2] for answer in answers}) == 10
        await closed(server)


@on_loop
async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    async with framed_server(at_once) as peer:
        server = framed(peer.endpoint)
        await server.exchange(ask())
        peer.hang_up()
        assert texts(await server.exchange(ask())) == EXPECTED
        assert peer.connections == 2
        await closed(server)


@on_loop
async def test_a_kept_connection_that_is_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "REUSED_TIMEOUT", 0.05)

    def once(questions: list[bytes]) -> list[bytes]:
        return at_once(questions) if peer.connections == 2 or len(peer.questions) == 1 else []

    async with framed_server(once) as peer:
        server = framed(peer.endpoint)
        await server.exchange(ask())
        assert texts(await server.exchange(ask())) == EXPECTED
        assert (peer.connections, len(peer.questions)) == (2, 3)
        await closed(server)


@on_loop
async def test_connection_is_closed_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FramedConnection, "idle_timeout", 0.01)
    async with framed_server(at_once) as peer:
        server = framed(peer.endpoint)
        await server.exchange(ask())
        await until(lambda: not peer.writers[0].transport.is_closing() and server._connection is not None)
        await until(lambda: server._connection is not None and not server._connection.usable)
        await closed(server)


@on_loop
async def test_a_server_that_hangs_up_without_an_answer_fails() -> None:
    def hang_up(questions: list[bytes]) -> list[bytes]:
        peer.hang_up()
        return []

    async with framed_server(hang_up) as peer:
        assert "closed the connection" in await failure(framed(peer.endpoint))


@on_loop
async def test_a_frame_that_is_no_message_ends_the_connection() -> None:
    async with framed_server(lambda questions: [b"short"]) as peer:
        assert "closed the connection" in await failure(framed(peer.endpoint))


@on_loop
async def test_nobody_listens() -> None:
    with closed_port() as endpoint:
        assert "nobody is there" in await failure(framed(endpoint))


@on_loop
async def test_who_gives_up_leaves_the_others_alone() -> None:
    def second_only(questions: list[bytes]) -> list[bytes]:
        return at_once(questions) if len(questions) == 2 else []

    async with framed_server(second_only) as peer:
        server = framed(peer.endpoint)
        first = asyncio.ensure_future(server.exchange(ask()))
        await until(lambda: len(peer.questions) == 1)
        first.cancel()
        assert texts(await server.exchange(ask())) == EXPECTED
        await closed(server)


@on_loop
async def test_tls(certificate: Certificate) -> None:
    async with framed_server(at_once, tls=certificate.context("dot")) as peer:
        server = framed(peer.endpoint, tls_context("dot", certificate=certificate.pem, insecure=False))
        assert texts(await server.exchange(ask())) == EXPECTED
        await closed(server)


@on_loop
async def test_tls_with_a_certificate_that_nobody_trusts(certificate: Certificate) -> None:
    async with framed_server(at_once, tls=certificate.context("dot")) as peer:
        reason = await failure(framed(peer.endpoint, tls_context("dot", certificate=None, insecure=False)))
        assert f"no certificate for {NAME}" in reason
        insecure = framed(peer.endpoint, tls_context("dot", certificate=None, insecure=True))
        assert texts(await insecure.exchange(ask())) == EXPECTED
        await closed(insecure)


@on_loop
async def test_tls_with_a_certificate_for_another_name(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "DNS:other.example")
    async with framed_server(at_once, tls=other.context("dot")) as peer:
        reason = await failure(framed(peer.endpoint, tls_context("dot", certificate=other.pem, insecure=False)))
        assert f"no certificate for {NAME}" in reason


@on_loop
async def test_https(certificate: Certificate) -> None:
    async with doh_server(certificate.context("h2")) as peer:
        server = https(peer.endpoint, tls_context("h2", certificate=certificate.pem, insecure=False))
        answers = await asyncio.gather(*(server.exchange(ask(ident=ident)) for ident in range(300)))
        assert [texts(answer) for answer in answers] == [EXPECTED] * 300
        assert len(peer.connections) == 1
        assert peer.bodies[0] == ask(ident=0), "equal questions are equal requests"
        request = peer.requests[0]
        assert (request[":method"], request[":path"], request[":authority"]) == ("POST", "/dns-query", NAME)
        assert request["content-type"] == request["accept"] == "application/dns-message"
        assert peer.most_streams <= 100
        await closed(server)


@on_loop
async def test_https_keeps_to_the_streams_that_the_server_allows(certificate: Certificate) -> None:
    async with doh_server(certificate.context("h2"), streams_max=3) as peer:
        server = https(peer.endpoint, tls_context("h2", certificate=certificate.pem, insecure=False))
        await server.exchange(ask())  # by then its settings are known
        answers = await asyncio.gather(*(server.exchange(ask()) for _ in range(50)))
        assert [texts(answer) for answer in answers] == [EXPECTED] * 50
        assert peer.most_streams <= 3
        await closed(server)


@on_loop
async def test_https_with_an_error_status(certificate: Certificate) -> None:
    async with doh_server(certificate.context("h2"), status=503) as peer:
        context = tls_context("h2", certificate=certificate.pem, insecure=False)
        assert "HTTP status 503" in await failure(https(peer.endpoint, context))


@on_loop
async def test_https_with_an_endless_answer(certificate: Certificate) -> None:
    async with doh_server(certificate.context("h2"), lambda question: bytes(65536)) as peer:
        context = tls_context("h2", certificate=certificate.pem, insecure=False)
        assert "longer than a DNS message" in await failure(https(peer.endpoint, context))


@on_loop
async def test_https_without_http2(certificate: Certificate) -> None:
    async with framed_server(at_once, tls=certificate.context("http/1.1")) as peer:
        context = tls_context("h2", certificate=certificate.pem, insecure=False)
        assert "does not speak HTTP/2" in await failure(https(peer.endpoint, context))


@on_loop
async def test_https_goes_on_over_a_new_connection_after_goaway(certificate: Certificate) -> None:
    async with doh_server(certificate.context("h2")) as peer:
        server = https(peer.endpoint, tls_context("h2", certificate=certificate.pem, insecure=False))
        await server.exchange(ask())
        peer.connections[0].http.close_connection()
        peer.connections[0].flush()
        await until(lambda: server._connection is not None and not server._connection.usable)
        assert texts(await server.exchange(ask())) == EXPECTED
        assert len(peer.connections) == 2
        await closed(server)


@on_loop
async def test_https_question_that_nobody_waits_for_is_cancelled(certificate: Certificate) -> None:
    async with doh_server(certificate.context("h2"), lambda question: None) as peer:
        server = https(peer.endpoint, tls_context("h2", certificate=certificate.pem, insecure=False))
        asking = asyncio.ensure_future(server.exchange(ask()))
        await until(lambda: len(peer.bodies) == 1)
        asking.cancel()
        peer.handler = answer_a
        assert texts(await server.exchange(ask())) == EXPECTED
        assert len(peer.connections) == 1
        await closed(server)
