"""engine/config/load.py: files in, everything that is wrong with them out at once."""

from pathlib import Path
from typing import Any

import pytest

from engine.config.load import expand, load, load_text
from engine.config.named_proxy import for_proxy, with_proxy
from engine.config.problems import ConfigError
from engine.http import HttpOptions
from shared.config import HijackDns, ProxyConfig, ProxyOutbound, Route
from tests.engine.config.conftest import BASE, DIRECT, SOCKS, TUN, Load, machine, with_base

EVERYTHING_WRONG = """{
  "log": {"level": "loud"},
  "inbound": [],
  "dns": {"servers": [{"type": "udp", "tag": "a", "server": "8.8.8.8", "detour": "nowhere"}], "final": "b"},
  "inbounds": [{"type": "tun", "mtu": "1500", "auto_rute": true}],
  "outbounds": [
    {"type": "socks", "tag": "proxy", "server": "", "server_port": 70000},
    {"type": "vmess", "tag": "v", "server": "example.com"},
    {"type": "selector", "tag": "s", "outbounds": ["proxy", "u"]},
    {"type": "urltest", "tag": "u", "outbounds": ["s"]},
    {"type": "direct", "tag": "proxy"}
  ],
  "route": {
    "rules": [
      {"ip_cidr": ["10.0.0.0/33", "<your server>/32"], "outbound": "proxi"},
      {"rule_set": "geoip-cn", "outbound": "proxy"},
      {"geosite": "cn", "outbound": "proxy"},
      {"port": "53", "port_range": "1000-2000", "outbound": "proxy"},
      {"domain_regex": "(?=x)", "outbound": "proxy"},
      {"inbound": "tun", "domain": "a.b"}
    ],
    "final": "none"
  }
}"""


def test_all_errors_of_a_file_are_told_at_once(errors: Any) -> None:
    found = {line.split(": ")[0] + " " + line.split(": ")[1] for line in errors(EVERYTHING_WRONG)}
    assert found == {
        "config.json:2:20 log.level",
        "config.json:3:3 inbound",
        "config.json:4:82 dns.servers[0].detour",
        "config.json:4:104 dns.final",
        "config.json:5:16 inbounds[0]",  # address is missing
        "config.json:5:39 inbounds[0].mtu",
        "config.json:5:47 inbounds[0].auto_rute",
        "config.json:7:49 outbounds[0].server",
        "config.json:7:68 outbounds[0].server_port",
        "config.json:8:14 outbounds[1].type",
        "config.json:10:51 outbounds[3].outbounds[0]",  # a circle
        "config.json:11:31 outbounds[4].tag",
        "config.json:15:20 route.rules[0].ip_cidr[0]",
        "config.json:15:35 route.rules[0].ip_cidr[1]",
        "config.json:15:68 route.rules[0].outbound",
        "config.json:16:20 route.rules[1].rule_set[0]",
        "config.json:17:8 route.rules[2].geosite",
        "config.json:18:16 route.rules[3].port",
        "config.json:18:36 route.rules[3].port_range",
        "config.json:19:24 route.rules[4].domain_regex",
        "config.json:20:7 route.rules[5]",  # it does nothing
        "config.json:20:19 route.rules[5].inbound[0]",
        "config.json:22:14 route.final",
    }


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("2:20", '"loud" is not known here'),
        ("3:3", 'did you mean "inbounds"?'),
        ("5:39", "without quotation marks: 1500"),
        ("5:47", 'did you mean "auto_route"?'),
        ("8:14", "speaks SOCKS and HTTP to proxies"),
        ("10:51", "s -> u -> s"),
        ("15:35", "is a placeholder"),
        ("15:68", 'did you mean "proxy"?'),
        ("17:8", "write a rule_set instead"),
        ("18:36", 'write "1000:2000"'),
        ("19:24", "no look-ahead"),
    ],
)
def test_an_error_says_what_to_write_instead(errors: Any, line: str, part: str) -> None:
    (told,) = (error for error in errors(EVERYTHING_WRONG) if error.startswith(f"config.json:{line}: "))
    assert part in told


def test_a_syntax_error_is_one_line(errors: Any) -> None:
    assert errors('{\n "log": {}\n "dns": {}}') == ["config.json:3:2: a comma is missing before '\"dns\"'"]


@pytest.mark.parametrize("text", ["[]", "5", '"x"', "null"])
def test_the_root_is_an_object(errors: Any, text: str) -> None:
    assert errors(text) == ["config.json:1:1: a configuration is one object in { }"]


def test_keys_may_be_in_any_case_and_null_is_as_nothing(load: Load) -> None:
    config = load(with_base(route={"Final": "direct", "RULES": None, "rules": []}, DNS=None))
    assert config.policy.route.final == "direct"


def test_a_key_that_stands_twice_is_told(load: Load) -> None:
    config = load('{"outbounds": [{"type": "direct"}], "log": {"level": "info"},\n"log": {"level": "debug"}}')
    assert config.log.level == "debug"
    assert 'config.json:1:37: warning: "log" stands twice in this object: only the last one counts' in config.warnings


def test_an_empty_file_goes_out_directly_and_says_so(load: Load) -> None:
    config = load("{}")
    assert config.policy.route.final == "direct"
    assert any("everything goes out directly" in warning for warning in config.warnings)


def test_files_are_merged_and_errors_name_the_file(tmp_path: Path) -> None:
    first, second = tmp_path / "10-base.json", tmp_path / "20-rules.json"
    first.write_text(with_base(log={"level": "info"}, route={"rules": [{"port": 25, "action": "reject"}]}))
    second.write_text(
        '{"log": {"level": "debug"},\n"route": {"rules": [{"port": 26, "outbound": "direct"}], "final": "direct"}}'
    )
    (tmp_path / "notes.txt").write_text("not read")
    config = load(expand([tmp_path]), machine({str(path): path.read_bytes() for path in (first, second)}))
    assert config.log.level == "debug"
    assert [rule.match.port for rule in config.policy.route.rules[-2:]] == [(25,), (26,)]  # type: ignore[union-attr]
    assert config.policy.route.rules[-1].origin == f"{second}:2:21"
    assert config.files == (str(first), str(second))
    second.write_text('{"route": {"rules": [{"prt": 26, "outbound": "direct"}]}}')
    with pytest.raises(ConfigError, match=rf"{second}:1:23: route.rules\[1\].prt: "):
        load([first, second], machine({str(path): path.read_bytes() for path in (first, second)}))


def test_a_file_that_is_not_there_is_an_error_of_that_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none.json:1:1: the file cannot be read: No such file"):
        load(Path("/none.json"), machine())


def test_a_directory_without_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        expand([tmp_path])


def test_the_engine_key(load: Load) -> None:
    config = load(
        engine={
            "workers": 3, "offload": "tso", "run_dir": "/run/x", "log_format": "json", "metrics": "off", "kill_switch": True,
            "stack": {"max_tcp_flows": 77, "keepalive_idle": "1h"}, "udp": {"max_associations": 9},
            "queues": {"packets": 3000, "large_packets": 600},
        }
    )  # fmt: skip
    assert (config.workers, config.tun.offload, config.run_dir, config.log.format) == (3, "tso", "/run/x", "json")
    assert (config.http, config.kill_switch) == (None, True)
    assert (config.queues.packets, config.queues.large_packets) == (4096, 600)
    assert (config.stack.max_tcp_flows, config.stack.keepalive_idle, config.udp.max_associations) == (77, 3600.0, 9)


@pytest.mark.parametrize(
    ("engine", "part"),
    [
        ({"workers": 0}, "workers is a number from 1 to 64"),
        ({"workers": "4"}, "without quotation marks: 4"),
        ({"metrics": "9464"}, "is not HOST:PORT"),
        ({"metrics": "0.0.0.0:9464"}, "only with a secret"),
        ({"stack": {"max_flows": 5}}, 'did you mean "max_tcp_flows"'),
        ({"kill_switch": 1}, "true or false"),
        ({"stack": 5}, "an object in { }"),
        ({"queues": {"packets": 63}}, "a number of packets is a number from 64 to 32768"),
    ],
)
def test_the_engine_key_is_checked(errors: Any, engine: dict[str, Any], part: str) -> None:
    (line,) = errors(engine=engine)
    assert part in line


def test_experimental(load: Load, errors: Any) -> None:
    experimental = {
        "clash_api": {"external_controller": "127.0.0.1:9090", "secret": "s3cret", "default_mode": "Global"},
        "cache_file": {"enabled": True, "path": "c.db", "store_fakeip": True},
    }
    config = load(experimental=experimental)
    assert config.http == HttpOptions(addresses=(("127.0.0.1", 9090),), is_named=True, secret="s3cret")
    assert config.mode == "Global"
    assert config.cache is not None and config.cache.store_fakeip
    (line,) = errors(experimental={"clash_api": {"external_controller": "0.0.0.0:9090"}})
    assert "only with a secret" in line
    assert load(engine={"metrics": "127.0.0.1:1"}).http == HttpOptions(addresses=(("127.0.0.1", 1),), is_named=True)
    both = load(engine={"metrics": "127.0.0.1:1"}, experimental=experimental).http
    assert both is not None and both.addresses == (("127.0.0.1", 1), ("127.0.0.1", 9090))


def test_proxy_option_takes_the_place_of_the_default_proxy(load: Load) -> None:
    other = ProxyConfig("http", "192.0.2.1", 8080)
    config = with_proxy(load(route={"rules": [{"port": 443, "outbound": "proxy"}]}), other)
    assert config.policy.outbounds[0] == ProxyOutbound(tag="proxy", proxy=other)
    assert config.policy.route.final == "proxy"


def test_proxy_option_beside_a_group_takes_what_no_rule_takes(load: Load) -> None:
    other = ProxyConfig("socks5", "192.0.2.1", 1080)
    group = {"type": "selector", "tag": "group", "outbounds": ["proxy", "direct"]}
    rules = [{"port": 443, "outbound": "group"}]
    config = with_proxy(load(outbounds=[group, SOCKS, DIRECT], route={"rules": rules}), other)
    assert config.policy.route.final == config.policy.outbounds[0].tag == "proxy'"
    assert config.policy.route.rules[-1].action == Route(outbound="group")


def test_loading_is_pure() -> None:
    text = with_base(route={"rules": [{"port": 1, "outbound": "direct"}]})
    assert load_text(text, machine=machine()) == load_text(text, machine=machine())
    assert BASE["inbounds"] == [TUN]


def test_a_proxy_without_file_takes_everything() -> None:
    config = for_proxy(ProxyConfig("socks5", "192.0.2.1", 1080))
    assert config.policy.route.final == "proxy"
    assert [type(rule.action) for rule in config.policy.route.rules] == [HijackDns, HijackDns]
    assert config.policy.dns.servers[0].detour == "proxy"
    assert config.tun.auto_route and config.tun.dns_addresses == ("198.18.0.2", "fdfe:dcba:9876::2")


def test_a_password_that_everybody_can_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(with_base(outbounds=[{**SOCKS, "username": "anna", "password": "s3cret"}]))
    path.chmod(0o644)
    (warning,) = load(path).warnings
    assert warning.endswith(f"outbounds[0].password: every user of this machine can read this: chmod 600 {path}")
    path.chmod(0o600)
    assert load(path).warnings == ()


def test_proxy_option_without_outbounds_takes_dns_as_well(load: Load) -> None:
    config = with_proxy(load("{}"), ProxyConfig("socks5", "192.0.2.1", 1080))
    assert config.policy.route.final == "proxy"
    assert config.policy.dns.servers[0].detour == "proxy"
