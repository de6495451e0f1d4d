"""What the engine must show after a load test: nothing died, nothing leaked, nothing grew."""

from statistics import median
from time import monotonic, sleep

from loadtests.page import Verdict
from loadtests.sampler import Sample, Sampler
from loadtests.spike import Facts, shed

__all__ = ["after_run", "memory_growth", "shedding"]

DRAIN_TIMEOUT = 40.0
"""Seconds until the last flow must be gone; a half-open one is given up after 10, TIME-WAIT does not count."""
MAPPINGS_TIMEOUT = 400.0
"""Seconds until the last UDP mapping must be gone: it lives for five minutes without a datagram, and an eighth more."""
SETTLE = 300.0
"""Seconds after which memory must not grow any more: until then caches and pools fill."""
WINDOW = 60.0
"""Seconds whose median is taken, at the beginning and at the end: memory goes up and down with what flows hold."""
GROWTH_MAX = 0.02
DESCRIPTORS_PER_UDP_FLOW = 2
DESCRIPTORS_SLACK = 8
"""Descriptors of a process that may be more than before: the log, a scrape under way."""


def after_run(
    sampler: Sampler, before: Sample, *, deaths: int = 0, until_no_mapping: bool = False, misses_scrapes: bool = False
) -> list[Verdict]:
    """Wait until the last flow is gone and return what there is to say.

    deaths            of workers that were meant
    until_no_mapping  wait for UDP as well
    misses_scrapes    the machine was given more than it carries: a scrape may come too late
    """
    after = _drained(sampler, "flows tcp", DRAIN_TIMEOUT)
    if until_no_mapping:
        after = _drained(sampler, "flows udp", MAPPINGS_TIMEOUT)
    dead = after["restarts"] - before["restarts"]
    missed = len(sampler.missed)
    return [
        Verdict(f"{dead:.0f} workers died", good=dead == deaths),
        Verdict(
            f"{after['defects'] - before['defects']:.0f} defects of the engine",
            good=after["defects"] == before["defects"],
        ),
        Verdict(f"{after['flows tcp']:.0f} TCP flows left after the end", good=not after["flows tcp"]),
        *(
            [Verdict(f"{after['flows udp']:.0f} UDP mappings left after the end", good=not after["flows udp"])]
            if until_no_mapping
            else []
        ),
        Verdict(
            f"{before['pool free'] - after['pool free']:.0f} packet slots not given back",
            good=after["pool free"] == before["pool free"],
        ),
        _descriptors(before, after),
        Verdict(f"{missed} scrapes were not answered", good=misses_scrapes or not missed),
    ]


def _drained(sampler: Sampler, figure: str, timeout: float) -> Sample:
    """Return a sample in which nothing is left of that figure, or the last one in time."""
    deadline = monotonic() + timeout
    while True:
        sample = sampler.take()
        if not sample[figure] or monotonic() >= deadline:
            return sample
        sleep(0.5)


def _descriptors(before: Sample, after: Sample) -> Verdict:
    """UDP mappings live on for minutes, with two descriptors each; all others must have been closed."""

    def total(sample: Sample) -> float:
        return sum(value for name, value in sample.items() if name.startswith("fds ") and name != "fds http")

    more = total(after) - total(before) - DESCRIPTORS_PER_UDP_FLOW * after["flows udp"]
    return Verdict(f"{max(more, 0):.0f} descriptors left open", good=more <= DESCRIPTORS_SLACK)


def memory_growth(samples: list[Sample]) -> Verdict:
    """Judge the growth of the engine's memory, all processes together, after the first SETTLE seconds."""
    begin, end = samples[0]["time"] + SETTLE, samples[-1]["time"]
    if end - begin < 2 * WINDOW:
        return Verdict(f"memory: not judged, the run was shorter than {SETTLE + 2 * WINDOW:.0f} s", good=True)

    def typical(start: float, beginning: str) -> float:
        return median(
            sum(value for name, value in sample.items() if name.startswith(beginning))
            for sample in samples
            if start <= sample["time"] <= start + WINDOW
        )

    (first, last), (anonymous, anonymous_last), (mappings, mappings_last) = (
        (typical(begin, name), typical(end - WINDOW, name)) for name in ("memory ", "anonymous ", "flows udp")
    )
    growth = last / first - 1
    return Verdict(
        f"memory {first:.1f} MiB after {SETTLE:.0f} s, {last:.1f} MiB at the end ({growth:+.1%}, to be below {GROWTH_MAX:.0%}); "
        f"anonymous {anonymous:.1f} and {anonymous_last:.1f} MiB, UDP mappings {mappings:.0f} and {mappings_last:.0f}",
        good=growth < GROWTH_MAX,
    )


def shedding(spike: Facts, samples: list[Sample]) -> Verdict:
    """Judge what became of the load that was too much, by what the engine has counted meanwhile."""

    def counted(sample: Sample) -> tuple[float, float]:
        dropped = sum(value for name, value in sample.items() if name.startswith("dropped "))
        return dropped, sample["connects failed"] + sample["udp refused"]

    before = max((sample for sample in samples if sample["time"] <= spike["start"]), key=lambda sample: sample["time"])
    after = min(
        (sample for sample in samples if sample["time"] >= spike["end"]),
        key=lambda sample: sample["time"],
        default=samples[-1],
    )
    dropped, refused = (now - then for now, then in zip(counted(after), counted(before), strict=True))
    return Verdict(*shed(spike, dropped, refused))
