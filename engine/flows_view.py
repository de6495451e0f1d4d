"""`engine flows` and `engine usage` for people."""

import sys
from collections.abc import Sequence

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.flows import LiveFlow, endpoint_text
from engine.printable import printable
from engine.usage import Total

__all__ = ["flow_lines", "print_flows", "print_usage", "size_text"]

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


def flow_lines(flows: Sequence[LiveFlow], width: int) -> list[str]:
    """Return a title and a line a flow, none longer than `width` columns. Rich's tables take seconds for ten thousand."""
    rows = [_TITLES, *map(_cells, flows)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    over = sum(widths) + len(widths) - 1 - width
    for column in sorted(_LEAST, key=lambda column: widths[column], reverse=True):
        cut = max(0, min(over, widths[column] - _LEAST[column]))
        widths[column] -= cut
        over -= cut
    return [_line(row, widths, width) for row in rows]


_TITLES = ("id", "net", "source", "destination", "process", "rule", "outbound", "up", "down", "age", "RTT ms", "state")
_NUMBERS = frozenset(range(7, 11))
"""Columns that are aligned to the right."""
_LEAST = {2: 6, 3: 22, 4: 7, 5: 4, 6: 8}
"""Columns that may be cut, and how far."""


def _cells(flow: LiveFlow) -> tuple[str, ...]:
    destination = endpoint_text(flow.destination, flow.destination_port)
    texts = (
        flow.id,
        flow.network,
        endpoint_text(flow.source, flow.source_port),
        f"{flow.name} ({destination})" if flow.name else destination,
        flow.process_name,
        flow.rule,
        " > ".join(flow.chain),
        size_text(flow.up),
        size_text(flow.down),
        _duration(flow.age),
        _milliseconds(flow.upstream_rtt),
        flow.state,
    )
    return tuple(map(printable, texts))


def _line(row: Sequence[str], widths: Sequence[int], width: int) -> str:
    cells = []
    for column, text in enumerate(row):
        room = widths[column]
        if cell_len(text) > room:
            text = set_cell_size(text, room - 1) + "…"
        gap = " " * (room - cell_len(text))
        cells.append(gap + text if column in _NUMBERS else text + gap)
    line = " ".join(cells).rstrip()
    return line if cell_len(line) <= width else set_cell_size(line, width)


def _console() -> Console:
    """Of the terminal's width; a pipe or a file has none, and nothing is cut off there."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def print_flows(flows: Sequence[LiveFlow], count: int) -> None:
    """Print `flows`, of `count` that there are."""
    summary = f"{len(flows):,} flows" if len(flows) == count else f"{len(flows):,} of {count:,} flows"
    typer.echo("\n".join((*flow_lines(flows, _console().width), summary)))


def print_usage(totals: Sequence[Total], title: str) -> None:
    """Print totals by program or destination."""
    console = _console()
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(title, overflow="fold")
    for column in ("flows", "up", "down", "since", "until"):
        table.add_column(column, justify="right", no_wrap=True)
    for total in totals:
        name = escape(printable(total.name)) or "(not known)"
        table.add_row(
            name, f"{total.flows:,}", size_text(total.up), size_text(total.down), total.first_day, total.last_day
        )
    console.print(table)
