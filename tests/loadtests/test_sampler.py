"""loadtests/sampler.py: what is taken out of a scrape, and that it survives the file."""

from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil", reason="needs psutil (pip install '.[load]')")

from prometheus_client.exposition import generate_latest  # noqa: E402

from engine.http.prometheus import MetricsOf  # noqa: E402
from loadtests.sampler import _SUMS, decode_metrics, read_samples, write_samples  # noqa: E402
from shared.metrics import Cell  # noqa: E402
from tests.engine.http.measurement import Rows  # noqa: E402


def test_figures_are_summed_over_workers_and_told_apart_by_what_they_name() -> None:
    rows = Rows()
    for row in rows.rows[:-1]:
        row[Cell.TCP_ACTIVE], row[Cell.UDP_ACTIVE], row[Cell.DROP_CHECKSUM] = 3, 1, 5
    rows.rows[-1][Cell.PACKETS_IN] = 70
    sample = decode_metrics(generate_latest(MetricsOf(rows.measure("proxy"))).decode())
    assert (sample["flows tcp"], sample["flows udp"], sample["dropped checksum"]) == (6, 2, 10)
    assert (sample["packets in"], sample["packets out"]) == (70, 0)


def test_every_metric_that_is_asked_for_is_there() -> None:
    """A metric that was renamed would vanish from the page without a word."""
    text = generate_latest(MetricsOf(Rows().measure("proxy"))).decode()
    assert {name for name in _SUMS if f"\n{name}" not in text} == set()


def test_samples_survive_the_file(tmp_path: Path) -> None:
    samples = [{"time": 1.5, "a b": 2.0}, {"time": 2.5, "a b": 3.0, "later": 0.25}]
    write_samples(samples, tmp_path / "engine.csv")
    assert read_samples(tmp_path / "engine.csv") == samples
