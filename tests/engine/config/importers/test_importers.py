"""engine/config/importers: real files of other programs become configurations that the loader takes and that mean the same."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.explain import Question, explain
from engine.config.importers import Imported, import_text
from engine.config.load import load_text
from engine.config.model import EngineConfig
from engine.config.problems import ConfigError
from shared.process import ProcessInfo
from tests.engine.config.conftest import machine

SAMPLES = Path(__file__).parent / "samples"
KINDS = {
    "v2rayu.json": "v2ray", "v2ray-legacy.json": "v2ray", "jsonv5.json": "v2ray", "xray-flat.json": "v2ray",
    "mihomo.yaml": "clash", "clash-2019.yaml": "clash",
    "hiddify.json": "sing-box", "sing-box-1.9.json": "sing-box", "sing-box-1.11.json": "sing-box",
}  # fmt: skip


def imported(name: str) -> Imported:
    return import_text(KINDS[name], (SAMPLES / name).read_text(), name)


def loaded(result: Imported) -> EngineConfig:
    return load_text(json.dumps(result.config), machine=machine())


def left(result: Imported) -> dict[int, str]:
    """Return what was left out, by line."""
    return {problem.place.line: problem.sentence for problem in result.left}


def leads(config: EngineConfig, host: str, port: int = 443, **question: Any) -> str:
    """Return where a flow goes: an outbound, or reject, drop, hijack-dns."""

    def look_up(name: str) -> Sequence[str]:
        return ["198.51.100.200"]

    answer = explain(config, Question(host=host, port=port, **question), look_up)
    return answer.outbound or answer.action


@pytest.mark.parametrize("name", KINDS)
def test_what_comes_out_is_taken_by_the_loader(name: str) -> None:
    config = loaded(imported(name))
    assert config.tun.auto_route and config.tun.strict_route


def test_every_sample_is_tried() -> None:
    assert {path.name for path in SAMPLES.iterdir()} - {"README.md"} == set(KINDS)


def test_v2rayu() -> None:
    result = imported("v2rayu.json")
    config = loaded(result)
    assert result.config["outbounds"][0] == {
        "type": "socks",
        "tag": "proxy",
        "server": "127.0.0.1",
        "server_port": 1080,
    }
    assert config.tun.route_exclude_address == ("203.0.113.82/32",)
    assert leads(config, "203.0.113.82", 8888) == "direct"
    assert leads(config, "192.168.1.1") == leads(config, "100.64.0.1") == leads(config, "lan.example") == "direct"
    assert leads(config, "a.example") == "direct" and leads(config, "b.a.example") == "proxy"
    assert leads(config, "mylocalhost.example") == "direct"  # a bare name is any part of a name
    assert leads(config, "8.8.8.8") == "proxy"
    assert leads(config, "198.51.100.7") == "proxy"  # after a rule by geosite V2Ray decides
    told = left(result)
    assert told[4].startswith("the inbound without tag is not used") and "UDP is switched off" in told[11]
    assert told[37] == "geosite:category-ads: left to the local proxy"
    assert "line 37" in told[38] and '"transport" is not carried over' in told[42]


def test_v2ray_of_old() -> None:
    result = imported("v2ray-legacy.json")
    (proxy, _) = result.config["outbounds"]
    assert proxy == {
        "type": "socks",
        "tag": "proxy",
        "server": "127.0.0.1",
        "server_port": 1081,
        "username": "u",
        "password": "p",
    }
    config = loaded(result)
    assert config.tun.route_exclude_address == ("2001:db8::8/128",)
    assert leads(config, "8.8.8.8", 22) == leads(config, "8.8.8.8", 1500, network="udp") == "direct"
    assert leads(config, "8.8.8.8", 443) == "proxy"


def test_jsonv5() -> None:
    result = imported("jsonv5.json")
    config = loaded(result)
    assert result.config["outbounds"][0]["server_port"] == 10808
    assert config.tun.route_exclude_address == ("203.0.113.9/32", "198.51.100.53/32")
    assert (
        leads(config, "vmess.example.com") == leads(config, "10.1.2.3") == leads(config, "198.51.100.7", 80) == "direct"
    )
    assert leads(config, "ads.example") == leads(config, "x.googleads.example") == "reject"
    assert leads(config, "198.51.100.7", 22) == "proxy"
    dns = config.policy.dns
    assert dns.strategy == "ipv4_only"
    assert {server.kind: (server.server, server.detour) for server in dns.servers} == {
        "udp": ("8.8.8.8", "proxy"), "tcp": ("198.51.100.53", None), "hosts": ("", None),
    }  # fmt: skip
    assert {2, 4, 13, 27, 30, 32} == set(left(result))


def test_xray_flat() -> None:
    result = imported("xray-flat.json")
    config = loaded(result)
    proxy = result.config["outbounds"][0]
    assert (proxy["server_port"], proxy["username"], proxy["password"]) == (10808, "anna", "s3cret")
    assert config.tun.route_exclude_address == ("203.0.113.7/32", "203.0.113.8/32", "2001:db8::9/128")
    assert leads(config, "10.0.0.1") == "proxy"  # domain and ip of one rule must both hold
    assert leads(config, "8.8.8.8", process=ProcessInfo(name="ssh")) == "direct"
    assert leads(config, "8.8.8.8", process=ProcessInfo(name="g", path="/opt/games/g")) == "direct"
    assert {4, 5, 14, 18, 19} == set(left(result))


def test_mihomo() -> None:
    result = imported("mihomo.yaml")
    config = loaded(result)
    assert result.config["outbounds"][0] == {
        "type": "socks",
        "tag": "proxy",
        "server": "127.0.0.1",
        "server_port": 10801,
    }
    assert config.tun.route_exclude_address == ("198.51.100.7/32", "2001:db8::7/128")
    assert leads(config, "jp.example.com") == leads(config, "a.example.com") == "direct"
    assert leads(config, "ads.example.org") == "reject"
    assert leads(config, "xabcx.example", 443, network="udp") == "drop"
    assert leads(config, "8.8.8.8", 443, process=ProcessInfo(name="curl", path="/usr/bin/curl")) == "direct"
    assert leads(config, "8.8.8.8", 22) == "direct"  # NOT of ports
    assert leads(config, "8.8.8.8", 443, source="192.168.7.9") == "direct"
    assert leads(config, "aa.example") == leads(config, "x.wild1.example") == "direct"
    assert leads(config, "10.9.8.7") == "direct" and leads(config, "203.0.113.9") == "proxy"
    dns = config.policy.dns
    assert config.tun.addresses[0] == "172.19.0.1/30" and any(server.kind == "fakeip" for server in dns.servers)
    assert {"*.mihomo.dev", "baidu.com", "quic://dns.adguard.com:784", "geosite:cn", "RULE-SET,google"} <= {
        word for sentence in left(result).values() for word in sentence.replace("'", " ").replace(": ", " ").split()
    }


def test_credentials_of_clash_are_asked_of_this_machine_unless_it_is_excepted() -> None:
    text = (SAMPLES / "mihomo.yaml").read_text()
    without = text.replace("  - 127.0.0.1/8\n", "")
    proxy = import_text("clash", without, "c.yaml").config["outbounds"][0]
    assert (proxy["username"], proxy["password"]) == ("username", "password")


def test_clash_of_2019() -> None:
    result = imported("clash-2019.yaml")
    config = loaded(result)
    assert result.config["outbounds"][0]["server_port"] == 7891
    assert config.tun.route_exclude_address == ("198.51.100.3/32",)
    assert leads(config, "8.8.8.8", source="192.168.1.201") == "direct"
    assert leads(config, "8.8.8.8") == "proxy"
    assert left(result)[13] == "GEOIP,CN: left to the local proxy"


@pytest.mark.parametrize(
    ("rules", "final"),
    [
        ("[]", "proxy"),
        ("['DOMAIN,a.example,Proxy']", "direct"),
        ("['MATCH,DIRECT']", "direct"),
        ("['MATCH,Proxy']", "proxy"),
        ("['GEOIP,CN,DIRECT', 'MATCH,DIRECT']", "direct"),
        ("['GEOSITE,gfw,Proxy', 'MATCH,DIRECT']", "proxy"),
    ],
)
def test_end_of_clash_rules(rules: str, final: str) -> None:
    result = import_text("clash", f"mixed-port: 7890\nrules: {rules}\n", "c.yaml")
    assert result.config["route"]["final"] == final


@pytest.mark.parametrize(("mode", "final"), [("Global", "proxy"), ("direct", "direct")])
def test_modes_of_clash(mode: str, final: str) -> None:
    result = import_text(
        "clash", f"mixed-port: 7890\nmode: {mode}\nrules: ['DOMAIN,a.example,REJECT', 'MATCH,Proxy']\n", "c.yaml"
    )
    assert result.config["route"] == {"rules": [], "final": final, "auto_detect_interface": True}


def test_clash_without_port_uses_what_it_can_itself() -> None:
    first = "{name: a, type: socks5, server: 192.0.2.1, port: 1080, username: u, password: p}"
    nodes = f"[{first}, {{name: b, type: http, server: h.example, port: 3128}}]"
    result = import_text("clash", f"proxies: {nodes}\nrules: ['MATCH,a']\n", "c.yaml")
    assert result.config["outbounds"][:2] == [
        {"type": "fallback", "tag": "proxy", "outbounds": ["a", "b"]},
        {"type": "socks", "tag": "a", "server": "192.0.2.1", "server_port": 1080, "username": "u", "password": "p"},
    ]
    loaded(result)
    with pytest.raises(ConfigError, match="there is no local port: write mixed-port"):
        import_text("clash", "proxies: [{name: a, type: ss, server: 192.0.2.1, port: 1}]\n", "c.yaml")


def test_hiddify() -> None:
    result = imported("hiddify.json")
    config = loaded(result)
    assert result.config["outbounds"] == [
        {"type": "socks", "tag": "proxy", "server": "127.0.0.1", "server_port": 12334},
        {"type": "direct", "tag": "direct"},
    ]
    assert "§" not in json.dumps(result.config, ensure_ascii=False)
    assert config.tun.route_exclude_address == ("198.51.100.9/32",)
    assert leads(config, "192.168.1.1") == leads(config, "a.lan.example") == leads(config, "t.example.com") == "direct"
    assert leads(config, "8.8.8.8", 53, network="udp") == "hijack-dns"
    assert leads(config, "8.8.8.8") == "proxy"
    assert config.policy.route.default_domain_resolver == "direct-dns"
    assert {16, 29, 31, 34, 35} <= set(left(result))


def test_hiddify_without_inbounds() -> None:
    tree = json.loads((SAMPLES / "hiddify.json").read_text().partition("\n")[2])
    del tree["inbounds"]
    result = import_text("sing-box", json.dumps(tree), "h.json")
    assert result.config["outbounds"][0]["server_port"] == 12334
    assert any("Hiddify's own, 12334, is taken" in problem.sentence for problem in result.left)


@pytest.mark.parametrize("name", ["sing-box-1.9.json", "sing-box-1.11.json"])
def test_sing_box_that_needs_no_sing_box(name: str) -> None:
    result = imported(name)
    config = loaded(result)
    assert result.config["outbounds"][0]["server_port"] == 10808
    assert config.tun.addresses == ("172.16.0.1/30", "fd00::1/126") and config.tun.mtu == 1492
    assert leads(config, "8.8.8.8", 443) == "proxy" and leads(config, "8.8.8.8", 443, network="udp") == "reject"
    assert leads(config, "8.8.8.8", 853) == "reject" and leads(config, "10.0.0.1") == "direct"
    assert leads(config, "8.8.8.8", 53, network="udp") == "hijack-dns"
    assert {server.tag: server.detour for server in config.policy.dns.servers}["dns_proxy"] == "proxy"


def test_the_article_is_imported_even_as_it_was_printed() -> None:
    text = (SAMPLES.parents[1] / "article.json").read_text()
    result = import_text("sing-box", text, "article.json")
    config = loaded(result)
    assert "'3.xxx.xx.82/32' is a placeholder" in left(result)[66]
    assert leads(config, "8.8.8.8") == "v2rayu-proxy" and leads(config, "10.0.0.1") == "direct"


@pytest.mark.parametrize(
    ("kind", "text", "part"),
    [
        ("v2ray", '{"inbounds": [{"port": 1080,, "protocol": "socks"}]}', "x:1:29: a comma too many"),
        ("v2ray", '{"log": {}}', "x:1:1: this is no configuration of V2Ray"),
        ("v2ray", '{"inbounds": [{"type": "mixed"}]}', "use `engine import sing-box`"),
        ("v2ray", '{"inbounds": [{"protocol": "vmess", "port": 1}]}', "no inbound of protocol socks or http"),
        ("v2ray", '{"inbounds": [{"protocol": "socks", "port": 100000}]}', "100000 is no port"),
        ("v2ray", '{"inbounds": [{"protocol": "socks", "port": "env:PORT"}]}', "'env:PORT' is no port"),
        ("v2ray", "", "x:1:1: the file is empty"),
        ("sing-box", '{"outbounds": [{"protocol": "vmess"}]}', "use `engine import v2ray`"),
        ("sing-box", '{"outbounds": [{"type": "vmess", "tag": "v"}]}', "only sing-box speaks vmess"),
        ("sing-box", "[]", "x:1:1: this is no configuration of sing-box"),
        ("clash", "mixed-port: 7890\nproxies:\n\t- name: x\n", "x:3:1: this is no YAML"),
        ("clash", "mixed-port: 7890\nproxies: [\n", "x:3:1: this is no YAML"),
        ("clash", "a: *none\n", "x:1:4: this is no YAML: found undefined alias 'none'"),
        ("clash", "just text\n", "this is no configuration of clash"),
        ("clash", "mixed-port: 99999\n", "99999 is no port"),
        ("clash", "a: &a {<<: *a}\n", "x:1:"),
        ("clash", "\x00", "x:1:1: this is no YAML"),
    ],
)
def test_malformed_files_give_line_and_column(kind: str, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_text(kind, text, "x")
    told = "\n".join(map(str, (*caught.value.errors, *caught.value.warnings)))
    assert part in told and told.startswith("x:")


def test_v2ray_in_yaml() -> None:
    inbound = "{protocol: socks, port: 1080, settings: {udp: true}}"
    outbound = "{protocol: vmess, settings: {vnext: [{address: 203.0.113.5, port: 1}]}}"
    text = f"inbounds:\n- {inbound}\noutbounds:\n- {outbound}\n"
    result = import_text("v2ray", text, "v.yaml")
    assert result.config["inbounds"][0]["route_exclude_address"] == ["203.0.113.5/32"]


def test_yaml_that_unfolds_without_end_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    with pytest.raises(ConfigError, match="too large once its aliases are written out"):
        import_text("clash", "\n".join(lines), "bomb.yaml")


@settings(max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damaged_files_are_imported_or_refused(name: str, data: st.DataObject) -> None:
    """Whatever comes out must be taken by the loader."""
    text = (SAMPLES / name).read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        size = data.draw(st.integers(0, 12))
        new = data.draw(st.sampled_from(["", "null", "[]", "{}", "5", '"x"', "\n", "true", "-1", "#"]))
        text = text[:at] + new + text[at + size :]
    try:
        result = import_text(KINDS[name], text, name)
    except ConfigError as error:
        assert error.errors
        return
    loaded(result)


DEBIAN = [Path("/usr/share/v2ray/config.json"), Path("/usr/share/v2ray/vpoint_socks_vmess.json")]


@pytest.mark.parametrize("path", DEBIAN, ids=str)
def test_files_of_debians_package(path: Path) -> None:
    if not path.exists():
        pytest.skip("needs the package v2ray")
    result = import_text("v2ray", path.read_text(), str(path))
    assert result.config["outbounds"][0] == {
        "type": "socks",
        "tag": "proxy",
        "server": "127.0.0.1",
        "server_port": 1080,
    }
    loaded(result)


PROVIDERS = """
mixed-port: 7890
rule-providers:
  names: {type: file, behavior: domain, path: names.yaml}
  nets: {type: http, behavior: ipcidr, format: text, path: nets.txt, url: "https://a.example/nets"}
  own: {type: inline, behavior: classical, payload: ["DOMAIN-KEYWORD,abc", "DST-PORT,8443"]}
  geo: {type: inline, behavior: classical, payload: ["GEOIP,CN"]}
  gone: {type: http, behavior: domain, path: gone.yaml, url: "https://a.example/x"}
  bin: {type: file, behavior: domain, format: mrs, path: x.mrs}
rules:
  - RULE-SET,names,DIRECT
  - RULE-SET,nets,REJECT,no-resolve
  - RULE-SET,own,DIRECT
  - RULE-SET,geo,DIRECT
  - MATCH,Proxy
"""


def test_rule_providers_that_can_be_read_become_rule_sets(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("payload:\n  - '+.lan.example'\n  - one.example\n")
    (tmp_path / "nets.txt").write_text("# nets\n198.51.100.0/24\n2001:db8::/32\n")
    result = import_text("clash", PROVIDERS, str(tmp_path / "c.yaml"))
    config = loaded(result)
    assert {rule_set.tag for rule_set in config.policy.route.rule_sets} == {"names", "nets", "own"}
    assert leads(config, "a.lan.example") == leads(config, "8.8.8.8", 8443) == "direct"
    assert leads(config, "198.51.100.7") == "reject" and leads(config, "8.8.8.8") == "proxy"
    told = left(result)
    assert "it has 'GEOIP,CN'" in told[7] and "cannot be read" in told[8] and ".mrs" in told[9]
    assert told[14] == "RULE-SET,geo: left to the local proxy"
