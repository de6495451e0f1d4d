"""The command `engine demo`, as a user runs it."""

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.demo.report import DemoReport
from tests.support.netns import wait_until

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-P", "-m", "engine", "demo", "--workers", "2", "--seconds", "0.3"]


def test_demo_passes_and_reports_in_json() -> None:
    done = subprocess.run([*DEMO, "--json"], capture_output=True, text=True, timeout=100)
    report = msgspec.json.decode(done.stdout, type=DemoReport)
    assert report.errors == [] and report.ok and done.returncode == 0, done.stderr
    assert all(report.checks.values())
    assert report.workers == len(report.flows_per_worker) == 2
    assert min(report.flows_per_worker) > 0
    assert report.udp_sent == report.udp_received > 0
    assert min(report.tcp_up_gbit_s, report.tcp_down_gbit_s, report.connections_per_s, report.http_requests_per_s) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_under_load_removes_everything(number: signal.Signals) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        wait_until(lambda: "engine.demo.load" in commands_of_children(demo.pid) or demo.poll() is not None, 60)
        demo.send_signal(number)
        output, errors = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert output == ""
    assert "Interrupted; everything has been removed." in errors


def commands_of_children(pid: int) -> str:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return " ".join(command_of(child) for child in children)


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # it has ended meanwhile
        return ""


def test_demo_without_permission_to_make_namespaces() -> None:
    code = "import sys; from engine.demo.run import run_demo; sys.exit(run_demo(workers=1, seconds=1, as_json=False))"
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(nobody, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert done.stderr.strip().endswith("it takes root, and in a container CAP_SYS_ADMIN and CAP_NET_ADMIN")
    assert len(done.stderr.splitlines()) == 1
