"""What the engine must show after a load test: nothing died, nothing leaked, nothing grew."""

from time import monotonic, sleep

from loadtests.page import Verdict
from loadtests.sampler import Sample, Sampler

__all__ = ["after_run", "memory_growth"]

DRAIN_TIMEOUT = 40.0
"""Seconds until the last flow must be gone; a half-open one is given up after 10, TIME-WAIT does not count."""
SETTLE = 300.0
"""Seconds after which memory must not grow any more: until then caches and pools fill."""
WINDOW = 30.0
"""Seconds over which memory is averaged."""
GROWTH_MAX = 0.02
DESCRIPTORS_PER_UDP_FLOW = 2
DESCRIPTORS_SLACK = 8
"""Descriptors of a process that may be more than before: the log, a scrape under way."""


def after_run(sampler: Sampler, before: Sample, *, deaths: int = 0) -> list[Verdict]:
    """Wait until the last TCP flow is gone and return what there is to say; so many `deaths` of workers were meant."""
    deadline = monotonic() + DRAIN_TIMEOUT
    after = sampler.take()
    while after["flows tcp"] and monotonic() < deadline:
        sleep(0.5)
        after = sampler.take()
    dead = after["restarts"] - before["restarts"]
    return [
        Verdict(f"{dead:.0f} workers died", good=dead == deaths),
        Verdict(
            f"{after['defects'] - before['defects']:.0f} defects of the engine",
            good=after["defects"] == before["defects"],
        ),
        Verdict(f"{after['flows tcp']:.0f} TCP flows left after the end", good=not after["flows tcp"]),
        Verdict(
            f"{before['pool free'] - after['pool free']:.0f} packet slots not given back",
            good=after["pool free"] == before["pool free"],
        ),
        _descriptors(before, after),
        Verdict(f"{len(sampler.missed)} scrapes were not answered", good=not sampler.missed),
    ]


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

    def average(start: float) -> float:
        sizes = [
            sum(value for name, value in sample.items() if name.startswith("memory ") and name != "memory http")
            for sample in samples
            if start <= sample["time"] <= start + WINDOW
        ]
        return sum(sizes) / len(sizes)

    first, last = average(begin), average(end - WINDOW)
    growth = last / first - 1
    return Verdict(
        f"memory {first:.1f} MiB after {SETTLE:.0f} s, {last:.1f} MiB at the end ({growth:+.1%})",
        good=growth < GROWTH_MAX,
    )
