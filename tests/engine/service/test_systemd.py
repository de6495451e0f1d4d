"""The unit, as systemd itself reads it, and the commands around it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.notify import watchdog_interval
from engine.service.manager import RUNNING_SYSTEMD
from engine.service.systemd import systemd_unit

PROGRAM = ["/usr/bin/python3", "-P", "-m", "engine"]
START = "ExecStart=/usr/bin/python3 -P -m engine start --run-dir /run/tunloom "


def lines(*arguments: str) -> list[str]:
    return systemd_unit(PROGRAM, arguments).splitlines()


def test_what_is_run() -> None:
    unit = lines("-c", "/etc/tunloom/config.json", "--kill-switch")
    assert START + "-c /etc/tunloom/config.json --kill-switch" in unit
    assert "EnvironmentFile=-/etc/tunloom/environment" in unit
    assert "ExecReload=/usr/bin/python3 -P -m engine reload --run-dir /run/tunloom" in unit
    assert "ExecStopPost=-/usr/bin/python3 -P -m engine repair --hold --run-dir /run/tunloom" in unit
    assert {"Type=notify", "WatchdogSec=30", "Restart=on-failure", "RuntimeDirectoryPreserve=yes"} <= set(unit)


def test_it_keeps_few_rights() -> None:
    (bounding,) = (line for line in lines() if line.startswith("CapabilityBoundingSet="))
    assert "CAP_NET_ADMIN" in bounding and "CAP_SYS_ADMIN" not in bounding
    assert {"NoNewPrivileges=yes", "DeviceAllow=/dev/net/tun rw", "DevicePolicy=closed"} <= set(lines())


def test_workers_may_confine_themselves() -> None:
    """@system-service of systemd 252 is without Landlock; a call that is not in it is refused, and does not kill."""
    (added,) = (line for line in lines() if line.startswith("SystemCallFilter=") and "@" not in line)
    assert {f"landlock_{name}" for name in ("create_ruleset", "add_rule", "restrict_self")} <= set(added[17:].split())
    assert "SystemCallErrorNumber=EPERM" in lines()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("/etc/my config.json", '"/etc/my config.json"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("", '""'),
    ],
)
def test_words_reach_the_engine_as_they_are(word: str, expected: str) -> None:
    assert START + f"-c {expected}" in lines("-c", word)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "tunloom.service"
    path.write_text(systemd_unit([sys.executable, "-P", "-m", "engine"], ["-c", "/etc/my config 100%.json"]))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "engine", *arguments], capture_output=True, text=True)


def test_unit_is_printed() -> None:
    done = engine("service", "unit", "--", "--proxy", "socks5://127.0.0.1:1080")
    assert done.returncode == 0
    assert "start --run-dir /run/tunloom --proxy socks5://127.0.0.1:1080\n" in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--proxy", "socks5://alice:s3cret@192.0.2.1:1080"], "can be read by every user"),
        (["-c", "config.json"], "write the whole path"),
        (["--run-dir", "/tmp/x"], "keeps its files in /run/tunloom"),
    ],
)
def test_options_that_a_service_cannot_have(options: list[str], sentence: str) -> None:
    done = engine("service", "install", "--", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert sentence in done.stderr and "s3cret" not in done.stderr


@pytest.mark.skipif(
    RUNNING_SYSTEMD.exists(), reason="this machine is run by systemd, and must not get a service of a test"
)
def test_machine_without_systemd() -> None:
    if os.geteuid() == 0:
        done = engine("service", "install", "--", "-c", "/etc/tunloom/config.json")
        assert done.returncode == 1 and "is not run by systemd" in done.stderr
        assert engine("service", "uninstall").stdout == "not installed: nothing to remove\n"
    done = engine("service", "status", "--json")
    assert (done.returncode, done.stdout) == (1, '{"installed": false, "enabled": "unknown", "active": "unknown"}\n')


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        (None, None, None),
    ],
)
def test_watchdog(monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, expected: float | None) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == expected
