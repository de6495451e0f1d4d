"""What the crash suite found: a line for each fault, the table for the terminal and for docs/reliability.md, the file."""

import fcntl
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import monotonic

import msgspec
from rich.console import Console
from rich.table import Table

__all__ = ["Finding", "Row", "add_to_file", "as_markdown", "from_file", "play", "print_findings"]

TITLES = (
    "killed or broken",
    "times",
    "flows that should survive, and did",
    "seconds to recover",
    "network state",
    "bytes on surviving flows",
)


class Finding(msgspec.Struct):
    """One line of the table: something was killed or broken, a number of times."""

    what: str
    name: str = ""
    """Of the row."""
    times: int = 0
    flows_to_survive: int = 0
    flows_survived: int = 0
    seconds: list[float] = []
    """From each fault until all was well again."""
    differences: list[str] = []
    """Of the network, before and after; must be none."""
    bytes_verified: int = 0
    """On the surviving flows; every one was compared."""
    bytes_damaged: int = 0
    """Lost or changed on surviving flows; must be none."""
    problems: list[str] = []
    """Whatever else was not as it should be."""
    seconds_max: float | None = None
    """The most that is allowed."""
    played_at: str = ""
    """Date and time (UTC)."""
    load: float = 0.0
    """Load average of the machine at the end, over a minute."""
    quick: bool = False
    """Some repetitions only."""

    @property
    def is_good(self) -> bool:
        """Whether all was as promised."""
        return not (
            self._is_late
            or self.differences
            or self.bytes_damaged
            or self.problems
            or self.times == 0
            or self.flows_survived != self.flows_to_survive
        )

    @property
    def _is_late(self) -> bool:
        return self.seconds_max is not None and max(self.seconds, default=0.0) > self.seconds_max

    def cells(self) -> tuple[str, ...]:
        """The line."""
        flows = f"{self.flows_survived:,} of {self.flows_to_survive:,}" if self.flows_to_survive else "-"
        seconds = f"{median(self.seconds):.2f} (at most {max(self.seconds):.2f})" if self.seconds else "-"
        if self._is_late:
            seconds += f", TOO LATE: {self.seconds_max:g} are promised"
        state = "as before" if not self.differences else f"{len(self.differences)} DIFFERENCES"
        damage = f"{self.bytes_verified:,} whole" if self.bytes_verified else "-"
        if self.bytes_damaged:
            damage = f"{self.bytes_damaged:,} DAMAGED, {self.bytes_verified:,} whole"
        what = self.what if not self.problems else f"{self.what}: {len(self.problems)} PROBLEMS"
        return (what, f"{self.times:,}", flows, seconds, state, damage)

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """The body begins with the fault, and ends when all is well again."""
        began_at = monotonic()
        yield
        self.seconds.append(monotonic() - began_at)

    def compare(self, before: dict[str, object], after: dict[str, object]) -> None:
        """Note how the network (Namespace.snapshot) differs."""
        self.differences += [
            f"{what}: {before[what]} became {after[what]}" for what in after if after[what] != before[what]
        ]


@dataclass(frozen=True)
class Row:
    """A fault. `play` fills in a finding, with fewer repetitions if the second argument says so."""

    name: str
    what: str
    play: Callable[[Finding, bool], None]
    seconds_max: float | None = None


def play(row: Row, *, quick: bool) -> Finding:
    """Play a row; what goes wrong meanwhile is part of the finding, so that the next row is played."""
    finding = Finding(row.what, row.name, seconds_max=row.seconds_max, quick=quick)
    try:
        row.play(finding, quick)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pytest's outcomes are no Exception
        finding.problems.append("".join(traceback.format_exception(error, limit=-3)).strip())
    finding.played_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    finding.load = round(os.getloadavg()[0], 1)
    return finding


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the table, and below it what was wrong."""
    console = Console(width=150)
    table = Table(title="crash suite")
    for index, title in enumerate(TITLES):
        table.add_column(title, justify="left" if index in (0, 4) else "right")
    for finding in findings:
        table.add_row(*finding.cells(), style=None if finding.is_good else "red")
    console.print(table)
    for finding in findings:
        for line in [*finding.differences[:5], *finding.problems[:5]]:
            console.print(f"{finding.name}: {line}", markup=False, style="red")


def as_markdown(findings: Sequence[Finding]) -> str:
    """The table for docs/reliability.md."""
    rows = [TITLES, ("---",) * len(TITLES), *(finding.cells() for finding in findings)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def add_to_file(path: Path, finding: Finding) -> None:
    """Add a finding to those in the file, in the place of an earlier one of that row."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        findings = msgspec.json.decode(text, type=list[Finding]) if text else []
        kept = [earlier for earlier in findings if earlier.name != finding.name]
        file.truncate(0)
        file.write(msgspec.json.format(msgspec.json.encode([*kept, finding]), indent=1))


def from_file(path: Path, order: Iterable[str]) -> list[Finding]:
    """Return the findings of a file, in this order of names; those of rows that are no more come last."""
    findings = msgspec.json.decode(path.read_bytes(), type=list[Finding])
    places = {name: place for place, name in enumerate(order)}
    return sorted(findings, key=lambda finding: places.get(finding.name, len(places)))
