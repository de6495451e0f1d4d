"""A load test of some seconds: every kind of user gets right answers through the engine, and what a run leaves is complete."""

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.netns import leaving_nothing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),  # a run lasts up to a minute, and on a busy machine its lab takes another to come up
    # Not importorskip: whoever imports locust has the library's sockets replaced by gevent's.
    pytest.mark.skipif(find_spec("locust") is None, reason="needs locust (pip install '.[load]')"),
]

ROOT = Path(__file__).parents[2]
PATIENT = (
    "--slo-p95",
    "20000",
    "--slo-loss",
    "50",
)  # a loaded machine is slow, and loses datagrams: this is no benchmark


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    with leaving_nothing():
        return subprocess.run(
            [sys.executable, "-m", "loadtests", "--out", str(folder), *PATIENT, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=280,
        )


def succeeded(folder: Path) -> dict[str, int]:
    """Name of each kind of request -> how many succeeded."""
    with (folder / "locust_stats.csv").open(newline="") as file:
        return {row["Name"]: int(row["Request Count"]) - int(row["Failure Count"]) for row in csv.DictReader(file)}


def test_every_kind_of_user_gets_right_answers(tmp_path: Path) -> None:
    done = run(tmp_path, "quick", "--classes", "Http", "HttpShort", "StreamUp", "StreamDown", "TcpChurn", "UdpEcho", "Dns",
               "WebSocket", "Office", "HttpHold")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers = succeeded(tmp_path)
    for name in (
        "GET keep-alive", "GET short", "stream up", "stream down", "connect, echo, close", "echo", "A", "open", "message",
        "GET office page", "hold: connect",
    ):  # fmt: skip
        assert answers[name] > 0, name
    for name in ("run.html", "locust.html", "engine.csv", "engine.log", "locust_stats_history.csv"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert json.loads((tmp_path / "objectives.json").read_text())["missed"] == []


def test_several_locust_processes(tmp_path: Path) -> None:
    done = run(tmp_path, "quick", "--processes", "2", "-t", "4s", "--classes", "Http", "TcpChurn")
    assert done.returncode == 0, done.stdout + done.stderr
    assert min(succeeded(tmp_path)[name] for name in ("GET keep-alive", "connect, echo, close")) > 0


def test_spike_goes_through_all_its_phases(tmp_path: Path) -> None:
    """With few users, on a machine that has other things to do: what came of it is told, and is not judged here."""
    done = run(tmp_path, "spike", "-u", "10", "--classes", "Http", "TcpChurn")
    assert "10 users are carried: " in done.stdout, done.stdout + done.stderr
    for part in (
        "before the spike, half of them: ",
        "in the spike, twice as many: ",
        "after the spike",
        "0 wrong answers",
        "the engine counted",
    ):
        assert part in done.stdout, done.stdout
    facts = json.loads((tmp_path / "objectives.json").read_text())["spike"]
    assert facts["end"] - facts["start"] == pytest.approx(20)
    with (tmp_path / "locust_stats_history.csv").open(newline="") as file:
        users = {int(row["User Count"]) for row in csv.DictReader(file)}
    assert {5, 10, 20} <= users


def test_what_looks_at_each_request_is_of_one_process(tmp_path: Path) -> None:
    done = run(tmp_path, "spike", "--processes", "2")
    assert done.returncode == 2
    assert "leave --processes out" in done.stderr


def test_worker_that_dies_takes_only_its_own_flows_with_it(tmp_path: Path) -> None:
    """With every kind of user."""
    done = run(tmp_path, "worker-crash", "-u", "45", "-t", "18s")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "flows that died with their worker",
        "of other workers",
        "kinds of requests were answered after",
        "1 workers died",
    ):
        assert part in done.stdout, done.stdout


def test_failure_fails_the_run(tmp_path: Path) -> None:
    """An objective that nobody can keep: the exit code tells, and the page names it."""
    done = run(tmp_path, "quick", "-t", "3s", "--classes", "Http", "--slo-p95", "0.001")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MISSED GET GET keep-alive: 95 % within" in done.stdout
    assert 'class="bad">GET GET keep-alive' in (tmp_path / "run.html").read_text()
