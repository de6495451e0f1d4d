"""The guardian, with a master that dies."""

import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.engine.netconf.machine import plan
from tests.support.netns import TARGET_V4, Namespace, Topology, ip, wait_until
from tests.support.network_master import Master, network_master, pids


def waits_for_a_lock(pid: int) -> bool:
    """Whether a process is blocked in flock(2); such lines of /proc/locks have an arrow."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(fields[1] == "->" and fields[5] == str(pid) for fields in locks)


def keep_tun(client: Namespace) -> None:
    """Make the tun persistent: a helper that finds none left would change nothing for that reason alone."""
    with client.entered():
        ip("tuntap", "add", "tun0", "mode", "tun")


def master(client: Namespace, run_dir: Path, last_step: str) -> AbstractContextManager[Master]:
    return network_master(client, run_dir, plan(), last_step)


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


@pytest.mark.e2e
def test_hung_guardian_is_killed_and_replaced(net: Topology, tmp_path: Path) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "applied") as victim:
        victim.expect("guarded")
        victim.expect("applied")
        hung = victim.guardian()
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: victim.guardians() not in ([], [hung]), 60, what="another guardian")
        assert hung not in pids(), "never two that would undo the journal"
        assert net.client.route_to(TARGET_V4)["dev"] == "tun0", "the network stays as it is"
        wait_until(lambda: is_ignoring(victim.guardian(), signal.SIGTERM), 60, what="the guardian's readiness")
        victim.process.kill()
        wait_until(lambda: not victim.helpers(), 60, what="the end of the guardian")
    assert net.client.snapshot() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_hung_guardian_does_not_hold_up_a_stop(net: Topology, tmp_path: Path) -> None:
    before = net.client.snapshot()
    with master(net.client, tmp_path, "restored") as running:
        running.expect("guarded")
        running.expect("applied")
        os.kill(running.guardian(), signal.SIGSTOP)
        running.go_on()
        running.expect("restored")
        assert running.process.wait() == 0
        assert running.helpers() == []
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
        running.go_on()
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
