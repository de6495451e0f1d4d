"""What was promised of many flows, whether it was kept, and the table."""

import json
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

from loadtests.flows.holder import MESSAGE

__all__ = ["Outcome", "Phase", "as_json", "print_outcome"]

MIB = 1024 * 1024


@dataclass
class Phase:
    """A moment in which every flow has carried a message."""

    name: str
    seconds: float
    """That all of it took."""
    tcp_whole: int
    udp_whole: int
    tcp_active: int
    """As the engine counts them."""
    udp_active: int
    memory: dict[str, int]
    """Bytes (PSS) of each process of the engine."""

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return sum(self.memory.values())


@dataclass
class Outcome:
    """One run."""

    flows: int
    mappings: int
    workers: int
    memory_max: int
    """Bytes that are allowed."""
    memory_empty: int = 0
    """Before the first flow."""
    memory_peak: int = 0
    """The most that was seen, between phases too."""
    open_seconds: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    datagrams_sent_again: int = 0
    no_local_port: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    left: int = 0
    """Flows that the engine still holds after all were closed."""

    def broken(self) -> list[str]:
        """Return a sentence for each promise that was not kept."""
        found = [f"{count:,} times {error}" for error, count in self.errors.items()]
        if not self.phases:
            found.append("no flow carried anything")
        for phase in self.phases:
            if (phase.tcp_whole, phase.udp_whole) != (self.flows, self.mappings):
                found.append(
                    f"{phase.name}: {phase.tcp_whole:,} of {self.flows:,} TCP flows and {phase.udp_whole:,} of "
                    f"{self.mappings:,} UDP mappings carried every byte"
                )
            if (phase.tcp_active, phase.udp_active) != (self.flows, self.mappings):
                found.append(
                    f"{phase.name}: the engine holds {phase.tcp_active:,} TCP flows and {phase.udp_active:,} UDP mappings"
                )
        if self.memory_peak > self.memory_max:
            found.append(f"{self.memory_peak / MIB:,.0f} MiB, of {self.memory_max / MIB:,.0f} that are allowed")
        if self.no_local_port:
            found.append(f"{self.no_local_port:,} connections found no local port")
        if self.restarts:
            found.append(f"{self.restarts} workers died")
        if self.left:
            found.append(f"{self.left:,} flows were left after all had been closed")
        return found


def print_outcome(outcome: Outcome) -> None:
    """Print the table, and below it what was wrong."""
    console = Console(width=120)
    title = f"{outcome.flows:,} TCP flows and {outcome.mappings:,} UDP mappings on {outcome.workers} workers"
    table = Table(title=title)
    for column in ("phase", "seconds", "TCP whole", "UDP whole", "held by the engine", "memory (PSS), MiB"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    table.add_row("no flow yet", "", "", "", "", f"{outcome.memory_empty / MIB:,.0f}")
    for phase in outcome.phases:
        table.add_row(
            phase.name,
            f"{phase.seconds:.0f}",
            f"{phase.tcp_whole:,}",
            f"{phase.udp_whole:,}",
            f"{phase.tcp_active:,} + {phase.udp_active:,}",
            f"{phase.total / MIB:,.0f}",
        )
    console.print(table)
    held = max(outcome.flows + outcome.mappings, 1)
    console.print(
        f"opened in {outcome.open_seconds:.0f} s; at most {outcome.memory_peak / MIB:,.0f} MiB, "
        f"{(outcome.memory_peak - outcome.memory_empty) / held / 1024:.1f} KiB a flow; each flow carried {MESSAGE:,} bytes "
        f"in each direction in each phase; {outcome.datagrams_sent_again:,} datagrams were sent again; "
        f"dropped: {', '.join(f'{reason} {count:,}' for reason, count in outcome.drops.items()) or 'nothing'}"
    )
    if outcome.phases:
        sizes = ", ".join(f"{name} {size / MIB:.0f}" for name, size in outcome.phases[-1].memory.items())
        console.print(f"MiB of each process at the end: {sizes}")
    for sentence in outcome.broken():
        console.print(sentence, style="red", markup=False)


def as_json(outcome: Outcome) -> str:
    """Everything, for later comparison."""
    return json.dumps(asdict(outcome) | {"broken": outcome.broken()}, indent=1)
