"""The table of fake addresses of a run: where it is, and what is told when it cannot be used."""

from pathlib import Path

import msgspec
import pytest

from engine.config.model import CacheConfig, EngineConfig
from engine.config.named_proxy import for_proxy
from engine.fake_names import FakeNamesError, fake_ip_config, open_fake_names
from shared.config import DnsConfig, DnsServer, FakeIpConfig, ProxyConfig

PROXY = ProxyConfig(kind="socks5", host="127.0.0.1", port=1080, addresses=("127.0.0.1",))


def config(cache: CacheConfig | None = None, inet4_range: str = "198.19.0.0/24") -> EngineConfig:
    made = for_proxy(PROXY)
    servers = (
        DnsServer(tag="udp", kind="udp", server="192.0.2.1"),
        DnsServer(tag="fake", kind="fakeip", inet4_range=inet4_range),
    )
    policy = msgspec.structs.replace(made.policy, dns=DnsConfig(servers=servers))
    return msgspec.structs.replace(made, policy=policy, cache=cache)


def test_without_such_a_server_there_is_none(tmp_path: Path) -> None:
    assert open_fake_names(for_proxy(PROXY), tmp_path) is None
    assert fake_ip_config(for_proxy(PROXY)) is None


def test_addresses_mean_the_same_after_a_restart(tmp_path: Path) -> None:
    shown = []
    for _ in range(2):
        table = open_fake_names(config(), tmp_path)
        assert table is not None
        shown.append([table.address_of(name, 4) for name in ("a.test", "b.test")])
        table.close()
    assert shown[0] == shown[1]
    assert fake_ip_config(config()) == FakeIpConfig(inet4_range="198.19.0.0/24", inet6_range=None)


@pytest.mark.parametrize(("cache_id", "name"), [(None, "cache.db.fakeip"), ("one", "cache.db.fakeip.one")])
def test_it_lies_beside_the_cache_file(tmp_path: Path, cache_id: str | None, name: str) -> None:
    cache = CacheConfig(path=str(tmp_path / "cache.db"), cache_id=cache_id, store_fakeip=True)
    table = open_fake_names(config(cache), tmp_path / "run")
    assert table is not None
    table.close()
    assert (tmp_path / name).exists()


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FakeNamesError, match=r"cannot be kept in .*: No such file or directory"):
        open_fake_names(config(), tmp_path / "missing")
    (tmp_path / "fakeip").write_text("something else entirely")
    with pytest.raises(FakeNamesError, match="is not a fake-IP table"):
        open_fake_names(config(), tmp_path)
    with pytest.raises(FakeNamesError, match="too small"):
        open_fake_names(config(inet4_range="198.19.0.0/30"), tmp_path / "x")


def test_two_engines_do_not_share_one(tmp_path: Path) -> None:
    table = open_fake_names(config(), tmp_path)
    assert table is not None
    with pytest.raises(FakeNamesError, match="used by another engine"):
        open_fake_names(config(), tmp_path)
    table.close()
