"""`python -m loadtests.crash [--quick] [--only PART ...] [--json FILE] [--markdown FILE]`

Exit codes: 0 every promise was kept, 1 one was not, 3 not root.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

from loadtests.crash.journal import journal_faults
from loadtests.crash.processes import process_faults
from loadtests.crash.report import Finding, as_json, as_markdown, print_findings
from tests.support.netns import leaving_nothing

__all__ = ["main"]

PARTS: dict[str, Callable[..., Iterator[Finding]]] = {
    "journal": journal_faults,
    "processes": process_faults,
}


def main(arguments: list[str] | None = None) -> int:
    """Play all parts, or some; print one table."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.crash", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to play")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("the crash suite makes network namespaces: run it as root", file=sys.stderr)
        return 3
    findings = []
    for part in options.only:
        with leaving_nothing():
            started_at = monotonic()
            for finding in PARTS[part](quick=options.quick):
                print(
                    f"{part}: {finding.what}: {finding.times} times, {monotonic() - started_at:.0f} s", file=sys.stderr
                )
                findings.append(finding)
                started_at = monotonic()
    print_findings(findings)
    if options.json is not None:
        options.json.write_text(as_json(findings))
    if options.markdown is not None:
        options.markdown.write_text(as_markdown(findings))
    return 0 if all(finding.is_good for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
