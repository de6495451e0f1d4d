"""The demo's verdict: one thing gone wrong, or missing, and it is not ok."""

import io

import pytest
from rich.console import Console

from engine.demo.load import PHASES
from engine.demo.meter import PhaseResult
from engine.demo.report import CHECKS, DemoReport, make_report, print_report

OTHER_CHECKS = {name: "" for name in CHECKS if name not in PHASES}


def phases() -> dict[str, PhaseResult]:
    results = {name: PhaseResult(phase=name, rate=2.5, bytes_verified=1_000_000_000) for name in PHASES}
    results["udp_ipv4"].datagrams = {0: (200, 200), 65_507: (200, 200)}
    results["udp_ipv6"].datagrams = {0: (100, 100), 65_507: (100, 100)}
    return results


def printed(report: DemoReport) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, width=120))
    return text.getvalue()


def test_everything_passed() -> None:
    report = make_report(phases(), OTHER_CHECKS, [10, 12], 2)
    assert report.ok and not report.errors and all(report.checks.values())
    assert report.bytes_verified == len(PHASES) * 1_000_000_000
    assert (report.udp_sent, report.udp_received) == (600, 600)
    assert report.udp_by_size == {0: (300, 300), 65_507: (300, 300)}
    text = printed(report)
    assert "✗" not in text
    assert text.splitlines()[-1].startswith("All 8.0 GB and 600 datagrams went through the proxy on 2 workers")


@pytest.mark.parametrize("name", PHASES)
def test_error_in_a_phase(name: str) -> None:
    results = phases()
    results[name].errors = ["the byte at position 7 is not the one that was sent"]
    report = make_report(results, OTHER_CHECKS, [1], 1)
    assert not report.ok
    assert [check for check, passed in report.checks.items() if not passed] == [name]
    assert "position 7" in printed(report)


@pytest.mark.parametrize("name", PHASES)
def test_phase_that_did_not_run(name: str) -> None:
    results = phases()
    del results[name]
    report = make_report(results, OTHER_CHECKS, [1], 1)
    assert not report.ok and not report.checks[name]


@pytest.mark.parametrize("name", OTHER_CHECKS)
def test_other_check_failed(name: str) -> None:
    report = make_report(phases(), OTHER_CHECKS | {name: "[brackets] are no markup"}, [1], 1)
    assert not report.ok and not report.checks[name]
    assert f"✗ {name}: [brackets] are no markup" in printed(report)
