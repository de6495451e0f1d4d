"""engine/config/resolve.py. No name here reaches a name server."""

from typing import Any

import pytest

from engine.config.named_proxy import for_proxy
from engine.config.resolve import ResolveError, resolve, upstream_addresses
from shared.config import ProxyConfig
from tests.engine.config.conftest import DIRECT, SOCKS, Load

NO_NAMES = ["a..b", "x" * 64 + ".example", "\udcff.example"]


def socks(tag: str, server: str) -> dict[str, Any]:
    return {**SOCKS, "tag": tag, "server": server}


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_an_address_is_its_own(host: str) -> None:
    resolved, troubles = resolve(for_proxy(ProxyConfig("socks5", host, 1080)))
    assert upstream_addresses(resolved) == (host,)
    assert troubles == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_an_address_that_no_proxy_has(host: str) -> None:
    with pytest.raises(ResolveError, match="which is nobody's"):
        resolve(for_proxy(ProxyConfig("socks5", host, 1080)))


@pytest.mark.parametrize("host", NO_NAMES)
def test_a_name_that_cannot_be(host: str) -> None:
    with pytest.raises(ResolveError, match="cannot be resolved"):
        resolve(for_proxy(ProxyConfig("socks5", host, 1080)))


def test_one_proxy_of_several_without_address_is_told(load: Load) -> None:
    config = load(outbounds=[socks("a", "a..b"), socks("b", "192.0.2.1"), DIRECT])
    resolved, (trouble,) = resolve(config)
    assert "'a..b' cannot be resolved" in trouble
    assert upstream_addresses(resolved) == ("192.0.2.1",)


def test_names_of_dns_servers_are_resolved_too(load: Load) -> None:
    servers = [{"type": "tls", "tag": "d", "server": "localhost"}, {"type": "udp", "tag": "e", "server": "192.0.2.53"}]
    resolved, troubles = resolve(load(dns={"servers": servers}))
    named, numeric = resolved.policy.dns.servers
    assert set(named.addresses) & {"127.0.0.1", "::1"}
    assert numeric.addresses == () and troubles == []


def test_direct_alone_needs_no_name(load: Load) -> None:
    assert resolve(load(outbounds=[DIRECT]))[1] == []
