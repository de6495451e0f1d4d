"""What rules mean in a mode of the Clash API."""

from typing import Any

import pytest

from engine.config.build.conditions import NEVER
from engine.config.explain import Question, explain
from engine.config.modes import ALWAYS, in_mode, modes_of
from shared.config import DirectOutbound, HijackDns, Logical, Match, Policy, Reject, Route, SelectorOutbound
from tests.engine.config.conftest import DIRECT, SOCKS, TUN, Load

DNS = {"servers": [{"type": "local", "tag": "here"}, {"type": "udp", "tag": "there", "server": "9.9.9.9"}]}


def rules(load: Load, *options: dict[str, Any], **sections: Any) -> Policy:
    return load(route={"rules": [*options]}, **sections).policy


def targets(policy: Policy) -> list[str]:
    """Where rules that decide lead."""
    found = []
    for rule in policy.route.rules:
        match rule.action:
            case Route():
                found.append(rule.action.outbound)
            case Reject():
                found.append("reject")
            case HijackDns():
                found.append("dns")
    return found


def test_modes_are_the_default_those_of_rules_and_those_of_clash(load: Load) -> None:
    policy = rules(
        load,
        {"clash_mode": "Home", "outbound": "direct"},
        {"type": "logical", "mode": "or", "rules": [{"clash_mode": "Work"}, {"port": 1}], "outbound": "direct"},
        {"clash_mode": "DIRECT", "outbound": "direct"},
        dns={**DNS, "rules": [{"clash_mode": "home", "server": "here"}, {"clash_mode": "Away", "server": "there"}]},
    )
    assert modes_of(policy, "rule") == ("rule", "Home", "Work", "DIRECT", "Away", "global")
    assert modes_of(policy, "work") == ("Home", "Work", "DIRECT", "Away", "rule", "global")


@pytest.mark.parametrize(
    ("options", "in_it", "in_another"),
    [
        ({"clash_mode": "A"}, Match(), NEVER),
        ({"clash_mode": "a", "port": 1}, Match(port=(1,)), NEVER),
        ({"clash_mode": "A", "invert": True}, NEVER, ALWAYS),
        ({"clash_mode": "A", "port": 1, "invert": True}, Match(port=(1,), invert=True), ALWAYS),
        (
            {"type": "logical", "mode": "or", "rules": [{"clash_mode": "A"}, {"port": 1}]},
            Logical(mode="or", rules=(Match(), Match(port=(1,)))),
            Logical(mode="or", rules=(NEVER, Match(port=(1,)))),
        ),
    ],
)
def test_condition(load: Load, options: dict[str, Any], in_it: Any, in_another: Any) -> None:
    policy = rules(load, {**options, "outbound": "direct"})
    assert in_mode(policy, "a").route.rules[-1].match == in_it
    assert in_mode(policy, "B").route.rules[-1].match == in_another


def test_dns_rules_follow_the_mode(load: Load) -> None:
    policy = rules(load, dns={**DNS, "rules": [{"clash_mode": "direct", "server": "here"}]})
    assert in_mode(policy, "Direct").dns.rules[0].match == Match()
    assert in_mode(policy, "rule").dns.rules[0].match == NEVER


def test_direct_and_global_lead_all_flows_one_way(load: Load) -> None:
    policy = rules(load, {"action": "sniff"}, {"port": 80, "outbound": "direct"}, {"port": 81, "action": "reject"})
    assert targets(policy)[-2:] == ["direct", "reject"]
    direct, everything = in_mode(policy, "direct"), in_mode(policy, "GLOBAL")
    assert (targets(direct)[-2:], direct.route.final) == (["direct", "direct"], "direct")
    assert (targets(everything)[-2:], everything.route.final) == (["proxy", "proxy"], "proxy")
    assert targets(direct)[0] == "dns"
    assert direct.route.rules[-1].origin.endswith("(mode direct)")


def test_global_takes_the_outbound_of_that_name(load: Load) -> None:
    group = {"type": "selector", "tag": "GLOBAL", "outbounds": ["direct", "proxy"]}
    policy = load(outbounds=[SOCKS, DIRECT, group]).policy
    assert in_mode(policy, "global").route.final == "GLOBAL"
    assert any(isinstance(outbound, SelectorOutbound) for outbound in policy.outbounds)


def test_direct_needs_no_outbound_of_the_file(load: Load) -> None:
    policy = load(outbounds=[SOCKS]).policy
    direct = in_mode(policy, "direct")
    assert direct.route.final == "direct"
    assert direct.outbounds == (*policy.outbounds, DirectOutbound(tag="direct"))


def test_rules_that_name_a_mode_alone_say_what_it_means(load: Load) -> None:
    policy = rules(load, {"clash_mode": "Direct", "port": 80, "outbound": "direct"})
    assert in_mode(policy, "direct").route.final == "proxy"


def test_explain_says_what_a_mode_does(load: Load) -> None:
    config = load(
        inbounds=[TUN],
        route={"rules": [{"clash_mode": "Home", "outbound": "direct"}, {"port": 443, "action": "reject"}]},
    )

    def asked(mode: str | None) -> Any:
        return explain(config, Question(host="203.0.113.9", port=443, mode=mode), lambda name: [])

    usual, home, direct = asked(None), asked("home"), asked("direct")
    assert usual.tried[-2].reason == "clash_mode: the mode is rule"
    assert '"clash_mode":"Home"' in usual.tried[-2].conditions
    assert (usual.action, home.outbound, direct.outbound) == ("reject", "direct", "direct")
    assert home.notes[0] == "the mode is home"
