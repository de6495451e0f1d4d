"""`engine import` as its users meet it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.engine.test_cli import ROOT, assert_refused, engine

SAMPLES = Path(__file__).parent / "config" / "importers" / "samples"


def test_what_is_printed_is_taken_by_check(tmp_path: Path) -> None:
    result = engine("import", "v2ray", str(SAMPLES / "v2rayu.json"))
    assert result.returncode == 0
    assert json.loads(result.stdout)["outbounds"][0]["server_port"] == 1080
    assert f"{SAMPLES}/v2rayu.json:37:9: warning: geosite:category-ads: left to the local proxy" in result.stderr
    (tmp_path / "config.json").write_text(result.stdout)
    assert engine("check", "-c", str(tmp_path / "config.json")).returncode == 0


def test_standard_input() -> None:
    command = [sys.executable, "-m", "engine", "import", "clash", "-"]
    result = subprocess.run(command, input="mixed-port: 7890\n", capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert json.loads(result.stdout)["outbounds"][0]["server_port"] == 7890


def test_bad_usage(tmp_path: Path) -> None:
    assert_refused(engine("import", "surge", "x"), 2, "surge")
    assert_refused(engine("import", "clash", str(tmp_path / "none")), 2, "cannot be read: No such file")
    (tmp_path / "bad.json").write_text('{"inbounds": [}')
    result = engine("import", "v2ray", str(tmp_path / "bad.json"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "bad.json:1:15: " in result.stderr and "Traceback" not in result.stderr
