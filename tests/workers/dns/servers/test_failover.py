"""Several servers: who is asked, in what order, and for how long."""

import pytest

from tests.support.loop import on_loop
from tests.workers.dns.messages import ask, read, reply, texts
from tests.workers.dns.servers.scripted import Scripted, failing, silent
from workers.dns import ServerFailed
from workers.dns.servers import failover
from workers.dns.servers.failover import FailoverServer


def refusing(message: bytes) -> bytes:
    return reply(message, rcode="REFUSED")


def broken(message: bytes) -> bytes:
    return reply(message, rcode="SERVFAIL")


@pytest.mark.parametrize("script", [failing, refusing, silent, lambda message: b""])
@on_loop
async def test_one_that_does_not_serve_us_comes_last_for_a_while(
    script: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Scripted(script), Scripted("192.0.2.2")  # type: ignore[arg-type]
    server = FailoverServer([first, second], patience=0.02)
    for _ in range(3):
        assert texts(await server.exchange(ask())) == ["example.com. 300 A 192.0.2.2"]
    times = 3 if script not in (failing, refusing, silent) else 1
    assert (len(first.asked), len(second.asked)) == (times, 3)
    monkeypatch.setattr(failover, "monotonic", lambda: 1e9)
    await server.exchange(ask())
    assert len(first.asked) == times + 1, "it is asked first again"


@on_loop
async def test_servfail_is_about_the_name() -> None:
    first, second = Scripted(broken), Scripted("192.0.2.2")
    server = FailoverServer([first, second], patience=1)
    for _ in range(2):
        assert texts(await server.exchange(ask())) == ["example.com. 300 A 192.0.2.2"]
    assert (len(first.asked), len(second.asked)) == (2, 2)


@on_loop
async def test_name_that_does_not_exist_is_an_answer() -> None:
    first, second = Scripted(lambda message: reply(message, rcode="NXDOMAIN")), Scripted()
    assert read(await FailoverServer([first, second], patience=1).exchange(ask())).rcode() == 3
    assert not second.asked


@on_loop
async def test_when_all_fail_a_refusal_is_the_answer() -> None:
    server = FailoverServer([Scripted(failing), Scripted(refusing), Scripted(failing)], patience=1)
    assert read(await server.exchange(ask())).rcode() == 5


@on_loop
async def test_when_nobody_answers_that_is_a_failure() -> None:
    with pytest.raises(ServerFailed, match="cannot be reached"):
        await FailoverServer([Scripted(failing), Scripted(failing)], patience=1).exchange(ask())


def test_all_are_closed() -> None:
    servers = [Scripted(), Scripted()]
    FailoverServer(servers, patience=1).close()
    assert all(server.closed for server in servers)
