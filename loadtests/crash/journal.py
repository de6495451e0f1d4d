"""Whoever changes or restores the network is killed at every single step of it (tests/support/fault_injection.py)."""

from functools import partial
from itertools import count

from loadtests.crash.report import Finding, Row
from tests.support.fault_injection import SCENARIOS, Scenario, fault_bed

__all__ = ["ROWS"]

QUICK_STRIDE = 29
RESTORE_TIME = 2.0  # seconds that a guardian may take


def _at_each_step(scenario: Scenario, finding: Finding, quick: bool) -> None:
    with fault_bed() as bed:
        for step in count(1, QUICK_STRIDE if quick else 1):
            outcome = bed.inject(scenario, step)
            if outcome is None:
                break
            finding.times += 1
            finding.seconds.append(outcome.seconds)
            finding.differences += [f"step {step}: {line}" for line in outcome.differences]


def _name(title: str) -> str:
    """`master killed, kill switch` -> `journal-master-kill-switch`."""
    words = title.replace(",", "").replace("its helper", "helper").split()
    return "-".join(
        ["journal", *(word for word in words if word not in ("killed", "while", "the", "a", "it", "after"))]
    )


ROWS = [
    Row(
        _name(scenario.title),
        f"{scenario.title}, at each step",
        partial(_at_each_step, scenario),
        seconds_max=RESTORE_TIME if scenario.victim == "parent" else None,
    )
    for scenario in SCENARIOS.values()
]
