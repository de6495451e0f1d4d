"""shared/log.py: what is told at which level."""

import logging
import subprocess
import sys

import pytest

from shared.log import LEVELS, READY

TELL = f"""
import logging
from shared.log import configure_logging
configure_logging("LEVEL", "text", name="master")
logging.getLogger("{READY}").setLevel(logging.INFO)
logging.getLogger("{READY}").info("ready")
for level in {list(LEVELS)}:
    getattr(logging.getLogger("engine.other"), level)("at " + level)
"""


@pytest.mark.parametrize("level", LEVELS)
def test_that_the_engine_is_ready_is_told_at_every_level(level: str) -> None:
    # In a process of its own: logging is the test runner's.
    told = subprocess.run(
        [sys.executable, "-c", TELL.replace("LEVEL", level)], check=True, capture_output=True, text=True
    ).stderr
    assert "ready" in told
    for other, number in LEVELS.items():
        assert (f"at {other}" in told) is (number >= LEVELS[level])
    assert logging.getLevelName(LEVELS[level]).lower() == level
