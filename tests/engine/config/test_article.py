"""The configuration that the project began with, as it was printed: its author's meaning, and what is said of its masks."""

from pathlib import Path

import pytest

from engine.config.load import load_text
from engine.config.problems import ConfigError
from shared.config import DirectOutbound, HijackDns, Match, ProxyConfig, Route
from tests.engine.config.conftest import machine

TEXT = (Path(__file__).parent / "article.json").read_text()
FILLED_IN = TEXT.replace("3.xxx.xx.82", "203.0.113.82")


def test_masked_address_is_the_only_error_and_the_way_out_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(TEXT, machine=machine())
    (line,) = str(caught.value).splitlines()
    assert line.startswith("config.json:69:1: route.rules[3].ip_cidr[0]: '3.xxx.xx.82/32' is a placeholder")
    assert "such as 203.0.113.7/32" in line and "delete the rule" in line


def test_everything_that_was_read_otherwise_than_it_stands_is_one_line_each() -> None:
    warnings = load_text(FILLED_IN, machine=machine()).warnings
    assert [warning.split(": ")[0] for warning in warnings] == [
        "config.json:10:1",  # dns.servers[0].address
        "config.json:14:1",
        "config.json:24:19",  # utun8
        "config.json:43:19",  # en0
        "config.json:52:1",  # a name, which nothing sniffs
        "config.json:59:1",  # 127.0.0.1/32, which is private
        "config.json:74:12",  # "tcp,udp"
    ]
    assert all(": warning: " in warning for warning in warnings)


def test_it_means_what_its_author_meant() -> None:
    config = load_text(FILLED_IN, machine=machine())
    policy = config.policy
    proxy, direct = policy.outbounds
    assert proxy.tag == "v2rayu-proxy" and proxy.proxy == ProxyConfig("socks5", "127.0.0.1", 1080)  # type: ignore[union-attr]
    assert isinstance(direct, DirectOutbound) and direct.dial.bind_interface is None
    assert (config.tun.interface_name, config.tun.addresses) == ("utun8", ("198.18.0.1/16",))
    assert config.tun.auto_route and config.tun.strict_route

    *own, private, localhost, loopback, server, rest = policy.route.rules
    assert all(isinstance(rule.action, HijackDns) for rule in own)
    assert own[-1].match == Match(port=(53,))
    to_direct = Route(outbound="direct")
    assert (private.match, private.action) == (Match(ip_is_private=True), to_direct)
    assert (localhost.match, localhost.action) == (Match(domain=("localhost",)), to_direct)
    assert (loopback.match, loopback.action) == (Match(ip_cidr=("127.0.0.1/32",)), to_direct)
    assert (server.match, server.action) == (Match(ip_cidr=("203.0.113.82/32",)), to_direct)
    assert (rest.match, rest.action) == (Match(network=("tcp", "udp")), Route(outbound="v2rayu-proxy"))
    assert rest.origin == "config.json:73:1"


def test_its_dns_goes_through_the_proxy_as_it_did_when_it_was_written() -> None:
    dns = load_text(FILLED_IN, machine=machine()).policy.dns
    assert dns.strategy == "ipv4_only" and dns.reverse_mapping
    assert [(server.tag, server.kind, server.server, server.detour) for server in dns.servers] == [
        ("google-dns", "udp", "8.8.8.8", "v2rayu-proxy"),
        ("cf-dns", "udp", "1.1.1.1", "v2rayu-proxy"),
    ]
