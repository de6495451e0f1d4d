"""engine/config/effective.py: the command line comes before the files, and nothing is changed by looking."""

from pathlib import Path
from typing import Any

import pytest

from engine.config.effective import CommandLine, UsageError, effective
from engine.config.model import EngineConfig
from engine.config.problems import ConfigError
from engine.http import HttpOptions
from engine.http.listen import ListenError
from shared.config import ProxyConfig
from tests.engine.config.conftest import TUN, machine, with_base

PROXY = ProxyConfig("socks5", "192.0.2.1", 1080)


def of_file(text: str, **options: Any) -> tuple[EngineConfig, tuple[str, ...]]:
    return effective(CommandLine(files=(Path("/c.json"),), **options), machine({"/c.json": text.encode()}))


def test_without_files() -> None:
    config, remarks = effective(
        CommandLine(proxy=PROXY, interface="tun9", mtu=1500, auto_route=False, log_level="debug")
    )
    assert (config.tun.interface_name, config.tun.mtu, config.tun.auto_route) == ("tun9", 1500, False)
    assert (config.log.level, config.log.format, remarks) == ("debug", "text", ())


def test_options_come_before_the_file() -> None:
    text = with_base(
        inbounds=[{**TUN, "interface_name": "tun1", "mtu": 9000}], log={"level": "error"}, engine={"offload": "tso"}
    )
    config, _ = of_file(text, proxy=PROXY, mtu=1400, log_format="json")
    assert (config.tun.interface_name, config.tun.mtu, config.tun.offload) == ("tun1", 1400, "tso")
    assert (config.log.level, config.log.format) == ("error", "json")
    assert str(config.policy.outbounds[0].proxy) == "socks5://192.0.2.1:1080"  # type: ignore[union-attr]


def test_remarks_are_the_warnings_of_the_files() -> None:
    text = with_base(ntp={"enabled": True})
    _, remarks = of_file(text)
    assert remarks == ("/c.json:25:2: ntp: ntp has no effect: the machine keeps its own time",)


@pytest.mark.parametrize(
    ("metrics", "secret", "expected"),
    [
        (None, "", HttpOptions(addresses=(("127.0.0.1", 9090),), is_named=True, secret="file")),
        (None, "env", HttpOptions(addresses=(("127.0.0.1", 9090),), is_named=True, secret="env")),
        ("0.0.0.0:1", "", HttpOptions(addresses=(("0.0.0.0", 1), ("127.0.0.1", 9090)), is_named=True, secret="file")),
        ("off", "", None),
    ],
)
def test_what_is_served_where(metrics: str | None, secret: str, expected: HttpOptions | None) -> None:
    text = with_base(experimental={"clash_api": {"external_controller": "127.0.0.1:9090", "secret": "file"}})
    assert of_file(text, metrics=metrics, secret=secret)[0].http == expected


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="the kill switch needs the routes"):
        effective(CommandLine(proxy=PROXY, kill_switch=True, auto_route=False))
    with pytest.raises(ListenError, match="only with a secret"):
        effective(CommandLine(proxy=PROXY, metrics="0.0.0.0:1"))
    with pytest.raises(ConfigError):
        effective(CommandLine(files=(Path("/c.json"),)), machine({"/c.json": b"{"}))
