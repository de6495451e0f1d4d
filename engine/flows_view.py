"""`engine flows` and `engine usage` for people."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.flows import LiveFlow, endpoint_text
from engine.printable import printable
from engine.usage import Total

__all__ = ["flows_table", "print_flows", "print_usage", "size_text"]

PIPE_WIDTH = 1000
"""Characters of a line that goes to no terminal."""


def size_text(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"


def _shown(text: str) -> str:
    """For a cell of a table: neither the terminal nor rich obeys it."""
    return escape(printable(text))


def flows_table(flows: Sequence[LiveFlow]) -> Table:
    """Return a table, a line a flow."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    table.add_column("net", no_wrap=True)
    for title, width in (("source", 6), ("destination", 22), ("process", 4), ("rule", 4), ("outbound", 4)):
        table.add_column(title, no_wrap=True, overflow="ellipsis", min_width=width)
    for title in ("up", "down", "age", "RTT ms"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for flow in flows:
        destination = endpoint_text(flow.destination, flow.destination_port)
        table.add_row(
            flow.id,
            flow.network,
            escape(endpoint_text(flow.source, flow.source_port)),
            _shown(f"{flow.name} ({destination})" if flow.name else destination),
            _shown(flow.process_name),
            _shown(flow.rule),
            _shown(" > ".join(flow.chain)),
            size_text(flow.up),
            size_text(flow.down),
            _duration(flow.age),
            _milliseconds(flow.upstream_rtt),
            flow.state,
        )
    return table


def _console() -> Console:
    """Of the terminal's width; a pipe or a file has none, and nothing is cut off there."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def print_flows(flows: Sequence[LiveFlow], count: int) -> None:
    """Print `flows`, of `count` that there are."""
    console = _console()
    console.print(flows_table(flows))
    console.print(f"{len(flows):,} flows" if len(flows) == count else f"{len(flows):,} of {count:,} flows")


def print_usage(totals: Sequence[Total], title: str) -> None:
    """Print totals by program or destination."""
    console = _console()
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(title, overflow="fold")
    for column in ("flows", "up", "down", "since", "until"):
        table.add_column(column, justify="right", no_wrap=True)
    for total in totals:
        name = _shown(total.name) or "(not known)"
        table.add_row(
            name, f"{total.flows:,}", size_text(total.up), size_text(total.down), total.first_day, total.last_day
        )
    console.print(table)
