"""What somebody can do who has taken over a worker: one that has given up its privileges tries it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from engine.rights import GUARDIAN, MASTER
from engine.users import HTTP_UID, WORKER_UID
from shared.privileges import CAP_DAC_OVERRIDE
from tests.support.engine import ENGINE, bed
from tests.support.netns import wait_until

SOMEBODY = 60999
"""A user that nobody is."""

pytestmark = pytest.mark.e2e

ATTEMPTS = r"""
import ctypes, fcntl, json, os, signal, socket, struct, subprocess, sys
from shared.system import drop_privileges

master, run_dir, uid = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
drop_privileges(uid)

def attempt(action):
    try:
        action()
    except (OSError, subprocess.CalledProcessError) as error:
        return type(error).__name__
    return "SUCCEEDED"

def tun():
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"evil0", 0x1001))

def become_root():
    os.setuid(0)

def control():
    socket.socket(socket.AF_UNIX).connect(run_dir + "/control.sock")

print(json.dumps({
    "read a file of root": attempt(lambda: open("/etc/shadow").read()),
    "read the journal": attempt(lambda: open(run_dir + "/network.journal").read()),
    "read the master's memory": attempt(lambda: open(f"/proc/{master}/mem", "rb")),
    "read the master's environment": attempt(lambda: open(f"/proc/{master}/environ").read()),
    "signal the master": attempt(lambda: os.kill(master, signal.SIGTERM)),
    "ask the master": attempt(control),
    "open a tun": attempt(tun),
    "open a raw socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)),
    "change routes": attempt(lambda: subprocess.run(
        ["ip", "route", "add", "192.0.2.99", "dev", "lo"], check=True, capture_output=True)),
    "become root": attempt(become_root),
    "write a kernel parameter": attempt(lambda: open("/proc/sys/net/ipv4/ip_forward", "w").write("1")),
}))
"""


@pytest.mark.parametrize("uid", [WORKER_UID, HTTP_UID], ids=["worker", "http"])
def test_who_has_taken_over_a_process_gets_nowhere(run_dir: Path, uid: int) -> None:
    with bed(run_dir) as made:
        before = made.net.client.snapshot()
        arguments = (sys.executable, "-P", "-c", ATTEMPTS, str(made.engine.pid), str(run_dir), str(uid))
        outcomes = json.loads(made.net.client.run(*arguments))
        assert {what: outcome for what, outcome in outcomes.items() if outcome == "SUCCEEDED"} == {}
        assert len(outcomes) == 11
        assert made.net.client.snapshot() == before
        assert made.engine.status().workers[0].state == "running"


def own_user(pid: int | None) -> int:
    return os.stat(f"/proc/{pid}").st_uid


def test_the_processes_are_what_they_should_be(run_dir: Path) -> None:
    with bed(run_dir) as made:
        status = made.engine.status()
        people = {worker.pid: WORKER_UID for worker in status.workers}
        if status.http_pid is not None:
            people[status.http_pid] = HTTP_UID
        for pid, uid in people.items():
            wait_until(lambda: own_user(pid) == uid, what="the process giving up its rights")  # noqa: B023
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert fields["Uid"].split() == fields["Gid"].split() == [str(uid)] * 4
            assert fields["Groups"].split() == []
            assert [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
            assert fields["NoNewPrivs"].strip() == "1"
        assert (run_dir / "control.sock").stat().st_mode & 0o777 == 0o600


def capabilities(pid: int | None, name: str = "CapPrm") -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[name], 16)


def mask(numbers: Iterable[int]) -> int:
    """Of what this machine lets root have: a container may have less."""
    return capabilities(os.getpid()) & sum(1 << number for number in numbers)


def test_root_processes_keep_few_capabilities(run_dir: Path) -> None:
    """And can do with them what they must: replace a worker that hangs and a guardian that died, and restore the network."""
    with bed(run_dir) as made:
        before = made.engine.status()
        assert before.guardian_pid is not None and before.workers[0].pid is not None
        os.kill(before.guardian_pid, signal.SIGKILL)
        os.kill(before.workers[0].pid, signal.SIGSTOP)
        wait_until(
            lambda: (
                [worker.restarts for worker in made.engine.status().workers] == [1, 0]
                and {worker.state for worker in made.engine.status().workers} == {"running"}
            ),
            60.0,
            what="another worker",
        )
        wait_until(
            lambda: made.engine.status().guardian_pid not in (None, before.guardian_pid), what="another guardian"
        )
        guardian = made.engine.status().guardian_pid
        wait_until(lambda: capabilities(guardian) == mask(GUARDIAN), 60.0, what="the guardian giving up its rights")
        for name in "CapPrm", "CapEff", "CapBnd":
            assert capabilities(made.engine.pid, name) == mask(MASTER), name
        assert capabilities(guardian, "CapEff") == mask(GUARDIAN)
        assert capabilities(guardian, "CapBnd") == mask(MASTER)  # a stale one that no_new_privs makes worthless


def test_run_directory_of_somebody_else(run_dir: Path) -> None:
    run_dir.mkdir(mode=0o755)
    os.chown(run_dir, SOMEBODY, SOMEBODY)
    with bed(run_dir) as made:
        assert capabilities(made.engine.pid) == mask({*MASTER, CAP_DAC_OVERRIDE})
        guardian = made.engine.status().guardian_pid
        wait_until(
            lambda: capabilities(guardian) == mask({*GUARDIAN, CAP_DAC_OVERRIDE}),
            what="the guardian giving up its rights",
        )


def test_password_is_nowhere_to_be_read(run_dir: Path) -> None:
    """Not on the command line of a child, nor in its environment, the log, the status, or the error of a reload."""
    secret = "s3cret-w0rd"
    with bed(run_dir, "--proxy", f"socks5://alice:{secret}@192.0.2.1:1080") as made:
        asked = subprocess.run(
            made.net.client.command(*ENGINE, "status", "--json", "--run-dir", str(run_dir)),
            capture_output=True,
            text=True,
        )
        told = [made.engine.log, asked.stdout]
        for pid in made.engine.processes()[1:]:
            told += [Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ")]
        assert len(told) > 4
        assert [text for text in told if secret in text] == []
        assert "alice:***@" in asked.stdout
        assert os.path.exists(run_dir / "control.sock")
