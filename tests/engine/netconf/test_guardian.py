"""The guardian, with a master that dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.engine.netconf.machine import plan
from tests.support.netns import TARGET_V4, Namespace, Topology, ip, wait_until

MASTER = """
import asyncio, sys
from pathlib import Path
import msgspec, uvloop
from engine.netconf import Network, NetworkError
from engine.netconf.plan import NetworkPlan
from engine.tun import open_tun

async def main() -> None:
    run_dir, plan, last_step = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=NetworkPlan), sys.argv[3]
    tun = open_tun("tun0", mtu=1500)
    network = Network(run_dir)
    await network.start_guardian()
    print("guarded", flush=True)
    if last_step == "guarded":
        await asyncio.Event().wait()
    await network.apply(plan)
    print("applied", flush=True)
    if last_step == "applied":
        await asyncio.Event().wait()
    await asyncio.to_thread(sys.stdin.readline)
    await network.restore()
    print("restored", flush=True)

uvloop.run(main())
"""


class Master:
    """A master in the client's namespace that goes on until `last_step`."""

    def __init__(self, process: subprocess.Popen[str], run_dir: Path) -> None:
        self.process = process
        self.run_dir = run_dir

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{line}\n"

    def helpers(self) -> list[int]:
        """Pids of the guardian and of helpers at work."""
        mark = b"--run-dir\0" + os.fsencode(self.run_dir) + b"\0"
        return [pid for pid in pids() if mark in command_line(pid)]

    def guardian(self) -> int:
        (pid,) = (pid for pid in self.helpers() if b"engine.netconf.guardian" in command_line(pid))
        return pid

    def helper(self) -> int:
        (pid,) = (pid for pid in self.helpers() if b"\0apply\0" in command_line(pid))
        return pid

    def changes(self) -> int:
        """How many lines the journal has now."""
        try:
            return (self.run_dir / "network.journal").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def waits_for_a_lock(pid: int) -> bool:
    """Whether a process is blocked in flock(2); such lines of /proc/locks have an arrow."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(fields[1] == "->" and fields[5] == str(pid) for fields in locks)


def keep_tun(client: Namespace) -> None:
    """Make the tun persistent: a helper that finds none left would change nothing for that reason alone."""
    with client.entered():
        ip("tuntap", "add", "tun0", "mode", "tun")


@contextmanager
def master(client: Namespace, run_dir: Path, last_step: str) -> Iterator[Master]:
    arguments = (sys.executable, "-P", "-c", MASTER, str(run_dir), msgspec.json.encode(plan()).decode(), last_step)
    with client.process(
        *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield Master(process, run_dir)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_master_dies_after_apply(net: Topology, tmp_path: Path, number: signal.Signals) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "applied") as victim:
        victim.expect("guarded")
        victim.expect("applied")
        assert net.client.route_to(TARGET_V4)["dev"] == "tun0"
        os.killpg(victim.process.pid, number)  # the whole group, as Ctrl-C does
        wait_until(lambda: not victim.helpers(), what="the end of the guardian")
    assert net.client.snapshot() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_master_dies_before_apply(net: Topology, tmp_path: Path) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "guarded") as victim:
        victim.expect("guarded")
        victim.process.kill()
        wait_until(lambda: not victim.helpers(), what="the end of the guardian")
    assert net.client.snapshot() == before


@pytest.mark.e2e
@pytest.mark.parametrize("changes", [1, 2, 50, 100])
def test_master_dies_while_changes_are_made(net: Topology, tmp_path: Path, changes: int) -> None:
    """The guardian waits for the helper, and undoes what it did before and after the death."""
    keep_tun(net.client)
    before = net.client.snapshot()
    with master(net.client, tmp_path, "applied") as victim:
        victim.expect("guarded")
        while victim.changes() < changes:
            assert victim.process.poll() is None
        helper = victim.helper()
        os.kill(helper, signal.SIGSTOP)
        guardian = victim.guardian()
        victim.process.kill()
        wait_until(lambda: waits_for_a_lock(guardian) or guardian not in pids(), what="the guardian's turn")
        os.kill(helper, signal.SIGCONT)
        wait_until(lambda: not victim.helpers(), what="the end of guardian and helper")
    assert net.client.snapshot() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_master_dies_before_the_first_change(net: Topology, tmp_path: Path) -> None:
    """The guardian has nothing to undo and goes; a helper that is late must then change nothing."""
    keep_tun(net.client)
    before = net.client.snapshot()
    with master(net.client, tmp_path, "applied") as victim:
        victim.expect("guarded")
        wait_until(lambda: len(victim.helpers()) == 2, what="the helper")
        helper = victim.helper()
        os.kill(helper, signal.SIGSTOP)
        assert victim.changes() == 0
        guardian = victim.guardian()
        victim.process.kill()
        wait_until(lambda: guardian not in pids(), what="the end of the guardian")
        os.kill(helper, signal.SIGCONT)
        wait_until(lambda: not victim.helpers(), what="the end of the helper")
    assert net.client.snapshot() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_guardian_outlives_what_stops_the_engine(net: Topology, tmp_path: Path) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "applied") as victim:
        victim.expect("guarded")
        victim.expect("applied")
        guardian = victim.guardian()
        assert os.getsid(guardian) == guardian, "in a session of its own: no Ctrl-C reaches it"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guardian, number)
        victim.process.kill()
        wait_until(lambda: not victim.helpers(), what="the end of the guardian")
    assert net.client.snapshot() == before


@pytest.mark.e2e
def test_killed_guardian_is_replaced(net: Topology, tmp_path: Path) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "applied") as victim:
        victim.expect("guarded")
        victim.expect("applied")
        first = victim.guardian()
        for _ in range(2):
            dead = victim.guardian()
            os.kill(dead, signal.SIGKILL)
            wait_until(lambda: victim.helpers() not in ([], [dead]), what="another guardian")  # noqa: B023
        second = victim.guardian()
        assert second != first
        assert net.client.route_to(TARGET_V4)["dev"] == "tun0", "the network stays as it is"
        wait_until(lambda: is_ignoring(second, signal.SIGTERM), what="the guardian's readiness")
        victim.process.kill()
        wait_until(lambda: not victim.helpers(), what="the end of the guardian")
    assert net.client.snapshot() == before
    assert list(tmp_path.iterdir()) == []


def is_ignoring(pid: int, number: signal.Signals) -> bool:
    """Whether a process has set a signal to be ignored (SigIgn in proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return bool(mask >> (number - 1) & 1)


@pytest.mark.e2e
@pytest.mark.parametrize("guardian_lives", [True, False])
def test_clean_stop(net: Topology, tmp_path: Path, guardian_lives: bool) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "restored") as running:
        running.expect("guarded")
        running.expect("applied")
        if not guardian_lives:
            os.kill(running.guardian(), signal.SIGKILL)
        assert running.process.stdin is not None
        running.process.stdin.write("\n")
        running.process.stdin.flush()
        running.expect("restored")
        assert running.process.wait() == 0
        assert running.helpers() == []
    assert net.client.snapshot() == before


def test_guardian_imports_next_to_nothing_while_it_waits() -> None:
    script = """
import sys
import engine.netconf.guardian
print([name for name in ("asyncio", "uvloop", "pyroute2", "msgspec", "socket", "netaddr") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [[], ["--run-dir", "/x"], ["--run-dir", "/x", "--fd", "y"]])
def test_usage(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "engine.netconf.guardian", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")
