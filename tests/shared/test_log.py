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


CHANGE = """
import logging
from shared.log import Tap, configure_logging, set_log_level
configure_logging("warning", "text", name="master")
log, taken = logging.getLogger("engine.other"), []
def tell(number):
    for level in ("debug", "info", "warning"):
        getattr(log, level)(f"{level} {number}")
tell(1)
set_log_level("debug")
tell(2)
tap = Tap(logging.DEBUG, lambda level, message, fields: taken.append(message))
set_log_level("error")
tell(3)
tap.remove()
tell(4)
set_log_level("info")
tell(5)
print(taken)
"""


def test_the_level_can_be_changed_and_who_follows_does_not_notice() -> None:
    done = subprocess.run([sys.executable, "-c", CHANGE], check=True, capture_output=True, text=True)
    told = [line.rpartition("master: ")[2] for line in done.stderr.splitlines()]
    assert told == ["warning 1", "debug 2", "info 2", "warning 2", "info 5", "warning 5"]
    assert done.stdout == "['debug 3', 'info 3', 'warning 3']\n"
