"""Rules that no flow can come to are told; rules that some flow can come to are not."""

import json
from typing import Any

import pytest

from engine.config.problems import ConfigError
from tests.engine.config.conftest import Load

D = {"outbound": "direct"}
UNREACHABLE: list[list[dict[str, Any]]] = [
    [{**D}, {"port": 80, **D}],
    [{"network": ["tcp", "udp"], **D}, {"domain": "x", **D}],
    [{"network": "tcp,udp", **D}, {"action": "sniff"}],
    [{**D}, {"action": "sniff"}, {"domain": "x", **D}],
    [{"port": 80, **D}, {"port": 80, "action": "reject"}],
    [{"port": [80, 443], **D}, {"port": 80, "domain": "x", **D}],
    [{"port_range": "1:100", **D}, {"port": 80, **D}],
    [{"ip_is_private": True, **D}, {"ip_cidr": "127.0.0.1/32", **D}],
    [{"ip_cidr": ["10.0.0.0/8", "192.168.0.0/16"], **D}, {"ip_cidr": "192.168.3.0/24", **D}],
    [{"domain_suffix": "example.com", **D}, {"domain": "a.example.com", **D}],
    [{"domain_suffix": "example.com", **D}, {"domain_suffix": ".example.com", **D}],
    [{"domain_keyword": "ads", **D}, {"domain_suffix": ["ads.example", "myads.example"], **D}],
]
REACHABLE: list[list[dict[str, Any]]] = [
    [{"port": 80, **D}, {"port": 443, **D}],
    [{"network": ["tcp"], **D}, {"domain": "x", **D}],
    [{"port": 80, "domain": "x", **D}, {"port": 80, **D}],
    [{"domain": "x", **D}, {"action": "sniff"}, {"domain": "x", **D}],
    [{"action": "sniff"}, {"domain": "x", **D}],
    [{"port": 80, "invert": True, **D}, {"port": 443, **D}],
    [{"ip_is_private": True, **D}, {"ip_cidr": ["127.0.0.1/32", "8.8.8.8"], **D}],
    [{"domain_suffix": ".example.com", **D}, {"domain": "example.com", **D}],
    [{"domain_suffix": "ample.com", **D}, {"domain": "example.com", **D}],
    [{"ip_cidr": "10.0.0.0/8", **D}, {"ip_cidr": "10.0.0.0/7", **D}],
    [{"type": "logical", "mode": "and", "rules": [{"port": 1}], **D}, {"port": 1, **D}],
    [{"rule_set": "s", "port": 80, **D}, {"port": 80, **D}],
    [{"port": 80, **D}, {"domain": "x", **D}],
]


def told(load: Load, rules: list[dict[str, Any]]) -> list[str]:
    rule_set = [{"tag": "s", "rules": [{"domain": "x"}]}]
    warnings = load(route={"rules": rules, "rule_set": rule_set}, engine={"hijack_dns": False}).warnings
    return [warning for warning in warnings if "no flow comes to this rule" in warning]


@pytest.mark.parametrize("rules", UNREACHABLE, ids=json.dumps)
def test_unreachable(load: Load, rules: list[dict[str, Any]]) -> None:
    assert f"route.rules[{len(rules) - 1}]" in told(load, rules)[-1]


@pytest.mark.parametrize("rules", REACHABLE, ids=json.dumps)
def test_reachable(load: Load, rules: list[dict[str, Any]]) -> None:
    assert told(load, rules) == []


def test_unreachable_rules_are_told_beside_errors(load: Load) -> None:
    """What a rule with an error means is not known: nothing is said of it, nor by it."""
    rules = [
        {"ip_cidr": "x.x.x.x", **D},
        {"port": 1, **D},
        {"port": 1, "action": "reject"},
        {"prt": 5, **D},
        {"port": 2, **D},
    ]
    with pytest.raises(ConfigError) as caught:
        load(route={"rules": rules})
    (warning,) = caught.value.warnings
    assert "route.rules[2]: no flow comes to this rule" in str(warning)
