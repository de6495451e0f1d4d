"""What somebody can do who has taken over a worker or the HTTP process: everything is tried from inside of real ones."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from engine.rights import GUARDIAN, MASTER
from engine.service.manager import ServiceFailed, need_privacy
from engine.users import HTTP_UID, WORKER_UID
from shared.confinement import kernel_confinement
from shared.privileges import CAP_DAC_OVERRIDE
from tests.support.engine import ENGINE, bed, running_engine
from tests.support.http import request
from tests.support.netns import PROXY_V4, topology, wait_until
from tests.support.upstreams import embedded

SOMEBODY = 60999
"""A user that nobody is."""

pytestmark = pytest.mark.e2e

INTRUDER = Path(__file__).parents[1] / "support" / "intruder"
ATTEMPTS = 53


@pytest.fixture
def intruder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory by which engines that are started from now on have workers that were taken over (support/intruder)."""
    folder = tmp_path / "intruder"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(INTRUDER))
    monkeypatch.setenv("TUNLOOM_INTRUDER", str(folder))
    return folder


@pytest.mark.skipif(bool(kernel_confinement().remarks), reason="needs a kernel with Landlock and seccomp")
@pytest.mark.parametrize("kind", ["worker", "http"])
def test_who_has_taken_over_a_process_gets_nowhere(run_dir: Path, tmp_path: Path, intruder: Path, kind: str) -> None:
    root_file = tmp_path / "root's"
    root_file.touch(0o600)
    with bed(run_dir) as made:
        before, status = made.net.client.snapshot(), made.engine.status()
        first, second = (worker.pid for worker in status.workers)
        pid, other = (first, second) if kind == "worker" else (status.http_pid, first)
        assert pid is not None
        names = {"master": made.engine.pid, "guardian": status.guardian_pid, "other": other}
        question = {"run_dir": str(run_dir), "root_file": str(root_file), **names}
        (intruder / "question").write_text(json.dumps(question))
        wait_until(lambda: catches(pid, signal.SIGUSR2), 60.0, what="a confined process")
        os.kill(pid, signal.SIGUSR2)
        answer = intruder / f"answer-{pid}"
        wait_until(lambda: answer.read_text().endswith("\n"), 60.0, what="the outcome of all attempts")
        outcomes = json.loads(answer.read_text())
        assert {what: came for what, came in outcomes.items() if not came.startswith("PermissionError: ")} == {}
        assert len(outcomes) == ATTEMPTS + (kind == "worker")
        assert made.net.client.snapshot() == before
        after = made.engine.status()
        assert [worker.pid for worker in after.workers] == [first, second]
        assert (after.http_pid, after.guardian_pid) == (status.http_pid, status.guardian_pid)
    assert not Path("/tmp/tunloom-evil").exists()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (SigCgt of proc_pid_status(5))."""
    return bool(capabilities(pid, "SigCgt") >> (number - 1) & 1)


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
        shown = made.engine.status().rights.capabilities
        assert shown and set(shown) <= set(MASTER.values())
        wait_until(lambda: capabilities(guardian) == mask(GUARDIAN), 60.0, what="the guardian giving up its rights")
        for name in "CapPrm", "CapEff", "CapBnd":
            assert capabilities(made.engine.pid, name) == mask(MASTER), name
        assert capabilities(guardian, "CapEff") == mask(GUARDIAN)
        assert capabilities(guardian, "CapBnd") == mask(MASTER)  # a stale one that no_new_privs makes worthless


def test_guardian_runs_before_others_and_workers_do_not(run_dir: Path) -> None:
    if subprocess.run(["chrt", "--rr", "1", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody be real-time")
    with bed(run_dir) as made:
        status = made.engine.status()
        assert status.guardian_pid is not None
        assert os.sched_getscheduler(status.guardian_pid) == os.SCHED_RR | os.SCHED_RESET_ON_FORK
        for pid in (made.engine.pid, status.http_pid, *(worker.pid for worker in status.workers)):
            assert pid is not None
            assert os.sched_getscheduler(pid) == os.SCHED_OTHER


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


def test_kernel_without_landlock(run_dir: Path) -> None:
    """The engine starts all the same, and says what is missing."""
    wrapper = (sys.executable, "-m", "tests.support.old_kernel")
    with (
        topology() as net,
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url, workers=1, wrapper=wrapper) as engine,
    ):
        rights = engine.status().rights
        assert (rights.landlock, len(rights.remarks)) == (0, 1)
        assert rights.remarks[0].startswith(
            "no Landlock, so that their user alone keeps workers from files: the kernel has none"
        )
        assert rights.remarks[0] in engine.log
        assert engine.status().workers[0].state == "running"


@pytest.mark.parametrize("told", ["option", "variable"])
def test_password_is_nowhere_to_be_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    """Not on the command line of the engine or a child, nor in an environment, the log, the status, or the metrics."""
    secret = "s3cret-w0rd"
    url = f"socks5://alice:{secret}@{PROXY_V4}:1080"
    if told == "variable":
        monkeypatch.setenv("TUNLOOM_PROXY", url)
    with (
        topology() as net,
        embedded(net.internet, password=secret),
        running_engine(net.client, run_dir, proxy=url if told == "option" else None) as engine,
    ):
        asked = net.client.run(*ENGINE, "status", "--json", "--run-dir", str(run_dir))
        read = [engine.log, asked, request(net.client, "/metrics").body.decode()]
        for pid in engine.processes():
            read += [Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ")]
        assert len(read) == 3 + 2 * 5  # master, guardian, two workers, HTTP
        assert [text for text in read if secret in text] == []
        assert "alice:***@" in asked
        assert ("the password in --proxy could be read by every user" in engine.log) is (told == "option")


@pytest.mark.parametrize(("mode", "sentence"), [(0o644, "others can read it"), (0o600, ""), (None, "")])
def test_environment_of_the_service_is_private(tmp_path: Path, mode: int | None, sentence: str) -> None:
    path = tmp_path / "environment"
    if mode is not None:
        path.touch()
        path.chmod(mode)
    try:
        need_privacy(path)
        said = ""
    except ServiceFailed as error:
        said = str(error)
    assert sentence in said and bool(said) is bool(sentence)
