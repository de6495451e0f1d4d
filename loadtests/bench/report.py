"""A run as tables for the terminal, as JSON, and as a plot."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from loadtests.bench.results import (
    MEASURES,
    OURS,
    Measure,
    Medians,
    Record,
    Run,
    Verdict,
    medians,
    ratio,
    spread,
    verdicts,
)

__all__ = ["PLOT_SUFFIXES", "load_json", "plot", "print_report", "save_json"]

PLOT_SUFFIXES = (".png", ".svg")
MISSING = "–"
_GROUPS = {
    "TCP": "tcp_",
    "CPU": "cpu_",
    "UDP": "udp_",
    "connections": "connections",
    "HTTP": "http_",
    "DNS": "dns",
    "PSS": "pss_",
}
"""Panel of the plot -> beginning of the names of its measures."""


def save_json(run: Run, path: Path) -> None:
    """Write the run with every single record. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def load_json(path: Path) -> Run:
    """Read what save_json wrote. Raises OSError, and msgspec.ValidationError when it is something else."""
    return msgspec.json.decode(path.read_bytes(), type=Run)


def print_report(run: Run, console: Console) -> None:
    """Print the machine, the medians, the ratios with targets, and everything that was not measured."""
    machine = run.machine
    console.print(
        f"{machine.cores} × {machine.cpu}, Linux {machine.kernel}, Python {machine.python}, "
        f"{machine.congestion_control}; SOCKS server: {run.socks}; {run.rounds} rounds of {run.seconds:g} s a load"
    )
    found = medians(run.records)
    console.print(_medians_table(run, found))
    if OURS in run.versions:
        console.print(_ratios_table(run.records, found))
    for line in _not_measured(run):
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def _medians_table(run: Run, found: Medians) -> Table:
    table = Table(title="Medians")
    table.add_column("measure")
    table.add_column("unit")
    for peer in run.versions:
        table.add_column(peer, justify="right")
    for measure in _taken(run.records):
        figures = found.get(measure.name, {})
        cells = (_number(figures.get(peer), measure.digits) for peer in run.versions)
        table.add_row(measure.title, measure.unit, *cells)
    return table


def _ratios_table(records: list[Record], found: Medians) -> Table:
    table = Table(title=f"{OURS} and its targets")
    for name in ("measure", OURS, "least – most", "× best sing-box", "× plain", "target", "verdict"):
        table.add_column(name, justify="left" if name in ("measure", "target", "verdict") else "right")
    held = verdicts(found)
    for measure in MEASURES.values():
        figures = found.get(measure.name, {})
        mine = [verdict for verdict in held if verdict.target.measure == measure.name]
        if not figures and not mine:
            continue
        table.add_row(
            measure.title,
            _number(figures.get(OURS), measure.digits),
            " – ".join(_number(end, measure.digits) for end in spread(records, OURS, measure.name) or ()),
            _number(ratio(figures, measure, "sing-box"), 2),
            _number(ratio(figures, measure, "plain"), 2),
            ", ".join(str(verdict.target) for verdict in mine),
            _verdict_text(mine),
        )
    return table


def _verdict_text(held: list[Verdict]) -> str:
    """PASS when every target is reached; otherwise what falls short, with three decimals: 0.999 is not 1."""
    if not held:
        return ""
    words = []
    for verdict in held:
        if verdict.passed is None:
            words.append("no figure")
        elif not verdict.passed:
            assert verdict.reached is not None, "a verdict that was given has a figure"
            unit = f" × {verdict.target.reference}" if verdict.target.reference else ""
            words.append(f"[red]short: {verdict.reached:.3f}{unit}[/red]")
    return ", ".join(words) or "[green]PASS[/green]"


def _not_measured(run: Run) -> Iterable[str]:
    for peer, reason in run.unavailable.items():
        yield f"{peer} was not measured: {reason}"
    failed: dict[tuple[str, str], list[str]] = {}
    for record in run.records:
        if record.error is not None:
            failed.setdefault((record.peer, record.error), []).append(f"{record.measure} (round {record.round})")
    for (peer, error), measures in failed.items():
        yield f"{peer} failed: {error}: {', '.join(measures)}"


def _taken(records: list[Record]) -> list[Measure]:
    """The measures that were tried, in the order of MEASURES."""
    names = {record.measure for record in records}
    return [measure for measure in MEASURES.values() if measure.name in names]


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def plot(run: Run, path: Path) -> None:
    """Draw the medians as bars and every round as a dot; the suffix of `path`, one of PLOT_SUFFIXES, is the format.

    Raises ImportError without matplotlib, OSError, and ValueError for an unknown suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    taken = _taken(run.records)
    panels = {
        title: inside
        for title, prefix in _GROUPS.items()
        if (inside := [measure for measure in taken if measure.name.startswith(prefix)])
    }
    figure = Figure(figsize=(12, 2.6 * max(1, len(panels))), layout="constrained")
    FigureCanvasAgg(figure)
    found = medians(run.records)
    width = 0.8 / max(1, len(run.versions))
    for row, (title, inside) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, row + 1)
        axes.set_title(title, loc="left")
        axes.set_ylabel(inside[0].unit)
        axes.set_xticks(range(len(inside)), [measure.title for measure in inside], fontsize="small")
        for number, peer in enumerate(run.versions):
            at = {measure.name: i + (number - (len(run.versions) - 1) / 2) * width for i, measure in enumerate(inside)}
            bars = [found.get(name, {}).get(peer, 0.0) for name in at]
            axes.bar(list(at.values()), bars, width * 0.95, label=peer, color=f"C{number}")
            dots = [(at[r.measure], r.value) for r in run.records if r.peer == peer and r.measure in at and r.value]
            axes.plot([x for x, _ in dots], [y for _, y in dots], ".", color="black", markersize=3)
        if row == 0:
            axes.legend(ncols=len(run.versions), fontsize="small", loc="lower right", bbox_to_anchor=(1, 1))
    figure.savefig(path)
