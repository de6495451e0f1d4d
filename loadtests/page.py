"""One page that joins what locust saw with what the engine counted, over the same time: `run.html` in the run's folder.

Reads the CSV files of a folder, so a page can be made again: `python -m loadtests.page DIR`.
"""

import csv
import html
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from loadtests.sampler import Sample, read_samples

__all__ = ["Verdict", "write_page"]

PAGE = "run.html"
SIZE = (11.0, 2.1)  # inches of one panel

Series = dict[str, list[tuple[float, float]]]
"""Label -> (seconds since the start, value)."""


@dataclass(frozen=True)
class Verdict:
    """What was checked at the end: a sentence, and whether it is as it should be."""

    sentence: str
    good: bool


def write_page(folder: Path, *, title: str, verdicts: Sequence[Verdict]) -> Path:
    """Write the page and return its path."""
    history = [row for row in _rows(folder / "locust_stats_history.csv") if row["Name"] == "Aggregated"]
    samples = read_samples(folder / "engine.csv")
    times = [float(row["Timestamp"]) for row in history] + [sample["time"] for sample in samples]
    start, end = min(times), max(times) - min(times)
    restarts = _steps(samples, "restarts", start)
    panels = [
        _panel(name, unit, series, restarts, end)
        for name, unit, series in _panels(history, samples, start)
        if any(series.values())
    ]
    text = _TEMPLATE.format(
        title=html.escape(title),
        verdicts="\n".join(
            f'<li class="{"good" if v.good else "bad"}">{html.escape(v.sentence)}</li>' for v in verdicts
        ),
        requests=_table(_rows(folder / "locust_stats.csv"), _REQUEST_COLUMNS),
        failures=_table(_rows(folder / "locust_failures.csv"), ("Method", "Name", "Error", "Occurrences")),
        engine=_table([_engine_row(samples)] if samples else [], tuple(_engine_row(samples)) if samples else ()),
        panels="\n".join(panels),
    )
    path = folder / PAGE
    path.write_text(text)
    return path


_REQUEST_COLUMNS = (
    "Type", "Name", "Request Count", "Failure Count", "Requests/s", "50%", "95%", "99%", "Max Response Time",
)  # fmt: skip


def _panels(history: list[dict[str, str]], samples: list[Sample], start: float) -> Sequence[tuple[str, str, Series]]:
    """Title, unit and series of each panel; those of locust first."""
    return (
        ("Users", "", {"users": _column(history, "User Count", start)}),
        (
            "Requests",
            "per second",
            {"requests": _column(history, "Requests/s", start), "failures": _column(history, "Failures/s", start)},
        ),
        ("Response time", "ms", {name: _column(history, name, start) for name in ("50%", "95%", "99%")}),
        (
            "tun",
            "Mbit/s",
            {
                "from programs": _rate(samples, "bytes in", start, 8e-6),
                "to programs": _rate(samples, "bytes out", start, 8e-6),
            },
        ),
        (
            "Packets",
            "thousands per second",
            {
                "from programs": _rate(samples, "packets in", start, 1e-3),
                "to programs": _rate(samples, "packets out", start, 1e-3),
            },
        ),
        ("Flows", "", {name: _level(samples, f"flows {name}", start) for name in ("tcp", "udp")}),
        (
            "Opened",
            "flows per second",
            {name: _rate(samples, f"opened {name}", start) for name in ("tcp", "udp")},
        ),
        ("Dropped, by reason", "packets per second", _rates_of(samples, "dropped ", start)),
        (
            "Troubles",
            "per second",
            {
                "connects failed": _rate(samples, "connects failed", start),
                "TCP retransmits": _rate(samples, "retransmits", start),
                "datagrams refused": _rate(samples, "udp refused", start),
            },
        ),
        ("Memory", "MiB, proportional set size", _levels_of(samples, "memory ", start)),
        ("Processor", "% of one core", _rates_of(samples, "cpu ", start, 100.0, always=True)),
        (
            "Lateness of timers and time of a scrape",
            "ms",
            {
                "99 % of timers within": _level(samples, "lag", start, 1e3),
                "scrape": _level(samples, "scrape", start, 1e3),
            },
        ),
        ("Descriptors", "", _levels_of(samples, "fds ", start)),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _column(rows: list[dict[str, str]], name: str, start: float) -> list[tuple[float, float]]:
    return [(float(row["Timestamp"]) - start, float(row[name])) for row in rows if row[name] not in ("", "N/A")]


def _level(samples: list[Sample], name: str, start: float, scale: float = 1.0) -> list[tuple[float, float]]:
    return [(sample["time"] - start, sample[name] * scale) for sample in samples if name in sample]


def _rate(samples: list[Sample], name: str, start: float, scale: float = 1.0) -> list[tuple[float, float]]:
    """Growth per second between samples. A process that was started again begins anew: that is no growth."""
    having = [sample for sample in samples if name in sample]
    return [
        (now["time"] - start, max(now[name] - before[name], 0.0) * scale / (now["time"] - before["time"]))
        for before, now in pairwise(having)
        if now["time"] > before["time"]
    ]


def _names(samples: list[Sample], beginning: str) -> list[str]:
    return sorted({name for sample in samples for name in sample if name.startswith(beginning)})


def _levels_of(samples: list[Sample], beginning: str, start: float) -> Series:
    return {name.removeprefix(beginning): _level(samples, name, start) for name in _names(samples, beginning)}


def _rates_of(
    samples: list[Sample], beginning: str, start: float, scale: float = 1.0, *, always: bool = False
) -> Series:
    """The rates of all figures with this beginning; without `always` those that never grow are left out."""
    series = {name.removeprefix(beginning): _rate(samples, name, start, scale) for name in _names(samples, beginning)}
    return {name: points for name, points in series.items() if always or any(value for _, value in points)}


def _steps(samples: list[Sample], name: str, start: float) -> list[float]:
    """Moments at which a count grew."""
    return [now["time"] - start for before, now in pairwise(samples) if now.get(name, 0.0) > before.get(name, 0.0)]


def _panel(title: str, unit: str, series: Series, marks: Sequence[float], end: float) -> str:
    figure, axes = pyplot.subplots(figsize=SIZE)
    figure.subplots_adjust(left=0.06, right=0.84, top=0.88, bottom=0.14)  # all alike, so that they stand in line
    try:
        _draw(axes, series, marks)
        axes.set_xlim(0, end)
        axes.set_title(f"{title} ({unit})" if unit else title, fontsize=9, loc="left")
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
    finally:
        pyplot.close(figure)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _draw(axes: Axes, series: Series, marks: Sequence[float]) -> None:
    for label, points in series.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    for mark in marks:
        axes.axvline(mark, color="red", linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _engine_row(samples: list[Sample]) -> dict[str, str]:
    """What the engine has counted over the run."""
    first, last = samples[0], samples[-1]

    def grown(name: str) -> float:
        return last.get(name, 0.0) - first.get(name, 0.0)

    def peak(name: str) -> float:
        return max((sample.get(name, 0.0) for sample in samples), default=0.0)

    dropped = sum(grown(name) for name in _names(samples, "dropped "))
    counts: dict[str, Callable[[], str]] = {
        "packets in": lambda: f"{grown('packets in'):,.0f}",
        "packets out": lambda: f"{grown('packets out'):,.0f}",
        "dropped": lambda: f"{dropped:,.0f}",
        "TCP flows opened": lambda: f"{grown('opened tcp'):,.0f}",
        "most at once": lambda: f"{peak('flows tcp'):,.0f}",
        "UDP flows opened": lambda: f"{grown('opened udp'):,.0f}",
        "connects failed": lambda: f"{grown('connects failed'):,.0f}",
        "restarts": lambda: f"{grown('restarts'):,.0f}",
        "slowest scrape, ms": lambda: f"{peak('scrape') * 1e3:.1f}",
    }
    return {name: value() for name, value in counts.items()}


def _table(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_short(row.get(column, '')))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _short(text: str) -> str:
    """A number with as many digits as one reads; anything else as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.4 sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }}
h1 {{ font-size: 20px }} h2 {{ font-size: 16px; margin-top: 1.6em }}
table {{ border-collapse: collapse; font-size: 12px }} th, td {{ padding: 2px 10px 2px 0; text-align: right }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {{ text-align: left }}
li.good::marker {{ content: "\\2713  "; color: green }} li.bad::marker {{ content: "\\2717  "; color: red }}
svg {{ width: 100%; height: auto; display: block }}
</style></head><body>
<h1>{title}</h1>
<ul>{verdicts}</ul>
<h2>Requests, as locust saw them</h2>{requests}
<h2>Failures</h2>{failures}
<h2>The engine</h2>{engine}
<h2>Over time</h2><p>Seconds since the start; red lines are restarts of a worker.</p>
{panels}
</body></html>
"""


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1]), title=sys.argv[1], verdicts=()))
