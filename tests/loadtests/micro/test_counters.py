"""loadtests/micro/counters.py: what is taken out, that nothing else is, and that both sides can be measured."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.micro.counters import without_counters

ROOT = Path(__file__).parents[3]


def test_counting_goes_and_everything_else_stays() -> None:
    source = """
def carry(self, counters, held):
    counters[Cell.PACKETS] += 1
    self._counters[Cell.BYTES] -= len(held)
    self._stack.counters[3] = 7
    observe(self._counters, Histogram.LAG, 1.0)
    self._bytes_out += os.writev(1, held)
    held[0] += 1
    total = counters[4]
    if counters[4] > self.limit:
        counters[5] += 1
"""
    left = ast.unparse(without_counters(source))
    assert (
        left
        == """def carry(self, counters, held):
    pass
    len(held)
    pass
    pass
    os.writev(1, held)
    held[0] += 1
    total = counters[4]
    if counters[4] > self.limit:
        pass"""
    )


@pytest.mark.timeout(300)
def test_both_are_measured() -> None:
    """The measuring processes say by themselves when they do not measure what they should."""
    command = [sys.executable, "-m", "loadtests.micro.counters", "--rounds", "2", "--packets", "128"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "program" in line]
    assert len(rows) == 3
    assert all(float(cell) > 0 for row in rows for cell in row.split("|")[2:4])
