"""loadtests/page.py and loadtests/checks.py: what becomes of a run's figures."""

from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib (pip install '.[load]')")

from loadtests import checks
from loadtests.page import Verdict, write_page
from loadtests.sampler import Sample, Sampler, write_samples

HISTORY = """Timestamp,User Count,Type,Name,Requests/s,Failures/s,50%,95%,99%
1000,0,,Aggregated,0.0,0.0,N/A,N/A,N/A
1001,5,,Aggregated,12.5,0.5,3,9,20
1001,5,GET,GET short,12.5,0.5,3,9,20
1002,5,,Aggregated,13.0,0.0,3,8,19
"""
STATS = """Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%,Max Response Time
GET,GET <short>,1234,1,12.512,3,9,20,44.9
"""
FAILURES = """Method,Name,Error,Occurrences
GET,GET short,"ConnectionError('<closed>')",1
"""
START: Sample = {
    "time": 1000.0, "packets in": 10.0, "bytes in": 0.0, "flows tcp": 0.0, "restarts": 0.0, "defects": 0.0, "pool free": 511.0,
    "memory master": 30.0, "fds master": 20.0, "fds worker 0": 10.0, "flows udp": 0.0, "dropped checksum": 0.0,
}  # fmt: skip


def folder(path: Path, *samples: Sample) -> Path:
    (path / "locust_stats_history.csv").write_text(HISTORY)
    (path / "locust_stats.csv").write_text(STATS)
    (path / "locust_failures.csv").write_text(FAILURES)
    write_samples(list(samples), path / "engine.csv")
    return path


def test_page_joins_locust_and_the_engine(tmp_path: Path) -> None:
    later = START | {"time": 1001.0, "packets in": 1010.0, "flows tcp": 7.0, "restarts": 1.0, "dropped checksum": 3.0}
    page = write_page(
        folder(tmp_path, START, later),
        title="a <run>",
        verdicts=[Verdict("all & well", True), Verdict("not this", False)],
    )
    text = page.read_text()
    for part in (
        "<h1>a &lt;run&gt;</h1>",
        '<li class="good">all &amp; well</li>',
        '<li class="bad">not this</li>',
        "GET &lt;short&gt;",
        "<td>1,234</td>",
        "ConnectionError(&#x27;&lt;closed&gt;&#x27;)",
        "<td>1,000</td>",  # packets in
    ):
        assert part in text, part
    assert text.count("<svg") == text.count("</svg>") >= 8


def test_page_of_an_engine_that_never_answered(tmp_path: Path) -> None:
    assert "<svg" in write_page(folder(tmp_path), title="x", verdicts=[]).read_text()


class Ended:
    """A sampler after the run, whose engine shows one sample after another."""

    def __init__(self, *samples: Sample, missed: int = 0) -> None:
        self._samples = list(samples)
        self.missed = ["no answer"] * missed

    def take(self) -> Sample:
        return self._samples.pop(0) if len(self._samples) > 1 else self._samples[0]


def bad(after: Ended) -> list[str]:
    verdicts = checks.after_run(cast(Sampler, after), START)
    return [verdict.sentence for verdict in verdicts if not verdict.good]


def test_engine_that_is_as_before() -> None:
    assert bad(Ended(START | {"flows tcp": 3.0}, START | {"fds master": 25.0})) == [], "the last flows take their time"
    assert bad(Ended(START | {"flows udp": 100.0, "fds worker 0": 210.0})) == [], (
        "mappings live on, with two descriptors each"
    )


def test_everything_that_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DRAIN_TIMEOUT", 0.0)
    leaking = START | {"restarts": 2.0, "defects": 1.0, "flows tcp": 4.0, "pool free": 500.0, "fds worker 0": 110.0}
    assert bad(Ended(leaking, missed=3)) == [
        "2 workers died",
        "1 defects of the engine",
        "4 TCP flows left after the end",
        "11 packet slots not given back",
        "100 descriptors left open",
        "3 scrapes were not answered",
    ]


@pytest.mark.parametrize(("last", "good"), [(50.9, True), (51.1, False), (40.0, True)])
def test_memory_may_grow_by_two_per_cent(last: float, good: bool) -> None:
    samples = [{"time": float(t), "memory master": 20.0, "memory worker 0": 30.0} for t in range(600)]
    samples[0]["memory worker 0"] = 1.0  # before it has settled nobody looks
    for sample in samples[-40:]:
        sample["memory master"] = last - 30.0
    verdict = checks.memory_growth(cast(list[Sample], samples))
    assert verdict.good is good, verdict
    assert verdict.sentence.startswith("memory 50.0 MiB after 300 s")


def test_memory_of_a_short_run_is_not_judged() -> None:
    assert "not judged" in checks.memory_growth([START, START | {"time": 1100.0}]).sentence
