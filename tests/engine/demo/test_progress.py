"""Steps on a terminal: each ends with the mark it has earned."""

import io

from rich.console import Console

from engine.demo.progress import Steps


def test_steps_end_as_told_and_unended_ones_have_failed() -> None:
    text = io.StringIO()
    with Steps(Console(file=text, width=60)) as steps:
        steps.show("passed", "1 Gbit/s")
        steps.show("passed", "2 Gbit/s")
        steps.end(True)
        steps.show("failed")
        steps.end(False, "with a reason")
        steps.show("overtaken")
        steps.show("broken off")
    lines = [line.split() for line in text.getvalue().splitlines() if line.strip()]
    assert lines == [
        ["✓", "passed", "2", "Gbit/s"],
        ["✗", "failed", "with", "a", "reason"],
        ["✗", "overtaken"],
        ["✗", "broken", "off"],
    ]
