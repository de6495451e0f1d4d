"""The fastest member: real fetches over HTTP and HTTPS, choice, tolerance, idleness."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.config import DirectOutbound, UrltestOutbound
from tests.support.loop import on_loop, until
from tests.support.peers import closed_port, script, tcp_server
from tests.workers.upstream.outbounds import Scripted, surroundings
from workers.upstream import ProxyFailed
from workers.upstream.direct import DirectUpstream
from workers.upstream.fetch import FetchFailed, measure
from workers.upstream.urltest import Urltest

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def direct() -> DirectUpstream:
    s = surroundings()
    return DirectUpstream(
        DirectOutbound(tag="direct"),
        s.loop,
        s.counters,
        256,
        mark=None,
        tun=(),
        buffer=bytearray(65536),
        look_up=s.look_up,
    )


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Session: one request, one answer; the path is what is expected."""
    request = await reader.readuntil(b"\r\n\r\n")
    assert request.startswith(b"HEAD /generate_204?x=1 HTTP/1.1\r\nHost: ")
    writer.write(NO_CONTENT)


# fetch


@on_loop
async def test_fetch_over_http() -> None:
    async with tcp_server(answer) as (host, port):
        seconds = await measure(direct(), f"http://{host}:{port}/generate_204?x=1", 5.0, ssl.create_default_context())
        assert 0 < seconds < 5


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key beside it (key.pem)."""
    path = tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(path), "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return path


@on_loop
async def test_fetch_over_https_verifies_the_name(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    trusting = ssl.create_default_context(cafile=str(certificate))
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    url = f"https://127.0.0.1:{port}/generate_204?x=1"
    try:
        assert await measure(direct(), url, 5.0, trusting) > 0
        with pytest.raises(FetchFailed, match="certificate"):
            await measure(direct(), url, 5.0, ssl.create_default_context())
    finally:
        server.close()


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (script((1, b"SSH-2.0-x\r\n")), "does not speak HTTP"),
        (script((1, b"")), "without an answer"),
    ],
)
@on_loop
async def test_fetch_that_gets_no_answer_fails(session: Any, reason: str) -> None:
    async with tcp_server(session) as (host, port):
        with pytest.raises(FetchFailed, match=f"{reason}|reset"):
            await measure(direct(), f"http://{host}:{port}/", 5.0, ssl.create_default_context())


@on_loop
async def test_fetch_gives_up_in_time_and_on_a_dead_outbound() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    tls = ssl.create_default_context()
    async with tcp_server(silent) as (host, port):
        with pytest.raises(FetchFailed, match="no answer within"):
            await measure(direct(), f"http://{host}:{port}/", 0.01, tls)
    with closed_port() as (host, port), pytest.raises(FetchFailed, match="refused"):
        await measure(direct(), f"http://{host}:{port}/", 5.0, tls)
    with pytest.raises(FetchFailed):
        await measure(direct(), "http://127.0.0.1:99999/", 5.0, tls)


# choice


class Member(Scripted):
    """Answers requests after `delay` seconds."""

    def __init__(self, tag: str, delay: float, **fields: Any) -> None:
        super().__init__(tag, **fields)
        self.delay = delay
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self, host: str, port: int, trail: Any) -> Any:
        near = await super().connect(host, port, trail)
        self.tasks.append(asyncio.get_running_loop().create_task(self._answer(self.far.pop())))
        return near

    async def _answer(self, far: Any) -> None:
        reader, writer = await asyncio.open_connection(sock=far)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(self.delay)
            writer.write(NO_CONTENT)
        finally:
            writer.close()


class Bed:
    """A group, and what it has told."""

    def __init__(self, members: tuple[Scripted, ...], measures: bool, **fields: Any) -> None:
        self.rounds: list[tuple[str, dict[str, float | None], bool]] = []
        self.used: list[str] = []
        config = UrltestOutbound(
            tag="auto", outbounds=tuple(m.tag for m in members), **{"url": "http://test/", "tolerance": 0.0} | fields
        )
        self.group = Urltest(
            config,
            asyncio.get_running_loop(),
            0,
            members,
            measures=measures,
            on_used=self.used.append,
            on_measured=lambda group, delays, changed: self.rounds.append((group.chosen.tag, delays, changed)),
        )


@asynccontextmanager
async def bed(*members: Scripted, measures: bool = True, **fields: Any) -> AsyncIterator[Bed]:
    made = Bed(members, measures, **fields)
    try:
        yield made
    finally:
        made.group.close()
        for member in members:
            if isinstance(member, Member):
                await asyncio.gather(*member.tasks, return_exceptions=True)
            member.close()


@on_loop
async def test_fastest_member_is_taken() -> None:
    async with bed(Member("slow", 0.05), Member("fast", 0.0)) as b:
        await until(lambda: bool(b.rounds))
        chosen, delays, changed = b.rounds[0]
        assert (chosen, changed) == ("fast", True)
        slow, fast = delays["slow"], delays["fast"]
        assert slow is not None and fast is not None and fast < slow
        assert b.group.chosen.tag == "fast"


@on_loop
async def test_member_that_is_only_a_little_faster_is_not_taken() -> None:
    async with bed(Member("slow", 0.02), Member("fast", 0.0), tolerance=5.0, interval=0.001) as b:
        await until(lambda: len(b.rounds) >= 1)
        assert b.rounds[0][0] == "slow" or b.rounds[0][2], "the first measurement may choose any"
        first = b.group.chosen.tag
        await until(lambda: len(b.rounds) >= 3)
        assert b.group.chosen.tag == first


@on_loop
async def test_member_that_fails_is_left() -> None:
    dying, other = Member("dying", 0.0), Member("other", 0.02)
    async with bed(dying, other, interval=0.001) as b:
        await until(lambda: bool(b.rounds))
        dying.error = ProxyFailed("dead")
        await until(lambda: b.rounds[-1][1]["dying"] is None)
        assert b.group.chosen is other


@on_loop
async def test_tests_end_when_nobody_uses_the_group_and_begin_again() -> None:
    async with bed(Member("a", 0.0), interval=0.001, idle_timeout=0.02) as b:
        task = b.group._task
        assert task is not None
        await until(task.done)
        count = len(b.rounds)
        b.group.note_use()
        await until(lambda: len(b.rounds) > count)


@on_loop
async def test_members_are_tested_at_once_when_the_machine_is_elsewhere() -> None:
    member = Member("a", 0.0)
    async with bed(member, interval=3600.0) as b:
        await until(lambda: bool(b.rounds))
        member.error = ProxyFailed("not from here")
        b.group.measure_now()
        await until(lambda: len(b.rounds) == 2)
        assert b.rounds[1][1] == {"a": None}
    async with bed(Member("a", 0.0), measures=False) as b:
        b.group.measure_now()
        assert b.group._task is None


@on_loop
async def test_worker_that_does_not_measure_tells_that_it_uses_the_group() -> None:
    async with bed(Scripted("a"), Scripted("b"), measures=False, interval=3600.0) as b:
        assert b.group.choose("b")
        for _ in range(2):
            (await b.group.connect("203.0.113.1", 80, [])).close()
        assert b.used == [], "at most once an interval, and the first one has just begun"
        b.group._told_at -= 3600.0
        (await b.group.connect("203.0.113.1", 80, [])).close()
        assert b.used == ["auto"]
        assert b.rounds == []


@on_loop
async def test_udp_goes_through_a_member_that_carries_it() -> None:
    async with bed(Member("fast", 0.0, networks=("tcp",)), Member("slow", 0.02)) as b:
        await until(lambda: bool(b.rounds))
        trail: list[Any] = []
        await b.group.open_udp(None, None, trail)  # type: ignore[arg-type]
        assert [taken.tag for taken in trail] == ["auto", "slow"]
        assert b.group.carries("udp")
