"""What is kept of people's choices."""

import json
import logging
from pathlib import Path

import pytest

from engine.choices import Choices, choices_path
from engine.config.model import CacheConfig, EngineConfig
from engine.config.named_proxy import for_proxy
from engine.usage import DEFAULT_RUN_DIR, STATE_DIR
from shared.config import ProxyConfig


def config(cache: CacheConfig | None) -> EngineConfig:
    plain = for_proxy(ProxyConfig("socks5", "127.0.0.1", 1080))
    return EngineConfig(policy=plain.policy, cache=cache)


def test_what_is_chosen_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "not yet there" / "choices.json"
    choices = Choices(path, "info")
    assert (choices.mode, choices.selected) == (None, {})
    choices.mode = "direct"
    choices.selected["choice"] = "two"
    choices.keep()
    again = Choices(path, "debug")
    assert (again.mode, again.selected, again.log_level) == ("direct", {"choice": "two"}, "debug")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"mode": 1}', '{"selected": {"a": 1}}'])
def test_another_file_is_told_and_the_engine_goes_on(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "choices.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert Choices(path, "info").mode is None
    assert "holds something else" in caplog.text


def test_what_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "choices.json", "info")
    choices._path = tmp_path / "file" / "choices.json"
    with caplog.at_level(logging.WARNING):
        choices.keep()
    assert "is not kept" in caplog.text


def test_without_a_cache_file_nothing_is_kept(tmp_path: Path) -> None:
    assert choices_path(config(None), tmp_path) is None
    Choices(None, "info").keep()
    assert choices_path(config(CacheConfig()), tmp_path) == tmp_path / "choices.json"
    assert choices_path(config(CacheConfig()), DEFAULT_RUN_DIR) == STATE_DIR / "choices.json"
    named = CacheConfig(path="/var/cache/x.db", cache_id="home")
    assert choices_path(config(named), tmp_path) == Path("/var/cache/x.db.choices.home")


def test_the_file_is_plain(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "choices.json", "info")
    choices.mode = "Home"
    choices.keep()
    assert json.loads((tmp_path / "choices.json").read_text()) == {"mode": "Home"}
