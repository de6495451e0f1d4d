"""UDP on loopback: lost, forged, truncated, refused; what UDP cannot do goes over TCP."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from shared.config import DirectOutbound, Resolve
from shared.metrics import CELLS
from tests.support.loop import on_loop
from tests.support.peers import Endpoint
from tests.workers.dns.messages import ask, read, reply, texts
from tests.workers.dns.servers.peers import answer_a, udp_server
from workers.dns import ServerFailed
from workers.dns.servers import udp
from workers.dns.servers.legs import LegPath
from workers.dns.servers.udp import Accepts, Ticket, UdpServer, in_random_case
from workers.upstream import UdpUnsupported
from workers.upstream.direct import DirectUpstream

EXPECTED = ["192.0.2.1"]


def addresses(data: bytes) -> list[str]:
    return [text.split()[-1] for text in texts(data)]


class OverTcp:
    """The same server over TCP: counts what it is asked."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked = 0
        self.fails = fails

    async def exchange(self, message: bytes) -> bytes:
        self.asked += 1
        if self.fails:
            raise ServerFailed("no TCP either")
        return reply(message, "example.com. 300 IN A 192.0.2.7")

    def close(self) -> None:
        pass


def direct(counters: list[int] | None = None) -> DirectUpstream:
    """An outbound past all proxies."""

    async def no_names(name: str, how: Resolve) -> Sequence[bytes]:
        raise AssertionError(f"nobody asks for {name}")

    loop = asyncio.get_running_loop()
    config = DirectOutbound(tag="direct")
    return DirectUpstream(
        config, loop, counters or [0] * CELLS, 0, mark=None, tun=(), buffer=bytearray(65536), look_up=no_names
    )


@contextmanager
def server(
    handler: Callable[[bytes], list[bytes]], tcp: OverTcp | None = None, host: str = "127.0.0.1"
) -> Iterator[UdpServer]:
    with udp_server(handler, host) as (address, port):
        path = LegPath(asyncio.get_running_loop(), direct())
        yield UdpServer(path, tcp or OverTcp(fails=True), address, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@on_loop
async def test_answer_comes_over_udp(host: str) -> None:
    with server(lambda query: [answer_a(query)], host=host) as asked:
        assert addresses(await asked.exchange(ask())) == EXPECTED


@on_loop
async def test_each_question_has_port_identifier_and_spelling_of_its_own() -> None:
    seen: list[bytes] = []

    def note(query: bytes) -> list[bytes]:
        seen.append(query)
        return [answer_a(query)]

    with server(note) as asked:
        for _ in range(20):
            await asked.exchange(ask("a-name-with-many-letters.example.com"))
    assert len({query[:2] for query in seen}) > 15
    assert len({query[12:] for query in seen}) > 15
    assert {query[12:].lower() for query in seen} == {ask("a-name-with-many-letters.example.com")[12:].lower()}


@on_loop
async def test_a_lost_question_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "SEND_AGAIN_AFTER", (0.01, 10.0))
    seen: list[bytes] = []

    def lose_first(query: bytes) -> list[bytes]:
        seen.append(query)
        return [answer_a(query)] if len(seen) == 2 else []

    with server(lose_first) as asked:
        assert addresses(await asked.exchange(ask())) == EXPECTED
    assert seen[0] == seen[1]


@on_loop
async def test_forged_answers_are_passed_over() -> None:
    def forge(query: bytes) -> list[bytes]:
        other_ident = bytes((query[0] ^ 1,)) + query[1:]
        other_name = query[:12] + query[12:].replace(b"m", b"n").replace(b"M", b"N")
        return [b"", b"\0" * 5, *map(answer_a, (other_ident, other_name)), query, answer_a(query)]

    with server(forge) as asked:
        assert addresses(await asked.exchange(ask())) == EXPECTED


@on_loop
async def test_an_answer_spelt_otherwise_is_asked_for_over_tcp() -> None:
    tcp = OverTcp()

    def lower(query: bytes) -> list[bytes]:
        return [answer_a(query[:12] + query[12:].swapcase())]

    with server(lower, tcp) as asked:
        assert addresses(await asked.exchange(ask())) == ["192.0.2.7"]
    assert tcp.asked == 1


@on_loop
async def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    tcp = OverTcp()
    with server(lambda query: [reply(query, flags=0x0200)], tcp) as asked:
        assert addresses(await asked.exchange(ask())) == ["192.0.2.7"]


@on_loop
async def test_an_error_without_question_is_an_answer() -> None:
    with server(lambda query: [query[:2] + b"\x80\x01" + bytes(8)]) as asked:
        assert read(await asked.exchange(ask())).rcode() == 1


@on_loop
async def test_silence_is_left_for_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "SEND_AGAIN_AFTER", (0.01, 0.01))
    doubts: list[None] = []
    with udp_server(lambda query: []) as (address, port):
        path = LegPath(asyncio.get_running_loop(), direct(), lambda: doubts.append(None))
        for fails in False, True:
            asked = UdpServer(path, OverTcp(fails=fails), address, port)
            if fails:
                with pytest.raises(ServerFailed):
                    await asked.exchange(ask())
            else:
                assert addresses(await asked.exchange(ask())) == ["192.0.2.7"]
    assert len(doubts) == 1, "there is doubt about UDP when TCP answers"


@on_loop
async def test_a_closed_port_is_left_for_tcp_at_once() -> None:
    tcp = OverTcp()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint: Endpoint = sock.getsockname()
    path = LegPath(asyncio.get_running_loop(), direct())
    asked = UdpServer(path, tcp, *endpoint)
    assert addresses(await asked.exchange(ask())) == ["192.0.2.7"]


class NoPath:
    """A proxy without UDP."""

    async def open(self, host: str, port: int, accepts: Accepts) -> Ticket:
        raise UdpUnsupported("no UDP")

    def note_silence(self) -> None:
        raise AssertionError("nobody was asked")


@on_loop
async def test_a_proxy_without_udp_is_asked_over_tcp() -> None:
    asked = UdpServer(NoPath(), OverTcp(), "192.0.2.53", 53)
    assert addresses(await asked.exchange(ask())) == ["192.0.2.7"]


@on_loop
async def test_no_tcp_either() -> None:
    asked = UdpServer(NoPath(), OverTcp(fails=True), "192.0.2.53", 53)
    with pytest.raises(ServerFailed, match="no TCP either"):
        await asked.exchange(ask())


def test_random_case_changes_letters_only() -> None:
    name = b"\x05ab-19\x03com\0"
    spelt = {in_random_case(name) for _ in range(2000)}
    assert {text.lower() for text in spelt} == {name}
    assert len(spelt) == 2**5
