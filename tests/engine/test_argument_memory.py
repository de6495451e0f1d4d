"""engine/argument_memory.py: what others see of a process, looked at from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.argument_memory import password_of

PROGRAM = """
import os, sys
from engine.argument_memory import hide_passwords, take_variable
hide_passwords(sys.argv[1:])
value = take_variable("TUNLOOM_PROXY")
print(value, os.environ.get("TUNLOOM_PROXY"), sys.argv[1:], flush=True)
sys.stdin.read()
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc: macOS hides nothing")


def seen(arguments: list[str], variable: str | None = None) -> tuple[list[str], str, str]:
    """Return arguments and environment as others see them, and what the program itself prints."""
    environment = os.environ | ({} if variable is None else {"TUNLOOM_PROXY": variable})
    command = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        shown, inherited = (Path(f"/proc/{process.pid}/{name}").read_text() for name in ("cmdline", "environ"))
        process.communicate()
    return shown.rstrip("\0").split("\0")[3:], inherited, told


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["start", "--proxy", "socks5://alice:s3cret@h:1"], ["start", "--proxy", "socks5://alice:******@h:1"]),
        (["start", "--proxy=http://a:h@h:80"], ["start", "--proxy=http://a:*@h:80"]),
        (["--proxy", "alice:p4ss:w@rd@h:1", "--mtu", "1500"], ["--proxy", "alice:*********@h:1", "--mtu", "1500"]),
        (["--proxy", "socks5://a:%2Fx@[::1]:1", "x"], ["--proxy", "socks5://a:****@[::1]:1", "x"]),
        (["--proxy", "socks5://alice@h:1"], ["--proxy", "socks5://alice@h:1"]),
        (["--proxy", "socks5://[h:1", "--proxy"], ["--proxy", "socks5://[h:1", "--proxy"]),
        (["-c", "http://a:b@h"], ["-c", "http://a:b@h"]),
    ],
)
def test_password_is_shown_no_more(arguments: list[str], shown: list[str]) -> None:
    others, _, told = seen(arguments)
    assert others == shown
    assert told == f"None None {arguments}\n"


def test_variable_is_taken() -> None:
    _, inherited, told = seen([], "socks5://alice:s3cret@h:1")
    assert told == "socks5://alice:s3cret@h:1 None []\n"
    assert f"TUNLOOM_PROXY={'*' * 25}\0" in inherited and "s3cret" not in inherited


@pytest.mark.parametrize(
    ("url", "password"),
    [("socks5://a:b@h", "b"), ("a:b:c@d@h:1", "b:c@d"), ("socks5://h:1", ""), ("socks5://a@h", ""), ("socks5://[", "")],
)
def test_password_of(url: str, password: str) -> None:
    assert password_of(url) == password
