"""Whoever changes or restores the network is killed at every single step of it (tests/support/fault_injection.py)."""

from collections.abc import Iterator
from itertools import count

from loadtests.crash.report import Finding
from tests.support.fault_injection import SCENARIOS, fault_bed

__all__ = ["journal_faults"]

QUICK_STRIDE = 29
RESTORE_TIME = 2.0  # seconds that a guardian may take


def journal_faults(*, quick: bool) -> Iterator[Finding]:
    """Give one finding for each scenario; `quick`: only some steps."""
    with fault_bed() as bed:
        for scenario in SCENARIOS.values():
            finding = Finding(
                f"{scenario.title}, at each step", seconds_max=RESTORE_TIME if scenario.victim == "parent" else None
            )
            for step in count(1, QUICK_STRIDE if quick else 1):
                outcome = bed.inject(scenario, step)
                if outcome is None:
                    break
                finding.times += 1
                finding.seconds.append(outcome.seconds)
                finding.differences += [f"step {step}: {line}" for line in outcome.differences]
            yield finding
