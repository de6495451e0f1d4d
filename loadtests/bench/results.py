"""What a run yields, and what is computed from it: medians, ratios, targets reached. Pure."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

import msgspec

__all__ = [
    "MEASURES",
    "OURS",
    "PLAIN",
    "SING_BOX",
    "TARGETS",
    "Machine",
    "Measure",
    "Record",
    "Run",
    "Target",
    "Verdict",
    "best_sing_box",
    "medians",
    "ratio",
    "spread",
    "verdicts",
]

OURS = "tunloom"
PLAIN = "plain"
SING_BOX = ("sing-box-mixed", "sing-box-gvisor")


class Measure(msgspec.Struct, frozen=True):
    """One figure that is taken of every peer."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] = "higher"
    digits: int = 0
    """Decimal places in tables."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement of one peer: a value, or an error that says why there is none."""

    round: int
    peer: str
    measure: str
    value: float | None = None
    error: str | None = None
    note: str | None = None
    """What else is worth knowing, such as the rate that was offered."""


class Machine(msgspec.Struct, frozen=True):
    """Where the run was made."""

    cpu: str
    cores: int
    kernel: str
    python: str
    congestion_control: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, as in the JSON file."""

    started: str
    """ISO 8601, UTC."""
    command: str
    machine: Machine
    socks: str
    """Kind of SOCKS server."""
    rounds: int
    seconds: int
    """Of each load."""
    versions: dict[str, str]
    """Peer -> version; only peers that were measured."""
    unavailable: dict[str, str]
    """Peer -> why it was not measured."""
    records: list[Record]


class Target(msgspec.Struct, frozen=True):
    """What is to be reached: `factor` times a reference's figure or, without one, `factor` in the measure's unit."""

    measure: str
    factor: float
    reference: Literal["sing-box", "plain"] | None

    def __str__(self) -> str:
        if self.reference is None:
            return f"≤ {self.factor:g}"
        return f"≥ {self.factor:g} × {self.reference}"


class Verdict(msgspec.Struct, frozen=True):
    """One target and what was reached of it: a ratio, or a value; None when a figure is missing."""

    target: Target
    reached: float | None

    @property
    def passed(self) -> bool | None:
        """Whether the target is reached; None when that is not known."""
        if self.reached is None:
            return None
        if self.target.reference is None:
            return self.reached <= self.target.factor
        return self.reached >= self.target.factor


def _per_direction(kind: str, title: str, variants: Iterable[tuple[str, str]], unit: str) -> list[Measure]:
    return [
        Measure(f"{kind}_{direction}_{key}", f"{title} {direction}, {text}", unit, digits=2 if kind == "tcp" else 0)
        for key, text in variants
        for direction in ("up", "down")
    ]


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        *_per_direction("tcp", "TCP", (("1", "1 flow"), ("4", "4 flows")), "Gbit/s"),
        *(
            Measure(f"cpu_{direction}_{flows}", f"CPU, TCP {direction}, {text}", "s/Gbit", "lower", digits=3)
            for flows, text in (("1", "1 flow"), ("4", "4 flows"))
            for direction in ("up", "down")
        ),
        Measure("connections", "new connections", "1/s"),
        Measure("http_1", "HTTP, 1 connection", "requests/s"),
        Measure("http_64", "HTTP, 64 connections", "requests/s"),
        *_per_direction("udp", "UDP", (("200", "200 bytes"), ("1400", "1400 bytes")), "datagrams/s"),
        Measure("dns", "DNS, warm cache", "queries/s"),
        Measure("dns_miss_p50", "DNS, new name, added, median", "ms", "lower", digits=2),
        Measure("dns_miss_p99", "DNS, new name, added, 99 of 100", "ms", "lower", digits=2),
        Measure("pss_idle", "PSS of the largest process, idle", "MiB", "lower", digits=1),
        Measure("pss_loaded", "PSS of the largest process, after load", "MiB", "lower", digits=1),
    )
}
"""By name, in the order of the tables."""

TARGETS: tuple[Target, ...] = (
    *(Target(f"tcp_{direction}_1", 0.85, "sing-box") for direction in ("up", "down")),
    *(Target(f"tcp_{direction}_4", 1.0, "sing-box") for direction in ("up", "down")),
    *(Target(f"tcp_{direction}_{flows}", 0.5, "plain") for flows in (1, 4) for direction in ("up", "down")),
    Target("connections", 0.6, "sing-box"),
    Target("http_1", 0.9, "sing-box"),
    Target("http_64", 0.9, "sing-box"),
    Target("dns", 1.5, "sing-box"),
    Target("dns_miss_p50", 2.0, None),
    *(Target(f"udp_{direction}_200", 1.2, "sing-box") for direction in ("up", "down")),
    Target("pss_idle", 30.0, None),
)
"""What the engine is to reach on a 2-core machine."""

Medians = dict[str, dict[str, float]]
"""Measure -> peer -> median over the rounds that gave a value."""


def medians(records: Sequence[Record]) -> Medians:
    """Return the medians; a measure or a peer without any value is absent."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record.value is not None:
            values.setdefault(record.measure, {}).setdefault(record.peer, []).append(record.value)
    return {measure: {peer: median(each) for peer, each in peers.items()} for measure, peers in values.items()}


def spread(records: Sequence[Record], peer: str, measure: str) -> tuple[float, float] | None:
    """Return the least and the greatest value of one peer's measure, None when there is none."""
    values = [record.value for record in records if (record.peer, record.measure) == (peer, measure)]
    found = [value for value in values if value is not None]
    return (min(found), max(found)) if found else None


def best_sing_box(figures: dict[str, float], better: Literal["higher", "lower"]) -> float | None:
    """Return the better of sing-box's configurations in the medians of one measure, None when there is neither."""
    found = [figures[peer] for peer in SING_BOX if peer in figures]
    if not found:
        return None
    return max(found) if better == "higher" else min(found)


def ratio(figures: dict[str, float], measure: Measure, reference: Literal["sing-box", "plain"]) -> float | None:
    """Return the engine's median divided by that of the reference, None when one of the two is missing or zero."""
    ours = figures.get(OURS)
    other = figures.get(PLAIN) if reference == "plain" else best_sing_box(figures, measure.better)
    return ours / other if ours is not None and other else None


def verdicts(found: Medians) -> list[Verdict]:
    """Hold the medians against every target, in the order of TARGETS."""
    result = []
    for target in TARGETS:
        figures = found.get(target.measure, {})
        measure, reference = MEASURES[target.measure], target.reference
        reached = figures.get(OURS) if reference is None else ratio(figures, measure, reference)
        result.append(Verdict(target, reached))
    return result
