"""The forms of sing-box 1.8 to 1.13: each is read as its author meant it, and told in one line."""

import json
from typing import Any

import pytest

from shared.config import DnsServer, HijackDns, Logical, Match, Resolve, Route, RouteOptions, Sniff
from tests.engine.config.conftest import DIRECT, SOCKS, TUN, Load

ONE_FOURTEEN = {
    "dns": {"servers": [{"type": "udp", "tag": "dns", "server": "8.8.8.8", "detour": "proxy"}], "strategy": "ipv4_only"},
    "inbounds": [{"type": "tun", "tag": "tun-in", "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True,
                  "route_exclude_address": ["192.168.0.0/16"]}],
    "outbounds": [SOCKS, DIRECT],
    "route": {"rules": [{"action": "sniff"}, {"protocol": "dns", "action": "hijack-dns"},
                        {"ip_is_private": True, "outbound": "direct"}, {"network": ["udp"], "port": 443, "action": "reject"}],
              "final": "proxy"},
}  # fmt: skip
ONE_EIGHT = {
    "dns": {"servers": [{"tag": "dns", "address": "8.8.8.8"}], "strategy": "ipv4_only"},
    "inbounds": [{"type": "tun", "tag": "tun-in", "inet4_address": "172.19.0.1/30", "inet6_address": "fdfe:dcba:9876::1/126",
                  "auto_route": True, "inet4_route_exclude_address": ["192.168.0.0/16"], "sniff": True}],
    "outbounds": [SOCKS, DIRECT, {"type": "dns", "tag": "dns-out"}, {"type": "block", "tag": "block"}],
    "route": {"rules": [{"protocol": "dns", "outbound": "dns-out"}, {"geoip": "private", "outbound": "direct"},
                        {"network": "udp", "port": 443, "outbound": "block"}], "final": "proxy"},
}  # fmt: skip


def test_a_configuration_of_1_8_is_that_of_1_14(load: Load) -> None:
    new, old = load(json.dumps(ONE_FOURTEEN)), load(json.dumps(ONE_EIGHT))
    assert old.tun == new.tun
    assert old.policy.dns == new.policy.dns
    block = old.policy.route.rules[-1].action
    assert block == Route(outbound="block")
    steps = [[(type(rule.action), rule.match) for rule in config.policy.route.rules] for config in (new, old)]
    sniff_all, sniff_inbound = steps[0][1], steps[1][1]
    assert sniff_all == (Sniff, Match()) and sniff_inbound == (Sniff, Match(inbound=("tun-in",)))
    assert steps[0][2:4] == steps[1][2:4]
    assert steps[0][2] == (HijackDns, Logical(mode="or", rules=(Match(port=(53,)), Match(protocol=("dns",)))))
    assert [warning.split(": ")[2] for warning in old.warnings] == [
        "dns.servers[0]", "inbounds[0]", "inbounds[0]", "inbounds[0]", "inbounds[0].sniff", "outbounds[2].type", "route.rules[1]",
    ]  # fmt: skip
    assert new.warnings == ()


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("8.8.8.8", DnsServer(tag="d", kind="udp", server="8.8.8.8", detour="proxy")),
        ("udp://8.8.8.8:5353", DnsServer(tag="d", kind="udp", server="8.8.8.8", port=5353, detour="proxy")),
        ("2001:db8::1", DnsServer(tag="d", kind="udp", server="2001:db8::1", detour="proxy")),
        ("tcp://[2001:db8::1]", DnsServer(tag="d", kind="tcp", server="2001:db8::1", detour="proxy")),
        ("tls://dns.google", DnsServer(tag="d", kind="tls", server="dns.google", port=853, detour="proxy")),
        ("https://1.1.1.1/dns-query", DnsServer(tag="d", kind="https", server="1.1.1.1", port=443, detour="proxy")),
        (
            "https://d.example/x",
            DnsServer(tag="d", kind="https", server="d.example", port=443, path="/x", detour="proxy"),
        ),
        ("local", DnsServer(tag="d", kind="local")),
        ("rcode://name_error", DnsServer(tag="d", kind="rcode", rcode="NXDOMAIN")),
    ],
)
def test_legacy_dns_server_keeps_going_through_the_default_outbound(
    load: Load, address: str, server: DnsServer
) -> None:
    config = load(dns={"servers": [{"tag": "d", "address": address}]})
    assert config.policy.dns.servers == (server,)
    (warning,) = config.warnings
    assert '"address" is the form before sing-box 1.12: read as {"type": ' in warning


def test_legacy_dns_server_with_detour_keeps_it(load: Load) -> None:
    servers = [
        {
            "tag": "a",
            "address": "https://dns.example",
            "detour": "direct",
            "address_resolver": "b",
            "strategy": "ipv4_only",
        },
        {"tag": "b", "address": "223.5.5.5", "detour": "direct"},
    ]
    first, second = load(dns={"servers": servers}).policy.dns.servers
    assert (first.detour, first.strategy, second.detour) == ("direct", "ipv4_only", "direct")


def test_legacy_dns_server_goes_directly_where_everything_does(load: Load) -> None:
    config = load(dns={"servers": [{"tag": "d", "address": "8.8.8.8"}]}, route={"final": "direct"})
    assert config.policy.dns.servers[0].detour is None


def test_typed_dns_server_without_detour_goes_directly(load: Load) -> None:
    config = load(dns={"servers": [{"type": "udp", "tag": "d", "server": "8.8.8.8"}]})
    assert config.policy.dns.servers[0].detour is None


def test_legacy_fakeip(load: Load) -> None:
    dns = {
        "servers": [{"tag": "d", "address": "8.8.8.8"}, {"tag": "f", "address": "fakeip"}],
        "rules": [{"query_type": ["A", "AAAA"], "server": "f"}],
        "fakeip": {"enabled": True, "inet4_range": "198.18.0.0/15"},
    }
    config = load(dns=dns)
    assert config.policy.dns.servers[1] == DnsServer(tag="f", kind="fakeip", inet4_range="198.18.0.0/15")
    assert config.policy.dns.rules[0].match == Match(query_type=(1, 28))


def test_dns_rule_about_the_servers_of_outbounds(load: Load) -> None:
    servers = [{"tag": "d", "address": "8.8.8.8"}, {"tag": "local", "address": "local"}]
    config = load(dns={"servers": servers, "rules": [{"outbound": "any", "server": "local"}]})
    assert config.policy.dns.rules[0].match == Match(outbound=("any",))
    assert any("default_domain_resolver" in warning for warning in config.warnings)


def test_legacy_keys_of_the_inbound_become_first_rules(load: Load) -> None:
    tun = {**TUN, "sniff": True, "sniff_override_destination": True, "sniff_timeout": "1s", "domain_strategy": "prefer_ipv4",
           "udp_disable_domain_unmapping": True}  # fmt: skip
    rules = load(inbounds=[tun], route={"rules": [{"port": 1, "outbound": "direct"}]}).policy.route.rules
    assert [rule.action for rule in rules if rule.match == Match(inbound=("tun-in",))] == [
        Sniff(timeout=1.0, override_destination=True),
        Resolve(strategy="prefer_ipv4"),
        RouteOptions(udp_disable_domain_unmapping=True),
    ]


def test_switched_off_legacy_keys_say_nothing(load: Load) -> None:
    tun = {**TUN, "sniff": False, "sniff_override_destination": False, "gso": False, "endpoint_independent_nat": False}
    assert load(inbounds=[tun]).warnings == ()


def test_direct_outbound_that_replaces_the_destination(load: Load) -> None:
    other = {"type": "direct", "tag": "to-resolver", "override_address": "192.0.2.53", "override_port": 5353}
    rules = [{"port": 53, "outbound": "to-resolver"}]
    config = load(outbounds=[SOCKS, other], route={"rules": rules})
    changes = RouteOptions(override_address="192.0.2.53", override_port=5353)
    assert config.policy.route.rules[-1].action == Route(outbound="to-resolver", options=changes)


def test_domain_strategy_of_an_outbound(load: Load) -> None:
    config = load(outbounds=[SOCKS, {**DIRECT, "domain_strategy": "ipv4_only"}])
    assert config.policy.outbounds[1].dial.strategy == "ipv4_only"  # type: ignore[union-attr]
    assert '"domain_strategy" is the form before' in config.warnings[0]


@pytest.mark.parametrize("form", ["tcp,udp", "tcp, udp"])
def test_networks_in_one_string(load: Load, form: str) -> None:
    config = load(route={"rules": [{"network": form, "outbound": "proxy"}]})
    assert config.policy.route.rules[-1].match == Match(network=("tcp", "udp"))
    assert "sing-box never finds" in config.warnings[0]


def test_geoip_private_among_others(load: Load, errors: Any) -> None:
    rules = [{"source_geoip": ["private"], "outbound": "direct"}]
    assert load(route={"rules": rules}).policy.route.rules[-1].match == Match(source_ip_is_private=True)
    (line,) = errors(route={"rules": [{"geoip": ["private", "cn"], "outbound": "direct"}]})
    assert "geoip is not supported" in line and "rule_set" in line


def test_rules_within_logical_rules_are_migrated_too(load: Load) -> None:
    inner = [{"network": "tcp,udp"}, {"type": "logical", "mode": "or", "rules": [{"geoip": "private"}, {"port": 1}]}]
    rules = [{"type": "logical", "mode": "and", "rules": inner, "outbound": "direct"}]
    assert load(route={"rules": rules}).policy.route.rules[-1].match == Logical(
        mode="and",
        rules=(
            Match(network=("tcp", "udp")),
            Logical(mode="or", rules=(Match(ip_is_private=True), Match(port=(1,)))),
        ),
    )


def test_renamed_keys(load: Load) -> None:
    rule_set = [{"type": "inline", "tag": "s", "rules": [{"ip_cidr": "10.0.0.0/8"}]}]
    rules = [{"rule_set": "s", "rule_set_ipcidr_match_source": True, "outbound": "direct"}]
    config = load(
        route={"rules": rules, "rule_set": rule_set},
        experimental={
            "clash_api": {"external_controller": "127.0.0.1:9090", "cache_file": "x.db", "store_selected": True}
        },
    )
    assert config.policy.route.rules[-1].match == Match(rule_set=("s",), rule_set_ip_cidr_match_source=True)
    assert config.cache is not None and config.cache.path == "x.db"
    assert len(config.warnings) == 3
