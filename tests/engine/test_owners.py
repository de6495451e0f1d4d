"""engine/owners.py: what rules need, which proxies are local, and answers about real sockets."""

import asyncio
import os
import pwd
import socket
from collections.abc import Iterable

import pytest

from engine.owners import FlowOwners, Need, local_upstreams, need_of, open_owners
from shared.config import Logical, Match, Policy, ProxyConfig, ProxyOutbound, Route, RouteConfig, Rule, RuleSet
from shared.control import FindProcess, ProcessFound
from shared.metrics import CELLS
from shared.process import ProcessInfo
from tests.engine.processes.test_linux import flow_of


def policy(*matches: Match | Logical, rule_set: Match | None = None, addresses: tuple[str, ...] = ()) -> Policy:
    rules = tuple(Rule(match=match, action=Route(outbound="proxy"), origin="") for match in matches)
    sets = () if rule_set is None else (RuleSet(tag="set", rules=(rule_set,), origin=""),)
    proxy = ProxyConfig("socks5", "proxy.example", 1080, addresses=addresses)
    return Policy(outbounds=(ProxyOutbound(tag="proxy", proxy=proxy),), route=RouteConfig(rules=rules, rule_sets=sets))


@pytest.mark.parametrize(
    ("made", "need"),
    [
        (policy(), Need.NOTHING),
        (policy(Match(domain=("example.org",)), Match(port=(53,))), Need.NOTHING),
        (policy(Match(user=("anna",))), Need.USER),
        (policy(Match(user_id=(0,)), Match(process_name=("curl",))), Need.PROCESS),
        (
            policy(Logical(mode="and", rules=(Match(), Logical(mode="or", rules=(Match(process_path=("/a",)),))))),
            Need.PROCESS,
        ),
        (policy(rule_set=Match(process_path_regex=("^/opt/",))), Need.PROCESS),
        (policy(rule_set=Match(user=("anna",))), Need.USER),
    ],
)
def test_rules_need_no_more_than_they_ask_for(made: Policy, need: Need) -> None:
    assert need_of(made) is need


def test_local_upstreams_are_those_whose_address_is_the_machines() -> None:
    made = policy(addresses=("127.0.0.1", "::1", "203.0.113.10", "2001:db8::10"))
    loopback = socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")
    assert local_upstreams(made) == [(loopback[0], 1080), (loopback[1], 1080)]


class NoRoutes:
    """Routes of a network that is not there."""

    async def bypass(self, addresses: Iterable[str]) -> None: ...

    async def end_bypass(self, addresses: Iterable[str]) -> None: ...


def answer(made: Policy, guards: bool = False) -> tuple[Policy, ProcessFound]:
    """Load a policy and ask about a connection of this very process; return the policy for workers and the answer."""

    async def session() -> tuple[Policy, ProcessFound]:
        told: asyncio.Future[tuple[int, ProcessFound]] = asyncio.get_running_loop().create_future()

        def send(worker: int, found: ProcessFound) -> bool:
            told.set_result((worker, found))
            return True

        service = open_owners([0] * CELLS, NoRoutes())
        try:
            loaded = service.load(made, guards=guards)
            with (
                socket.create_server(("127.0.0.1", 0)) as server,
                socket.create_connection(server.getsockname()) as app,
            ):
                service.answer(3, FindProcess(7, *flow_of(app, "tcp")), send)
                worker, found = await told
                assert (worker, found.id) == (3, 7)
                return loaded, found
        finally:
            await service.close()

    return asyncio.run(session())


def test_without_need_nothing_is_looked_up() -> None:
    loaded, found = answer(policy())
    assert not loaded.loop_guard
    assert (found.process, found.direct) == (ProcessInfo(), False)


def test_user_alone_is_told_without_process() -> None:
    _, found = answer(policy(Match(user_id=(0,))))
    uid = os.getuid()
    assert found.process == ProcessInfo(None, "", "", uid, pwd.getpwuid(uid).pw_name)


def test_process_is_told() -> None:
    _, found = answer(policy(Match(process_name=("curl",))))
    assert found.process.pid == os.getpid() and not found.direct


def test_local_proxy_is_guarded_and_where_it_is_not_wanted_it_is_not() -> None:
    local = policy(addresses=("127.0.0.1",))
    assert answer(local, guards=True)[0].loop_guard
    assert not answer(local)[0].loop_guard
    assert not answer(policy(addresses=("203.0.113.10",)), guards=True)[0].loop_guard


def test_machine_without_process_table_gets_empty_answers_and_no_guard() -> None:
    async def session() -> None:
        told: list[ProcessFound] = []

        def send(worker: int, found: ProcessFound) -> bool:
            told.append(found)
            return True

        owners = FlowOwners(None, [0] * CELLS, NoRoutes())
        loaded = owners.load(policy(Match(process_name=("curl",)), addresses=("127.0.0.1",)), guards=True)
        assert not loaded.loop_guard
        owners.answer(0, FindProcess(1, "tcp", b"", 0, b"", 0), send)
        await asyncio.sleep(0)
        assert told == [ProcessFound(1, ProcessInfo(), False)]
        await owners.close()

    asyncio.run(session())
