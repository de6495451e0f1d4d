"""`engine top`: the running engine by the second. Keys: s sorts by the next column, / filters, x closes the first flow, q ends.

throughput (sparklines) · workers · outbounds · the flows that carry most
"""

import os
import select
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engine.control import ask
from engine.flows import FlowError, LiveFlow, ask_flows, filtered, sorted_flows
from engine.flows_view import flow_lines, size_text
from engine.printable import printable
from engine.requests import CloseFlows, EngineStatus, Measure, Measurement
from shared.metrics import Cell, OutboundCell, outbound_at

__all__ = ["run_top"]

INTERVAL = 1.0  # seconds
HISTORY = 60
"""Seconds that a sparkline shows."""
SORTS = ("bytes", "up", "down", "age", "upstream_rtt", "process", "outbound")
BARS = " ▁▂▃▄▅▆▇█"
ESCAPE, BACKSPACE = "\x1b", "\x7f"
HEAD_LINES = 8
"""Lines of the screen that are not flows, workers or outbounds."""


def sparkline(values: "deque[float]") -> str:
    """Return a bar for each value, the highest of all as the whole height."""
    top = max(values, default=0.0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, round(value / top * (len(BARS) - 1)))] for value in values)


class Top:
    """What is shown, from one look to the next."""

    def __init__(self, run_dir: Path) -> None:
        self.sort = SORTS[0]
        self.filter = ""
        self.is_typing = False
        """Keys go to the filter."""
        self.flows: list[LiveFlow] = []
        self._run_dir = run_dir
        self._rates: dict[str, deque[float]] = {name: deque(maxlen=HISTORY) for name in ("in", "out")}
        self._before: dict[str, float] = {}
        self._at = 0.0
        self._per: dict[str, float] = {}
        self._measurement: Measurement | None = None

    def look(self) -> None:
        """Ask the engine. Raises NotRunning."""
        measurement = ask(self._run_dir, Measure()).measurement
        self.flows = ask_flows(self._run_dir)
        if measurement is None:
            return
        self._measurement = measurement
        now, counts = monotonic(), dict(_counts(measurement))
        if self._before:
            seconds = max(now - self._at, 1e-3)
            self._per = {
                name: max(0.0, value - self._before.get(name, 0.0)) / seconds for name, value in counts.items()
            }
            for name, history in self._rates.items():
                history.append(self._per[name])
        self._before, self._at = counts, now

    def key(self, key: str) -> bool:
        """Take a key; False: it is over. Raises NotRunning."""
        if self.is_typing:
            if key in ("\r", "\n", ESCAPE):
                self.is_typing = False
                self.filter = "" if key == ESCAPE else self.filter
            elif key == BACKSPACE:
                self.filter = self.filter[:-1]
            elif key.isprintable():
                self.filter += key
        elif key == "q":
            return False
        elif key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key == "/":
            self.is_typing, self.filter = True, ""
        elif key == "x" and self.shown:
            ask(self._run_dir, CloseFlows(self.shown[0].id))
        return True

    @property
    def shown(self) -> list[LiveFlow]:
        """The flows in their order."""
        try:
            found = filtered(self.flows, (self.filter,) if self.filter else ())
        except FlowError:  # no such field, or not yet: it is being typed
            found = []
        return sorted_flows(found, self.sort)

    def screen(self, width: int, height: int) -> Group:
        """Return what is to be seen."""
        if self._measurement is None:
            return Group(Text("the engine is starting"))
        status = self._measurement.status
        tables = (self._workers(status), self._outbounds())
        used = HEAD_LINES + sum(table.row_count for table in tables)
        shown = self.shown
        goes = f"{status.interface} -> {printable(status.proxy)}"
        keys = f"filter: {self.filter}_ (Enter, Esc)" if self.is_typing else "s sort  / filter  x close first  q quit"
        note = f" filter {self.filter!r}" if self.filter else ""
        return Group(
            Text(f"tunloom {status.version}  {goes}  mode {printable(status.mode)}  {len(self.flows):,} flows"),
            *(self._throughput(name, label) for name, label in (("in", "up  "), ("out", "down"))),
            *tables,
            Text(f"{len(shown):,} flows by {self.sort}{note}   {keys}", style="reverse"),
            *map(Text, flow_lines(shown[: max(1, height - used)], width)),
        )

    def _throughput(self, name: str, label: str) -> Text:
        rate = self._per.get(name, 0.0)
        return Text(f"{label} {size_text(rate):>10}/s {sparkline(self._rates[name])}")

    def _workers(self, status: EngineStatus) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("worker", "state", "TCP", "UDP", "packets/s in", "out", "waiting", "memory", "restarts"):
            table.add_column(title, justify="left" if title == "state" else "right")
        for worker in status.workers:
            table.add_row(
                str(worker.index),
                worker.state,
                f"{worker.tcp_active:,}",
                f"{worker.udp_active:,}",
                f"{self._per.get(f'{worker.index} in', 0):,.0f}",
                f"{self._per.get(f'{worker.index} out', 0):,.0f}",
                str(worker.ring_waiting),
                size_text(worker.memory) if worker.memory is not None else "?",
                str(worker.restarts),
            )
        return table

    def _outbounds(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("outbound")
        for title in ("flows", "up/s", "down/s"):
            table.add_column(title, justify="right")
        assert self._measurement is not None
        for tag in self._measurement.outbounds:
            carried = [flow for flow in self.flows if tag in flow.chain]
            if carried or self._per.get(f"{tag} up"):
                up, down = (size_text(self._per.get(f"{tag} {way}", 0.0)) for way in ("up", "down"))
                table.add_row(escape(printable(tag)), f"{len(carried):,}", up, down)
        return table


def _counts(measurement: Measurement) -> Iterator[tuple[str, float]]:
    """What only ever grows, by name."""
    rows, cells = memoryview(measurement.rows).cast("Q"), measurement.cells
    workers = range(measurement.places)
    yield "in", rows[len(workers) * cells + Cell.BYTES_IN]
    yield "out", sum(rows[worker * cells + Cell.BYTES_OUT] for worker in workers)
    for worker in workers:
        yield f"{worker} in", rows[worker * cells + Cell.PACKETS_IN]
        yield f"{worker} out", rows[worker * cells + Cell.PACKETS_OUT]
    for row, tag in enumerate(measurement.outbounds):
        at = outbound_at(row)
        if at + OutboundCell.BYTES_DOWN < cells:
            yield f"{tag} up", sum(rows[worker * cells + at + OutboundCell.BYTES_UP] for worker in workers)
            yield f"{tag} down", sum(rows[worker * cells + at + OutboundCell.BYTES_DOWN] for worker in workers)


@contextmanager
def _keys() -> Iterator[None]:
    """Have keys come one by one and unseen."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def run_top(run_dir: Path) -> None:
    """Show the engine until `q` or Ctrl-C. Raises NotRunning."""
    console = Console()
    top = Top(run_dir)
    top.look()
    with (
        _keys(),
        Live(top.screen(console.width, console.height), console=console, screen=True, auto_refresh=False) as live,
    ):
        due = monotonic() + INTERVAL
        while True:
            if select.select([sys.stdin], [], [], max(0.0, due - monotonic()))[0]:
                for key in os.read(sys.stdin.fileno(), 64).decode(errors="replace"):
                    if not top.key(key):
                        return
            if monotonic() >= due:
                top.look()
                due = monotonic() + INTERVAL
            live.update(top.screen(console.width, console.height), refresh=True)
