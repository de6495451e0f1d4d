"""`python -m loadtests.crash [--quick] [--only ROW,ROW] [--results FILE] [--markdown FILE] [--list]`

Exit codes: 0 every promise was kept, 1 one was not, 2 wrong usage, 3 not root.
"""

import argparse
import os
import sys
from pathlib import Path
from time import monotonic

from loadtests.crash.report import Row, add_to_file, as_markdown, from_file, play, print_findings
from loadtests.crash.rows import ROWS
from tests.support.netns import leaving_nothing

__all__ = ["main"]


def main(arguments: list[str] | None = None, rows: dict[str, Row] = ROWS) -> int:
    """Play all rows, or some; print one table."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.crash", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", metavar="ROW,ROW", help="rows to play (--list names them)")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="add what is found to this file (JSON), row by row"
    )
    parser.add_argument(
        "--markdown",
        metavar="FILE",
        help="write the table to this file (-: stdout); with --results that of the whole file",
    )
    parser.add_argument("--list", action="store_true", help="list the rows, and end")
    options = parser.parse_args(arguments)
    if options.list:
        for row in rows.values():
            print(f"{row.name:26} {row.what}")
        return 0
    names = list(rows) if options.only is None else [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in rows]:
        parser.error(f"argument --only: there is no row {', '.join(unknown)} (--list shows them)")
    if names and os.geteuid() != 0:
        print("the crash suite makes network namespaces: run it as root", file=sys.stderr)
        return 3
    findings = []
    for name in names:
        began_at = monotonic()
        try:
            with leaving_nothing():
                finding = play(rows[name], quick=options.quick)
        except AssertionError as error:
            finding.problems.append(str(error))
        verdict = "good" if finding.is_good else "NOT AS PROMISED"
        print(f"{name}: {finding.times} times, {monotonic() - began_at:.0f} s: {verdict}", file=sys.stderr, flush=True)
        findings.append(finding)
        if options.results is not None:
            add_to_file(options.results, finding)
    print_findings(findings)
    if options.markdown is not None:
        table = as_markdown(findings if options.results is None else from_file(options.results, rows))
        if options.markdown == "-":
            print(table, end="")
        else:
            Path(options.markdown).write_text(table)
    return 0 if all(finding.is_good for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
