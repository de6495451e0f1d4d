"""`engine check` as its users meet it."""

import json
from pathlib import Path

from tests.engine.test_cli import assert_refused, engine

ARTICLE = Path(__file__).parent / "config" / "article.json"


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"outbounds": [{"type": "socks", "tag": "p", "server": "127.0.0.1", "server_port": 1080}]} # end')
    result = engine("check", "-c", str(path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("ok: 1 outbounds")


def test_errors_and_warnings_stand_in_the_order_of_the_file() -> None:
    result = engine("check", "-c", str(ARTICLE))
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert lines[-1] == "engine: 1 error: the configuration cannot be used"
    assert [int(line.removeprefix(f"{ARTICLE}:").split(":")[0]) for line in lines[:-1]] == [10, 14, 24, 43, 59, 69, 74]
    assert [line for line in lines[:-1] if "warning: " not in line] == [lines[5]]


def test_several_files_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"route": {"final": "p"}}')
    (tmp_path / "a.json").write_text('{"outbounds": [{"type": "direct", "tag": "p"}]}')
    assert engine("check", "-c", str(tmp_path)).returncode == 0
    result = engine("check", "-c", str(tmp_path / "b.json"), "-c", str(tmp_path / "a.json"))
    assert result.returncode == 0, result.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = engine("check", "-c", str(tmp_path / "none.json"))
    assert result.returncode == 2
    assert f"{tmp_path}/none.json:1:1: the file cannot be read: No such file or directory" in result.stderr


def test_an_empty_directory(tmp_path: Path) -> None:
    assert_refused(engine("check", "-c", str(tmp_path)), 2, "has no *.json file")


def test_no_file_is_usage() -> None:
    assert_refused(engine("check"), 2, "-c is missing")


def test_schema() -> None:
    result = engine("check", "--schema")
    assert result.returncode == 0
    assert json.loads(result.stdout)["$ref"] == "#/$defs/FileOptions"
