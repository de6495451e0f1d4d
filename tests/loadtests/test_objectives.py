"""loadtests/objectives.py: what a run of locust must keep to."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtests.objectives import judge


@dataclass
class Requests:
    """All requests of one kind, as locust's statistics have them."""

    method: str
    name: str
    num_requests: int
    num_failures: int = 0
    p95: float = 10.0

    def get_response_time_percentile(self, percent: float) -> float:
        assert percent == 0.95
        return self.p95


def missed(*entries: Requests, p95: float = 100.0, loss: float = 1.0) -> list[str]:
    return judge(entries, p95=p95, loss=loss)[0]


def test_run_that_keeps_all() -> None:
    entries = Requests("GET", "GET short", 100), Requests("UDP", "echo", 100), Requests("UDP", "echo lost", 1)
    wrong, kept = judge(entries, p95=100.0, loss=1.0)
    assert wrong == []
    assert "201 requests succeeded" in kept
    assert "none failed" in kept
    assert "UDP echo: 1 lost (0.99 %), to be 1 %" in kept


def test_run_without_an_answer_proves_nothing() -> None:
    assert missed() == ["0 requests succeeded"]
    assert "0 requests succeeded" in missed(Requests("GET", "GET short", 3, num_failures=3))


def test_one_failure_is_one_too_many() -> None:
    assert missed(Requests("TCP", "stream up", 1000, num_failures=1)) == ["TCP stream up: 1 of 1000 failed"]


def test_slow_answers_and_slow_transfers() -> None:
    assert missed(Requests("GET", "GET short", 100, p95=500)) == ["GET GET short: 95 % within 500 ms, to be 100 ms"]
    assert missed(Requests("TCP", "stream down", 100, p95=5000)) == [], "a transfer takes its time"
    assert missed(Requests("GET", "GET short", 5, p95=500)) == [], "five answers are no statistics"


def test_datagrams_may_be_lost_now_and_then() -> None:
    entries = Requests("DNS", "A", 98), Requests("DNS", "A lost", 2)
    assert missed(*entries) == ["DNS A: 2 lost (2.00 %), to be 1 %"]
    assert missed(*entries, loss=3) == []


def test_nothing_that_tests_import_brings_locust() -> None:
    """Locust replaces the library's sockets by gevent's, in the whole process."""
    modules = "loadtests.objectives, loadtests.shapes, loadtests.profiles, loadtests.checks, loadtests.page, loadtests.sampler"
    program = f"import sys, {modules}; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0
