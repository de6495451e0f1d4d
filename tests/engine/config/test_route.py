"""engine/config/build: rules, their actions, groups, DNS and the tun; and what sing-box's own check does not see."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.build.conditions import NEVER
from engine.config.build.machine import Machine
from engine.config.load import load_text
from engine.config.problems import ConfigError
from shared.config import (
    DirectOutbound,
    DnsRule,
    DnsServer,
    FallbackOutbound,
    HijackDns,
    Logical,
    Match,
    ProxyConfig,
    Reject,
    Resolve,
    Route,
    RouteOptions,
    SelectorOutbound,
    Sniff,
    UrltestOutbound,
)
from tests.engine.config.conftest import DIRECT, SOCKS, TUN, Load, with_base
from tests.support.sing_box import sing_box_accepts


def last(load: Load, rule: dict[str, Any], **sections: Any) -> Any:
    return load(route={"rules": [rule], **sections.pop("route", {})}, **sections).policy.route.rules[-1]


def test_every_condition_of_a_rule(load: Load) -> None:
    rule = {
        "inbound": "tun-in", "ip_version": 4, "network": ["tcp"], "protocol": "tls", "client": "chromium",
        "domain": "A.Example.",
        "domain_suffix": [".b.example", "bücher.example"], "domain_keyword": "Ads", "domain_regex": "^x.*y$",
        "ip_cidr": ["10.1.2.3/8", "192.0.2.1"],
        "ip_is_private": True, "source_ip_cidr": "fe80::1%eth0/64", "source_ip_is_private": True, "port": [80, 443.0],
        "port_range": ["1000:2000", ":5", "60000:"],
        "source_port": 1, "source_port_range": "2:3", "process_name": "curl", "process_path": "/usr/bin/curl",
        "process_path_regex": ".*/python3", "user": "anna", "user_id": 1000, "invert": True, "outbound": "direct",
    }  # fmt: skip
    assert last(load, rule).match == Match(
        inbound=("tun-in",), ip_version=4, network=("tcp",), protocol=("tls",), client=("chromium",), domain=("a.example",),
        domain_suffix=(".b.example", "xn--bcher-kva.example"), domain_keyword=("ads",), domain_regex=("^x.*y$",),
        ip_cidr=("10.0.0.0/8", "192.0.2.1"), ip_is_private=True, source_ip_cidr=("fe80::/64",), source_ip_is_private=True,
        port=(80, 443), port_range=((1000, 2000), (0, 5), (60000, 65535)), source_port=(1,), source_port_range=((2, 3),),
        process_name=("curl",), process_path=("/usr/bin/curl",), process_path_regex=(".*/python3",), user=("anna",),
        user_id=(1000,), invert=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "action"),
    [
        ({"outbound": "direct"}, Route(outbound="direct")),
        ({"outbound": "direct", "udp_timeout": "10s"}, Route(outbound="direct", options=RouteOptions(udp_timeout=10.0))),
        ({"action": "direct"}, Route(outbound="direct")),
        ({"action": "bypass", "outbound": "direct"}, Route(outbound="direct")),
        ({"action": "reject"}, Reject()),
        ({"action": "reject", "method": "drop", "no_drop": True}, Reject(method="drop", no_drop=True)),
        ({"action": "hijack-dns"}, HijackDns()),
        ({"action": "sniff", "sniffer": "http", "timeout": "100ms"}, Sniff(sniffer=("http",), timeout=0.1)),
        ({"action": "resolve", "strategy": "ipv6_only"}, Resolve(strategy="ipv6_only")),
        ({"action": "route-options", "override_port": 8443}, RouteOptions(override_port=8443)),
    ],
)  # fmt: skip
def test_actions(load: Load, rule: dict[str, Any], action: Any) -> None:
    assert last(load, {"port": 1, **rule}).action == action


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ({"port": 1}, "the rule does nothing"),
        (
            {"port": 1, "action": "reject", "outbound": "direct"},
            '"outbound" does not belong to the action reject, but to route',
        ),
        ({"port": 1, "action": "sniff", "method": "drop"}, "but to reject"),
        ({"port": 1, "action": "bypass"}, "auto_redirect"),
        ({"port": 1, "action": "forward"}, '"forward" is not known here'),
        ({"port": 1, "action": "resolve", "server": "nobody"}, 'no DNS server has the tag "nobody"'),
        ({"port": 1, "action": "route-options"}, "changes nothing"),
        ({"port": 1, "outbound": "direct", "tls_fragment": True}, "tls_fragment is not supported"),
        ({"type": "logical", "mode": "and", "outbound": "direct"}, "a logical rule needs rules"),
        ({"type": "logical", "mode": "nor", "rules": [{"port": 1}], "outbound": "direct"}, '"nor" is not known here'),
        ({"network": "sctp", "outbound": "direct"}, '"sctp" is not known here; known: icmp, tcp, udp'),
        ({"protocol": "bitorrent", "outbound": "direct"}, 'did you mean "bittorrent"?'),
        ({"domain": "https://a.example/x", "outbound": "direct"}, "without scheme"),
        ({"domain": "*.a.example", "outbound": "direct"}, 'write ".a.example" under domain_suffix'),
        ({"ip_cidr": "a.example", "outbound": "direct"}, "names stand under domain"),
        ({"ip_cidr": "10.0.0.1-10.0.0.9", "outbound": "direct"}, "range of addresses"),
        ({"ip_cidr": "010.0.0.1", "outbound": "direct"}, "neither an address nor a prefix"),
        ({"ip_cidr": "x.x.x.x/32", "outbound": "direct"}, "is a placeholder"),
        ({"ip_cidr": "YOUR_SERVER_IP", "outbound": "direct"}, "is a placeholder"),
        ({"ip_cidr": "1.2.*.4", "outbound": "direct"}, "is a placeholder"),
        ({"port": 65536, "outbound": "direct"}, "out of range"),
        ({"port": True, "outbound": "direct"}, "a port is a number"),
        ({"port_range": 80, "outbound": "direct"}, 'write "80:80"'),
        ({"port_range": "9:5", "outbound": "direct"}, "is no range"),
        ({"ip_is_private": "yes", "outbound": "direct"}, "true or false"),
        ({"user_id": "1000", "outbound": "direct"}, "without quotation marks"),
        ({"domain_regex": "(a", "outbound": "direct"}, "is no regular expression"),
        ({"domain_regex": r"(a)\1", "outbound": "direct"}, "no back-references"),
        ({"domain": ["a", None], "outbound": "direct"}, "null is no item"),
        ({"domain": [["a"]], "outbound": "direct"}, "a name is a string"),
        ({"source_mac_address": "x", "outbound": "direct"}, "source_ip_cidr"),
        ({"_comment": "x", "outbound": "direct"}, "comments are //"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_is_wrong_with_a_rule_is_told(errors: Any, rule: dict[str, Any], part: str) -> None:
    (line,) = errors(route={"rules": [rule]})
    assert part in line


@pytest.mark.parametrize(
    "sections",
    [
        {"inbounds": [{"type": "tun", "auto_route": True}]},
        {"outbounds": [{"type": "socks", "tag": "proxy", "server_port": 1080}]},
        {"outbounds": [{"type": "socks", "tag": "proxy", "server": "127.0.0.1"}]},
        {"outbounds": [{"type": "socks", "tag": "proxy", "server": "127.0.0.1", "server_port": 0}]},
        {"route": {"rules": [{"port": 1, "outbound": "none"}]}},
        {"route": {"final": "none"}},
        {"route": {"rules": [{"rule_set": "none", "outbound": "direct"}]}},
        {"route": {"rules": [{"port": 1}]}},
        {"route": {"rules": [{"inbound": "none", "outbound": "direct"}]}},
        {"dns": {"servers": [{"type": "local", "tag": "a"}], "rules": [{"domain": "x", "server": "none"}]}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_sing_box_check_does_not_see(errors: Any, sections: dict[str, Any], tmp_path: Path) -> None:
    assert sing_box_accepts(with_base(**sections).encode(), tmp_path)
    (line,) = errors(**sections)
    assert line.startswith("config.json:")


MODERN = {
    "dns": {"servers": [{"type": "https", "tag": "doh", "server": "1.1.1.1", "detour": "proxy",
                         "tls": {"server_name": "one.one"}},
                        {"type": "local", "tag": "local"}, {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15"},
                        {"type": "hosts", "tag": "hosts", "predefined": {"Router.lan": ["192.168.1.1"]}}],
            "rules": [{"domain_suffix": "lan", "server": "hosts"},
                      {"query_type": ["A", 28], "server": "fake", "rewrite_ttl": 1},
                      {"domain_keyword": "ads", "action": "reject"},
                      {"domain": "x.example", "action": "predefined", "rcode": "NXDOMAIN"}],
            "final": "doh", "strategy": "prefer_ipv4", "cache_capacity": 8192, "reverse_mapping": True},
    "outbounds": [SOCKS, {"type": "http", "tag": "h", "server": "h.example", "server_port": 8080, "username": "u",
                   "password": "p"},
                  {"type": "selector", "tag": "s", "outbounds": ["proxy", "h"], "default": "h"},
                  {"type": "urltest", "tag": "t", "outbounds": ["proxy", "h"], "interval": "1m", "tolerance": 100}, DIRECT],
    "route": {"rules": [{"action": "sniff"}, {"protocol": "dns", "action": "hijack-dns"},
                        {"ip_is_private": True, "outbound": "direct"}, {"rule_set": "s", "outbound": "s"},
                        {"type": "logical", "mode": "and", "rules": [{"port": 443}, {"network": "udp"}], "action": "reject"}],
              "rule_set": [{"type": "inline", "tag": "s", "rules": [{"domain_suffix": ["example.org"]}]}],
              "final": "t", "auto_detect_interface": True,
              "default_domain_resolver": {"server": "local", "strategy": "ipv4_only"}},
}  # fmt: skip


def test_a_modern_configuration_is_taken_without_a_word_by_both(load: Load, tmp_path: Path) -> None:
    assert sing_box_accepts(with_base(**MODERN).encode(), tmp_path)
    assert load(**MODERN).warnings == ()


def test_groups(load: Load) -> None:
    fallback = {"type": "fallback", "tag": "f", "outbounds": ["proxy", "direct"], "failures": 3, "retry": "10s"}
    outbounds = load(**{**MODERN, "outbounds": [*MODERN["outbounds"], fallback]}).policy.outbounds
    groups = {outbound.tag: outbound for outbound in outbounds}
    assert outbounds[0].tag == "t"
    assert groups["s"] == SelectorOutbound(tag="s", outbounds=("proxy", "h"), default="h")
    assert groups["t"] == UrltestOutbound(tag="t", outbounds=("proxy", "h"), interval=60.0, tolerance=0.1)
    assert groups["f"] == FallbackOutbound(tag="f", outbounds=("proxy", "direct"), failures=3, retry=10.0)
    assert groups["h"].proxy == ProxyConfig("http", "h.example", 8080, "u", "p")  # type: ignore[union-attr]


def test_dns(load: Load) -> None:
    dns = load(**MODERN).policy.dns
    assert dns.servers == (
        DnsServer(tag="doh", kind="https", server="1.1.1.1", port=443, server_name="one.one", detour="proxy"),
        DnsServer(tag="local", kind="local"),
        DnsServer(tag="fake", kind="fakeip", inet4_range="198.18.0.0/15"),
        DnsServer(tag="hosts", kind="hosts", hosts=(("router.lan", ("192.168.1.1",)),)),
    )
    assert [(rule.action, rule.server, rule.rcode, rule.rewrite_ttl) for rule in dns.rules] == [
        ("route", "hosts", "NOERROR", None),
        ("route", "fake", "NOERROR", 1),
        ("reject", None, "REFUSED", None),
        ("predefined", None, "NXDOMAIN", None),
    ]
    assert isinstance(dns.rules[0], DnsRule) and dns.rules[0].origin == "config.json:83:4"
    assert (dns.final, dns.strategy, dns.cache_capacity, dns.reverse_mapping) == ("doh", "prefer_ipv4", 8192, True)


@pytest.mark.parametrize(
    ("dns", "part"),
    [
        ({"servers": [{"type": "udp", "tag": "a"}]}, "server is missing"),
        ({"servers": [{"type": "quic", "tag": "a", "server": "1.1.1.1"}]}, '"quic" is not supported: use'),
        ({"servers": [{"tag": "a", "server": "1.1.1.1"}]}, "type is missing: a DNS server is one of"),
        ({"servers": [{"type": "fakeip", "tag": "a"}]}, "cannot be fakeip"),
        ({"servers": [{"type": "local", "tag": "a"}, {"type": "local", "tag": "a"}]}, "two DNS servers have the tag"),
        ({"servers": [{"type": "local", "tag": "a"}], "strategy": "ipv4"}, 'did you mean "ipv4_only"?'),
        (
            {"servers": [{"type": "local", "tag": "a"}], "rules": [{"ip_cidr": "10.0.0.0/8", "server": "a"}]},
            "is about the answer",
        ),
        ({"servers": [{"type": "local", "tag": "a"}], "rules": [{"domain": "x"}]}, "the rule does nothing"),
        ({"rules": [{"domain": "x", "action": "reject"}]}, "no DNS server: write one"),
        ({"servers": [{"type": "udp", "tag": "a", "server": "tls://1.1.1.1"}]}, "a scheme nowhere"),
        ({"servers": [{"tag": "a", "address": "sdns://x"}]}, "is no DNS server"),
        ({"servers": [{"tag": "a", "address": "udp://[x"}]}, "stands in brackets"),
        (
            {"servers": [{"tag": "a", "address": "https://d.example", "address_resolver": "b"}]},
            'no DNS server has the tag "b"',
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_wrong_with_dns_is_told(errors: Any, dns: dict[str, Any], part: str) -> None:
    (line,) = errors(dns=dns)
    assert part in line


def test_without_section_each_question_goes_to_whom_it_was_asked_through_the_proxy(load: Load) -> None:
    (server,) = load().policy.dns.servers
    assert (server.kind, server.detour) == ("addressee", "proxy")


def test_port_53_is_hijacked_unless_a_rule_speaks_of_dns(load: Load) -> None:
    def hijacked(*rules: dict[str, Any], **sections: Any) -> list[Any]:
        found = load(route={"rules": list(rules)}, **sections).policy.route.rules
        return [rule.match for rule in found if isinstance(rule.action, HijackDns)]

    tun_dns = Match(ip_cidr=("198.18.0.2", "fdfe:dcba:9876::2"), port=(53,))
    assert hijacked() == [tun_dns, Match(port=(53,))]
    assert hijacked(engine={"hijack_dns": False}) == [tun_dns]
    assert hijacked({"port": 53, "outbound": "direct"}) == [tun_dns]
    assert hijacked(inbounds=[{**TUN, "dns_mode": "disabled"}]) == [Match(port=(53,))]
    assert hijacked({"port": 5353, "action": "hijack-dns"}) == [tun_dns, Match(port=(5353,))]


def test_what_never_holds_here_matches_nothing_and_is_told(load: Load) -> None:
    for condition in ({"package_name": "com.example"}, {"wifi_ssid": ["home"]}):
        rule = {"outbound": "direct", "port": 1, **condition}
        config = load(route={"rules": [rule]})
        assert config.policy.route.rules[-1].match == NEVER
        assert len(config.warnings) == 1
        assert last(load, {**rule, "invert": True}).match == Logical(mode="or", rules=(), invert=True)
    assert last(load, {"clash_mode": "Direct", "outbound": "direct"}).match == Match(clash_mode="Direct")


def test_interfaces_that_are_there_are_bound_to(load: Load) -> None:
    outbound = {**DIRECT, "bind_interface": "eth0", "routing_mark": "0xff", "connect_timeout": "3s"}
    direct = load(outbounds=[SOCKS, outbound]).policy.outbounds[1]
    assert isinstance(direct, DirectOutbound)
    assert (direct.dial.bind_interface, direct.dial.routing_mark, direct.dial.connect_timeout) == ("eth0", 255, 3.0)
    config = load(route={"default_interface": "eth0", "default_mark": 7})
    assert {(o.dial.bind_interface, o.dial.routing_mark) for o in config.policy.outbounds} == {("eth0", 7)}  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["default_interface", "bind_interface"])
def test_interfaces_that_are_not_there_are_passed_over(load: Load, key: str) -> None:
    named = {"outbounds": [{**DIRECT, key: "en0"}]} if key == "bind_interface" else {"route": {key: "en0"}}
    config = load(**{"outbounds": [DIRECT], **named})
    assert config.policy.outbounds[0].dial.bind_interface is None  # type: ignore[union-attr]
    assert 'this machine has no interface "en0"' in config.warnings[0]
    assert "the default interface is used instead" in config.warnings[0]


def test_interface_that_may_appear_later_is_waited_for(load: Load) -> None:
    config = load(outbounds=[{**DIRECT, "bind_interface": "wlan7"}])
    assert config.policy.outbounds[0].dial.bind_interface == "wlan7"  # type: ignore[union-attr]
    assert 'this machine has no interface "wlan7" at present' in config.warnings[0]


def test_tun(load: Load) -> None:
    tun = {
        **TUN, "interface_name": "tun9", "mtu": 9000, "strict_route": True, "route_address": "0.0.0.0/1", "include_uid": 1000,
        "include_uid_range": ["2000:3000"], "exclude_interface": "eth0", "iproute2_table_index": 77, "iproute2_rule_index": 100,
        "udp_timeout": 60, "route_exclude_address_set": ["lan"], "address": "172.19.0.1/30",
    }  # fmt: skip
    rule_set = [{"tag": "lan", "rules": [{"ip_cidr": ["192.168.0.0/16"]}, {"domain": "x"}]}]
    config = load(inbounds=[tun], route={"rule_set": rule_set})
    made = config.tun
    assert (made.interface_name, made.mtu, made.strict_route, made.addresses) == (
        "tun9",
        9000,
        True,
        ("172.19.0.1/30",),
    )
    assert (made.include_uid, made.exclude_interface) == (((1000, 1000), (2000, 3000)), ("eth0",))
    assert (made.route_address, made.route_exclude_address) == (("0.0.0.0/1",), ("192.168.0.0/16",))
    assert (made.table, made.priority, made.dns_addresses) == (77, 100, ("172.19.0.2",))
    assert config.udp.idle_timeout == 60.0


@pytest.mark.parametrize(
    ("tun", "part"),
    [
        ({"address": "172.19.0.1"}, "lacks the number of bits"),
        ({"mtu": 500}, "out of range: mtu is a number from 1280 to 65535"),
        ({"interface_name": "a-name-that-is-too-long"}, "no name of an interface"),
        ({"udp_timeout": "5"}, 'write "5s"'),
        ({"stack": "lwip"}, '"lwip" is not known here'),
        ({"loopback_address": "10.0.0.1"}, "not supported"),
        ({"include_uid_range": "1000-2000"}, 'write "1000:2000"'),
        ({"route_address_set": "none"}, 'no rule-set has the tag "none"'),
    ],
)
def test_what_is_wrong_with_the_tun_is_told(errors: Any, tun: dict[str, Any], part: str) -> None:
    (line,) = errors(inbounds=[{**TUN, **tun}])
    assert part in line


def test_a_listener_beside_the_tun_is_told_and_nothing_more(load: Load) -> None:
    mixed = {"type": "mixed", "tag": "mixed-in", "listen": "127.0.0.1", "listen_port": 2080}
    config = load(inbounds=[TUN, mixed], route={"rules": [{"inbound": "mixed-in", "outbound": "direct"}]})
    (warning,) = config.warnings
    assert "nothing listens on port 2080" in warning


@pytest.mark.parametrize(
    ("outbound", "part"),
    [
        ({"username": "u"}, "wants a password"),
        ({"password": "p"}, "wants a user name"),
        ({"version": 5}, "5 is not known here; known: 5, 4a, 4"),
        ({"server": "socks5://127.0.0.1"}, "a scheme nowhere"),
        ({"server": "127.0.0.1:1080"}, "the port stands in server_port"),
        ({"server": "<server>"}, "is a placeholder"),
        ({"server": "3.xxx.xx.82"}, "is a placeholder"),
        ({"server": "1.2.3"}, "no IPv4 address"),
        ({"server_port": "1080"}, "without quotation marks: 1080"),
        ({"detour": "direct"}, "detour is not supported"),
        ({"connect_timeout": 5}, '"5s"'),
        ({"domain_resolver": {"strategy": "ipv4_only"}}, "server is missing"),
    ],
)
def test_what_is_wrong_with_a_proxy_is_told(errors: Any, outbound: dict[str, Any], part: str) -> None:
    (line,) = errors(outbounds=[{**SOCKS, **outbound}])
    assert part in line


def test_v2ray_outbounds_are_recognised(errors: Any) -> None:
    (line,) = errors(outbounds=[{"protocol": "vmess", "tag": "proxy"}])
    assert "engine import v2ray" in line


def test_socks4(load: Load) -> None:
    proxy = load(outbounds=[{**SOCKS, "version": "4a", "username": "anna"}]).policy.outbounds[0].proxy  # type: ignore[union-attr]
    assert proxy == ProxyConfig("socks4", "127.0.0.1", 1080, "anna")


def test_an_outbound_that_is_refused_is_told_once(errors: Any) -> None:
    outbounds = [{"type": "vmess", "tag": "v"}, {"type": "selector", "tag": "s", "outbounds": ["v"]}]
    (line,) = errors(outbounds=outbounds, route={"rules": [{"port": 1, "outbound": "v"}], "final": "s"})
    assert '"vmess" is not supported' in line


def test_names_of_tuns_on_macos() -> None:
    mac = Machine(frozenset({"lo0", "en0"}), Path.read_bytes, named_utun=True)
    assert load_text(with_base(inbounds=[{**TUN, "interface_name": "utun8"}]), machine=mac).warnings == ()
    with pytest.raises(ConfigError, match="macOS names tun devices utunN"):
        load_text(with_base(inbounds=[{**TUN, "interface_name": "tun0"}]), machine=mac)
