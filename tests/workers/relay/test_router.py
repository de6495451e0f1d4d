"""Decisions: what they ask, in which order, and how they end. No I/O: outbounds are only named."""

import socket
from typing import Any, cast

import pytest

from shared.config import (
    HijackDns,
    Match,
    Policy,
    Reject,
    Resolve,
    Route,
    RouteConfig,
    RouteOptions,
    Rule,
    Sniff,
)
from shared.process import ProcessInfo
from shared.rules.flow import Ends, Flow
from shared.rules.matcher import Compiler, NeedProcess
from workers.relay.router import OWN_FLOW, REJECTS_MAX, REJECTS_WITHIN, Decision, Router, Verdict
from workers.sniff import Sniffed
from workers.upstream import Outbound
from workers.upstream.block import BlockUpstream

OUTBOUNDS: dict[str, Outbound] = {tag: BlockUpstream(tag, 0) for tag in ("first", "other")}
NEAR = socket.inet_aton("192.0.2.1")
FAR = socket.inet_aton("203.0.113.10")


def router(*actions: Any, final: str | None = None, loop_guard: bool = False) -> Router:
    """Rules without conditions, or (Match, action)."""
    pairs = [action if isinstance(action, tuple) else (Match(), action) for action in actions]
    rules = tuple(Rule(match=match, action=action, origin=str(n)) for n, (match, action) in enumerate(pairs))
    policy = Policy(
        outbounds=cast(Any, tuple(BlockUpstream(tag, 0) for tag in OUTBOUNDS)),
        route=RouteConfig(rules=rules, final=final),
        loop_guard=loop_guard,
    )
    return Router(policy, Compiler().compile(rules), OUTBOUNDS)


def flow(name: str | None = None, port: int = 443, network: Any = "tcp") -> Flow:
    return Flow(
        network=network,
        source=NEAR,
        source_port=1000,
        destination=b"" if name else FAR,
        destination_port=port,
        destination_name=name,
    )


def ends_at(decision: Decision, now: float = 0.0) -> tuple[str, str]:
    """The final outbound's tag (or the action) and the rule."""
    verdict = decision.advance(now)
    assert isinstance(verdict, Verdict)
    action = verdict.action
    return (action.tag if isinstance(action, BlockUpstream) else repr(action)), verdict.rule


def test_without_rules_the_first_outbound_takes_all() -> None:
    assert ends_at(router().begin(flow())) == ("first", "")
    assert ends_at(router(final="other").begin(flow())) == ("other", "")


def test_first_final_action_decides() -> None:
    made = router((Match(port=(80,)), Route(outbound="first")), Route(outbound="other"), Reject())
    assert ends_at(made.begin(flow())) == ("other", "1")
    assert ends_at(router(HijackDns()).begin(flow())) == ("HijackDns()", "0")


def test_rules_go_on_after_sniffing_with_what_was_found() -> None:
    made = router(Sniff(), (Match(protocol=("tls",), domain=("example.com",)), Route(outbound="other")))
    decision = made.begin(flow())
    step = decision.advance(0.0)
    assert isinstance(step, Sniff)
    decision.note_sniffed(step, Sniffed("tls", "example.com"))
    assert ends_at(decision) == ("other", "1")
    assert decision.targets() == ["203.0.113.10"], "the name is for rules alone"


def test_override_destination_puts_the_name_in_the_place_of_the_address() -> None:
    decision = router(Sniff(override_destination=True)).begin(flow())
    step = decision.advance(0.0)
    assert isinstance(step, Sniff)
    decision.note_sniffed(step, Sniffed("tls", "example.com"))
    assert ends_at(decision) == ("first", "")
    assert decision.targets() == ("example.com",)
    assert decision.stands_alone(Ends("tcp", NEAR, 1000, FAR, 443))


def test_nothing_is_sniffed_twice_nor_where_the_server_speaks_first() -> None:
    decision = router(Sniff(), Sniff()).begin(flow())
    step = decision.advance(0.0)
    assert isinstance(step, Sniff)
    decision.note_sniffed(step, None)
    assert ends_at(decision) == ("first", "")
    assert ends_at(router(Sniff()).begin(flow(port=25))) == ("first", "")
    assert isinstance(router(Sniff()).begin(flow(port=25, network="udp")).advance(0.0), Sniff)


def test_sniffed_name_does_not_replace_the_one_that_is_asked_for() -> None:
    decision = router(Sniff(), (Match(domain=("inner.example",)), Route(outbound="other"))).begin(flow("cdn.example"))
    step = decision.advance(0.0)
    assert isinstance(step, Sniff)
    decision.note_sniffed(step, Sniffed("tls", "inner.example"))
    assert ends_at(decision) == ("other", "1")
    assert decision.targets() == ("cdn.example",)


def test_only_names_are_resolved() -> None:
    assert ends_at(router(Resolve()).begin(flow())) == ("first", "")
    decision = router(Resolve(), (Match(ip_cidr=("10.0.0.0/8",)), Route(outbound="other"))).begin(flow("nas.home"))
    assert isinstance(decision.advance(0.0), Resolve)
    decision.flow.resolved = (socket.inet_aton("10.0.0.7"), socket.inet_aton("10.0.0.8"))
    assert ends_at(decision) == ("other", "1")
    assert decision.targets() == ["10.0.0.7", "10.0.0.8"]


@pytest.mark.parametrize(
    ("options", "targets", "port"),
    [
        (RouteOptions(override_port=8443), ["203.0.113.10"], 8443),
        (RouteOptions(override_address="192.0.2.9"), ["192.0.2.9"], 443),
        (RouteOptions(override_address="2001:db8::9"), ["2001:db8::9"], 443),
        (RouteOptions(override_address="other.example", override_port=1), ("other.example",), 1),
    ],
)
def test_route_options_change_the_flow(options: RouteOptions, targets: Any, port: int) -> None:
    for made in (router(options), router(Route(outbound="first", options=options))):
        decision = made.begin(flow())
        ends_at(decision)
        assert (decision.targets(), decision.flow.destination_port) == (targets, port)


def test_udp_timeout_of_a_rule() -> None:
    decision = router(RouteOptions(udp_timeout=7.0)).begin(flow())
    ends_at(decision)
    assert decision.udp_timeout == 7.0


def test_process_is_asked_for_where_a_rule_needs_it() -> None:
    made = router(
        (Match(port=(80,)), Route(outbound="first")), (Match(process_name=("curl",)), Route(outbound="other"))
    )
    decision = made.begin(flow())
    assert decision.advance(0.0) == NeedProcess(1)
    decision.flow.process = ProcessInfo(name="curl")
    assert ends_at(decision) == ("other", "1")


def test_loop_guard_asks_about_every_flow_and_exempts_the_proxys_own() -> None:
    made = router(Route(outbound="first"), loop_guard=True)
    decision = made.begin(flow())
    assert isinstance(decision.advance(0.0), NeedProcess)
    decision.flow.process, decision.settled = ProcessInfo(name="v2ray"), Verdict(OUTBOUNDS["other"], OWN_FLOW)
    assert ends_at(decision) == ("other", OWN_FLOW)
    second = made.begin(flow())
    second.take_owner(decision)
    assert ends_at(second) == ("other", OWN_FLOW)


def test_rejecting_too_often_falls_silent_for_a_while() -> None:
    made = router(Reject())
    methods = [repr(Reject()), repr(Reject(method="drop"))]
    for n in range(REJECTS_MAX):
        assert ends_at(made.begin(flow()), now=n / 100)[0] == methods[0]
    assert ends_at(made.begin(flow()), now=1.0)[0] == methods[1]
    assert ends_at(made.begin(flow()), now=2 * REJECTS_WITHIN)[0] == methods[0]


def test_no_drop_never_falls_silent() -> None:
    made = router(Reject(no_drop=True))
    assert {ends_at(made.begin(flow()))[0] for _ in range(REJECTS_MAX + 9)} == {repr(Reject(no_drop=True))}


DNS = (Match(port=(53,)), HijackDns())


@pytest.mark.parametrize(
    ("actions", "hijacked"),
    [
        ((DNS,), True),
        ((), False),
        (((Match(ip_cidr=("203.0.113.0/24",)), HijackDns()),), True),
        (((Match(ip_cidr=("192.0.2.0/24",)), HijackDns()),), False),
        (((Match(ip_is_private=True), Route(outbound="other")), DNS), True),
        (((Match(ip_cidr=("203.0.113.10",)), Route(outbound="other")), DNS), False),
        (((Match(network=("tcp",)), Reject()), DNS), True),
        ((Sniff(), DNS), False),
        (((Match(source_port=(1,)), Reject()), DNS), False),
        (((Match(process_name=("x",)), Reject()), DNS), False),
        (((Match(domain=("a",)), Reject()), DNS), False),
    ],
)
def test_what_is_always_for_the_dns_service_whoever_sends_it(actions: tuple[Any, ...], hijacked: bool) -> None:
    made = router(*actions)
    assert [made.hijacks(FAR, 53) for _ in range(2)] == [hijacked] * 2
    assert router(*actions, loop_guard=True).hijacks(FAR, 53) is hijacked
