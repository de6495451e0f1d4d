"""engine/config/explain.py: the trace of the rules, as the workers would go through them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.config.explain import Explanation, Question, explain
from engine.config.load import load_text
from shared.process import ProcessInfo
from tests.engine.config.conftest import DIRECT, SOCKS, TUN, Load, machine

RULES: list[dict[str, Any]] = [
    {"process_name": "ssh", "outbound": "direct"},
    {"domain_suffix": "before.example", "outbound": "direct"},
    {"action": "sniff"},
    {"protocol": "bittorrent", "action": "reject", "method": "drop"},
    {"domain_suffix": "after.example", "outbound": "direct"},
    {"ip_cidr": ["198.51.100.0/24"], "port": 443, "action": "reject"},
    {"port": 8443, "action": "route-options", "override_port": 443},
    {"port": 443, "network": "udp", "outbound": "group"},
    {"source_ip_cidr": "192.168.1.0/24", "port": 25, "outbound": "proxy"},
    {"port": 25, "outbound": "direct"},
]
GROUPS = [SOCKS, DIRECT, {"type": "selector", "tag": "group", "outbounds": ["direct", "proxy"], "default": "proxy"}]
HOSTS = {"a.after.example": ["203.0.113.10"], "a.before.example": ["203.0.113.11"], "v6.example": ["2001:db8::10"]}


def look_up(name: str) -> Sequence[str]:
    return HOSTS.get(name, [])


@pytest.fixture
def ask(load: Load) -> Any:
    def ask(host: str, port: int, dns: Any = None, **question: Any) -> Explanation:
        config = load(outbounds=GROUPS, route={"rules": RULES}, dns=dns, engine={"hijack_dns": False}, inbounds=[
            {**TUN, "dns_mode": "disabled", "route_exclude_address": "192.0.2.0/24"}])  # fmt: skip
        return explain(config, Question(host=host, port=port, **question), look_up)

    return ask


def line(explanation: Explanation) -> int:
    """Return the line at which the deciding rule stands."""
    return int(explanation.decided_by.split(":")[1])


def test_every_rule_that_was_tried_is_there_with_its_reason(ask: Any) -> None:
    explanation = ask("a.after.example", 443)
    assert [(tried.holds, tried.reason) for tried in explanation.tried] == [
        (False, "process_name: the program is not known (say --process NAME)"),
        (False, "domain_suffix: the name is not known yet"),
        (True, "it is taken for tls, and the name a.after.example"),
        (False, "protocol: does not hold"),
        (True, "it decides"),
    ]
    assert (explanation.action, explanation.outbound, explanation.path) == ("route", "direct", ("direct",))
    assert explanation.flow == "tcp from 198.18.0.1 to a.after.example (203.0.113.10):443"
    assert explanation.tried[-1].conditions == '{"domain_suffix":["after.example"]}'
    assert explanation.decided_by == explanation.tried[-1].origin


def test_no_rule(ask: Any) -> None:
    explanation = ask("203.0.113.9", 80)
    assert (explanation.decided_by, explanation.outbound, explanation.path) == (
        "",
        "proxy",
        ("proxy (socks5://127.0.0.1:1080)",),
    )


def test_a_group_is_followed_to_its_member(ask: Any) -> None:
    explanation = ask("v6.example", 443, network="udp")
    assert explanation.path == ("group (selector, until another is chosen)", "proxy (socks5://127.0.0.1:1080)")
    assert explanation.flow == "udp from fdfe:dcba:9876::1 to v6.example (2001:db8::10):443"


def test_program_source_and_protocol(ask: Any) -> None:
    assert ask("203.0.113.9", 22, process=ProcessInfo(name="ssh")).outbound == "direct"
    assert ask("203.0.113.9", 25).outbound == "direct"
    assert ask("203.0.113.9", 25, source="192.168.1.7").outbound == "proxy"
    assert ask("203.0.113.9", 6881, protocol="bittorrent").action == "drop"
    assert ask("198.51.100.7", 443).action == "reject"


def test_a_changed_flow_is_shown(ask: Any) -> None:
    (changed,) = (tried for tried in ask("203.0.113.9", 8443).tried if tried.action == "route-options")
    assert changed.reason == "from here on it is a flow to 203.0.113.9:443"


def test_what_comes_before_the_rules_is_noted(ask: Any) -> None:
    assert any("192.0.2.7 is in 192.0.2.0/24 of route_exclude_address" in note for note in ask("192.0.2.7", 80).notes)
    assert any("never enters the tun" in note for note in ask("127.0.0.1", 80).notes)
    assert any("cannot be resolved here" in note for note in ask("nobody.example", 80).notes)


def test_names_are_known_at_once_where_answers_tell_them(ask: Any) -> None:
    dns = {"servers": [{"type": "local", "tag": "l"}], "reverse_mapping": True}
    assert ask("a.before.example", 443).outbound == "proxy"
    assert ask("a.before.example", 443, dns).outbound == "direct"


def test_dns_and_the_articles_rules() -> None:
    text = (Path(__file__).parent / "article.json").read_text().replace("3.xxx.xx.82", "203.0.113.82")
    config = load_text(text, machine=machine())
    assert explain(config, Question(host="192.168.1.1", port=53, network="udp"), look_up).action == "hijack-dns"
    server = explain(config, Question(host="203.0.113.82", port=443), look_up)
    assert (server.outbound, line(server)) == ("direct", 66)
    other = explain(config, Question(host="203.0.113.83", port=443), look_up)
    assert (other.outbound, line(other)) == ("v2rayu-proxy", 73)
    assert explain(config, Question(host="localhost", port=80), look_up).outbound == "direct"


FAKE = {
    "servers": [{"type": "local", "tag": "real"}, {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15"}],
    "rules": [{"domain_suffix": "lan.example", "server": "real"}, {"query_type": ["A", "AAAA"], "server": "fake"}],
}


def test_a_name_with_a_fake_address_is_known_but_has_no_address(load: Load) -> None:
    rules = [
        {"ip_cidr": "203.0.113.0/24", "outbound": "direct"},
        {"domain_suffix": "before.example", "outbound": "direct"},
        {"action": "resolve"},
        {"ip_cidr": "203.0.113.0/24", "action": "reject"},
    ]
    config = load(dns=FAKE, route={"rules": rules})
    assert explain(config, Question(host="a.before.example", port=80), look_up).outbound == "direct"
    resolved = explain(config, Question(host="a.after.example", port=80), look_up)
    assert resolved.action == "reject"
    assert "a.after.example is 203.0.113.10" in {tried.reason for tried in resolved.tried}
    assert any("gets a fake address" in note for note in resolved.notes)
    real = explain(config, Question(host="a.lan.example", port=80), lambda name: ["203.0.113.5"])
    assert real.outbound == "direct" and not any("fake" in note for note in real.notes)


def test_ports_where_the_server_speaks_first_are_not_sniffed(ask: Any) -> None:
    (sniffed,) = (tried for tried in ask("203.0.113.9", 25).tried if tried.action == "sniff")
    assert sniffed.reason == "nothing is looked for: at this port the server speaks first"
