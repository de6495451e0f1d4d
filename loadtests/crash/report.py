"""What the crash suite found, as one table for the terminal and for docs/reliability.md."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

__all__ = ["Finding", "as_json", "as_markdown", "print_findings"]

TITLES = (
    "killed or broken",
    "times",
    "flows that should survive, and did",
    "seconds to recover",
    "network state",
    "bytes",
)


@dataclass
class Finding:
    """One line of the table: something was killed or broken, a number of times."""

    what: str
    times: int = 0
    flows_to_survive: int = 0
    flows_survived: int = 0
    seconds: list[float] = field(default_factory=list)
    """From each fault until all was well again."""
    differences: list[str] = field(default_factory=list)
    """Of the network, before and after; must be none."""
    bytes_verified: int = 0
    """On the surviving flows; every one was compared."""
    bytes_damaged: int = 0
    """Lost or changed on surviving flows; must be none."""
    problems: list[str] = field(default_factory=list)
    """Whatever else was not as it should be."""
    seconds_max: float | None = None
    """The most that is allowed."""

    @property
    def is_good(self) -> bool:
        """Whether all was as promised."""
        late = self.seconds_max is not None and max(self.seconds, default=0.0) > self.seconds_max
        return not (
            late
            or self.differences
            or self.bytes_damaged
            or self.problems
            or self.times == 0
            or self.flows_survived != self.flows_to_survive
        )

    def cells(self) -> tuple[str, ...]:
        """The line."""
        flows = f"{self.flows_survived:,} of {self.flows_to_survive:,}" if self.flows_to_survive else "-"
        seconds = f"{median(self.seconds):.2f} (at most {max(self.seconds):.2f})" if self.seconds else "-"
        state = "as before" if not self.differences else f"{len(self.differences)} DIFFERENCES"
        damage = f"{self.bytes_verified:,} whole" if self.bytes_verified else "-"
        if self.bytes_damaged:
            damage = f"{self.bytes_damaged:,} DAMAGED of {self.bytes_verified:,}"
        return (self.what, f"{self.times:,}", flows, seconds, state, damage)


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
            console.print(f"{finding.what}: {line}", markup=False, style="red")


def as_markdown(findings: Sequence[Finding]) -> str:
    """The table for docs/reliability.md."""
    rows = [TITLES, ("---",) * len(TITLES), *(finding.cells() for finding in findings)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def as_json(findings: Sequence[Finding]) -> str:
    """Everything, for later comparison."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)
