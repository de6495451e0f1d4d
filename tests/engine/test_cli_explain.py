"""`engine explain` as its users meet it."""

import json
from pathlib import Path

import pytest

from tests.engine.test_cli import assert_refused, engine

CONFIG = """{
 "outbounds": [{"type": "socks", "tag": "p", "server": "127.0.0.1", "server_port": 1080}, {"type": "direct", "tag": "direct"}],
 "route": {"rules": [
  {"ip_cidr": "203.0.113.0/24", "process_name": "curl", "outbound": "direct"}
 ]}
}"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(CONFIG)
    return str(path)


def test_the_deciding_rule_is_the_last_line(config: str) -> None:
    result = engine("explain", "203.0.113.7:443", "-c", config, "--process", "curl")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"outbound direct, by {config}:4:3"
    result = engine("explain", "203.0.113.7:443", "-c", config)
    assert "process_name: the program is not known" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("outbound p (socks5://127.0.0.1:1080), as no rule takes it")


def test_json(config: str) -> None:
    result = engine("explain", "[2001:db8::1]:53", "--udp", "-c", config, "--json")
    answer = json.loads(result.stdout)
    assert (answer["action"], answer["outbound"]) == ("hijack-dns", None)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("203.0.113.7",), "is not HOST:PORT"),
        (("203.0.113.7:0",), "is not HOST:PORT"),
        (("2001:db8::1:80",), "stands in brackets"),
        (("a.example:80", "--source", "b.example"), "is no IP address"),
    ],
)
def test_bad_usage(config: str, arguments: tuple[str, ...], part: str) -> None:
    assert_refused(engine("explain", *arguments, "-c", config), 2, part)


def test_no_file_is_usage() -> None:
    assert_refused(engine("explain", "a.example:80"), 2, "-c is missing")
