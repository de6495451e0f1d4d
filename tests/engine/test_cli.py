"""engine/cli as its users meet it: a process, its exit code and what it prints.

Nothing here starts an engine; should one start by mistake, it does so in a network namespace of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534
TIMEOUT = 60.0  # seconds; turns a hang into a failure


def engine(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `engine ARGUMENTS`; `before` is put in front of the command."""
    if not before and os.geteuid() == 0:
        before = ("unshare", "--net")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [*before, sys.executable, "-m", "engine", *arguments]
    return subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, errors="surrogateescape", timeout=TIMEOUT
    )


def assert_refused(result: subprocess.CompletedProcess[str], code: int, part: str) -> None:
    """The exit code, and one sentence on stderr that contains `part`; nothing on stdout, no traceback."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    if result.stderr.startswith("engine: "):
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--proxy", "ftp://127.0.0.1:1080"), "'ftp' is not a kind of proxy"),
        (("--proxy", "socks5://127.0.0.1:99999"), "port must be a number"),
        (("--proxy", "socks5://[::1:1080"), "brackets"),
        (("--proxy", "socks5://user@127.0.0.1"), "wants a password"),
        (("--proxy", "socks5://u:\udcff@127.0.0.1"), "must be UTF-8"),
        (("--proxy", "127.0.0.1", "--mtu", "1279"), "--mtu"),
        (("--proxy", "127.0.0.1", "--mtu", "65536"), "--mtu"),
        (("--proxy", "127.0.0.1", "--workers", "0"), "--workers"),
        (("--proxy", "127.0.0.1", "--workers", "65"), "--workers"),
        (("--proxy", "127.0.0.1", "--workers", "many"), "--workers"),
        (("--proxy", "127.0.0.1", "--log-level", "loud"), "--log-level"),
        (("--proxy", "127.0.0.1", "--frobnicate"), "--frobnicate"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_start_refuses_a_bad_option(arguments: tuple[str, ...], part: str) -> None:
    result = engine("start", *arguments)
    assert_refused(result, 2, part)


def test_password_of_a_refused_url_is_not_printed() -> None:
    result = engine("start", "--proxy", "ftp://anna:s3cret@127.0.0.1:1080")
    assert_refused(result, 2, "ftp")
    assert "s3cret" not in result.stderr


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="looked at only after the check for root")


@root_only
def test_start_refuses_a_namespace_that_does_not_exist() -> None:
    result = engine("start", "--proxy", "127.0.0.1", "--netns", "tunloom-no-such-namespace")
    assert_refused(result, 2, "/run/netns/tunloom-no-such-namespace cannot be opened")


@root_only
def test_start_without_a_proxy_anywhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    result = engine("start")
    assert_refused(result, 2, "no proxy was found")
    assert "engine start --proxy socks5://127.0.0.1:1080" in result.stderr


@root_only
def test_start_refuses_a_host_that_cannot_be_resolved() -> None:
    assert_refused(engine("start", "--proxy", "socks5://a..b:1080"), 2, "cannot be resolved")


@root_only
def test_start_refuses_a_run_directory_that_cannot_be() -> None:
    result = engine("start", "--proxy", "127.0.0.1", "--run-dir", "/dev/null/run")
    assert_refused(result, 1, "--run-dir: /dev/null/run cannot be used")


@pytest.mark.parametrize("arguments", [("start", "--proxy", "127.0.0.1:1080"), ("demo",), ("repair",)])
def test_what_needs_root_says_so(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = engine(*arguments, before=unprivileged())
    assert_refused(result, 3, "needs root")


def unprivileged() -> tuple[str, ...]:
    """A command prefix that makes its command run without root. The interpreter may stand in root's home directory, so
    the right to read files is kept; a plain user needs no prefix."""
    if os.geteuid() != 0:
        return ("env",)
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (package util-linux)")
    kept = "-all,+dac_override,+dac_read_search"
    return (
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["status", "stop"])
def test_without_engine_there_is_nothing_to_ask(command: str, tmp_path: Path) -> None:
    result = engine(command, "--run-dir", str(tmp_path))
    assert_refused(result, 1, f"no engine is running (nothing listens on {tmp_path}/control.sock)")


def test_status_as_json_without_engine_prints_no_json(tmp_path: Path) -> None:
    assert_refused(engine("status", "--json", "--run-dir", str(tmp_path)), 1, "no engine is running")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(flag: str) -> None:
    result = engine(flag)
    assert result.returncode == 0
    for command in ("start", "stop", "status", "demo", "repair"):
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", ["start", "stop", "status", "demo", "repair"])
def test_every_command_has_help(command: str) -> None:
    result = engine(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"engine {command}" in result.stdout


def test_unknown_command_is_usage() -> None:
    assert_refused(engine("frobnicate"), 2, "frobnicate")
