"""loadtests/bench: what is computed from a run's records, and how it is shown. No lab, no load: recorded runs."""

import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from loadtests.bench.report import load_json, plot, print_report, save_json
from loadtests.bench.results import (
    MEASURES,
    TARGETS,
    Machine,
    Record,
    Run,
    Target,
    Verdict,
    best_sing_box,
    medians,
    ratio,
    spread,
    verdicts,
)


def records(measure: str, **values: float | tuple[float, ...]) -> list[Record]:
    """One record per value; peers by keyword, with `_` for `-`."""
    made = []
    for peer, given in values.items():
        series = given if isinstance(given, tuple) else (given,)
        made += [Record(i, peer.replace("_", "-"), measure, value) for i, value in enumerate(series, 1)]
    return made


def a_run(taken: list[Record], unavailable: dict[str, str] | None = None) -> Run:
    """A run that gave these records."""
    return Run(
        started="2026-01-02T03:04:05+00:00",
        command="python -m loadtests.bench --quick",
        machine=Machine(cpu="Some CPU", cores=2, kernel="6.1.0", python="3.11.7", congestion_control="cubic"),
        socks="embedded",
        rounds=3,
        seconds=3,
        versions=dict.fromkeys((record.peer for record in taken), "1.0"),
        unavailable=unavailable or {},
        records=taken,
    )


def shown(run: Run) -> str:
    """The report as plain text."""
    console = Console(file=io.StringIO(), width=200)
    print_report(run, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(report: str, table: str, measure: str) -> list[str]:
    """Cells of one row, without the measure's title, of the table with that title."""
    [line] = [
        line for line in report.partition(table)[2].splitlines() if line.startswith(f"│ {MEASURES[measure].title} ")
    ][:1]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def verdict(measure: str, reference: str | None, **values: float) -> Verdict:
    """What is said of one target when the peers reached these medians."""
    [found] = [
        each
        for each in verdicts(medians(records(measure, **values)))
        if (each.target.measure, each.target.reference) == (measure, reference)
    ]
    return found


# medians and ratios


def test_median_is_taken_over_the_rounds_of_each_peer() -> None:
    found = medians(records("http_1", tunloom=(30.0, 10.0, 20.0), plain=(4.0, 8.0)))
    assert found == {"http_1": {"tunloom": 20.0, "plain": 6.0}}


def test_failed_round_is_left_out_and_is_not_zero() -> None:
    taken = [*records("http_1", tunloom=(10.0, 30.0)), Record(3, "tunloom", "http_1", error="refused")]
    assert medians(taken) == {"http_1": {"tunloom": 20.0}}


def test_measure_that_always_failed_has_no_median() -> None:
    assert medians([Record(1, "xray", "http_1", error="refused")]) == {}


def test_spread_is_of_one_peer_and_one_measure() -> None:
    taken = [*records("http_1", tunloom=(2.0, 9.0, 4.0), plain=1.0), *records("http_64", tunloom=100.0)]
    assert spread(taken, "tunloom", "http_1") == (2.0, 9.0)
    assert spread(taken, "xray", "http_1") is None


@pytest.mark.parametrize(("better", "expected"), [("higher", 5.0), ("lower", 4.0)])
def test_best_sing_box_is_the_better_of_its_configurations(better: str, expected: float) -> None:
    figures = {"sing-box-mixed": 4.0, "sing-box-gvisor": 5.0, "tunloom": 99.0}
    assert best_sing_box(figures, "higher" if better == "higher" else "lower") == expected


def test_best_sing_box_with_one_configuration_and_with_none() -> None:
    assert best_sing_box({"sing-box-gvisor": 5.0}, "higher") == 5.0
    assert best_sing_box({"plain": 5.0}, "higher") is None


def test_ratio_to_each_reference() -> None:
    figures = {"tunloom": 3.0, "sing-box-mixed": 2.0, "sing-box-gvisor": 1.0, "plain": 6.0}
    assert ratio(figures, MEASURES["tcp_up_1"], "sing-box") == 1.5
    assert ratio(figures, MEASURES["tcp_up_1"], "plain") == 0.5
    assert ratio({"tunloom": 3.0}, MEASURES["tcp_up_1"], "plain") is None
    assert ratio({"plain": 3.0}, MEASURES["tcp_up_1"], "plain") is None


# targets


@pytest.mark.parametrize(
    ("measure", "ours", "passed"),
    [
        ("tcp_up_1", 0.85, True),
        ("tcp_down_1", 0.84, False),
        ("tcp_up_4", 1.0, True),
        ("tcp_down_4", 0.99, False),
        ("connections", 0.6, True),
        ("connections", 0.59, False),
        ("http_1", 0.9, True),
        ("http_64", 0.89, False),
        ("udp_up_200", 1.2, True),
        ("udp_down_200", 1.19, False),
    ],
)
def test_target_against_sing_box(measure: str, ours: float, passed: bool) -> None:
    assert verdict(measure, "sing-box", tunloom=ours, sing_box_mixed=1.0, sing_box_gvisor=0.1).passed is passed


@pytest.mark.parametrize(("ours", "passed"), [(0.5, True), (0.49, False)])
def test_target_against_plain(ours: float, passed: bool) -> None:
    assert verdict("tcp_down_4", "plain", tunloom=ours, plain=1.0).passed is passed


@pytest.mark.parametrize(("mebibytes", "passed"), [(30.0, True), (30.1, False)])
def test_memory_target_is_absolute(mebibytes: float, passed: bool) -> None:
    found = verdict("pss_idle", None, tunloom=mebibytes)
    assert (found.reached, found.passed) == (mebibytes, passed)


def test_target_without_its_reference_is_neither_reached_nor_missed() -> None:
    assert verdict("tcp_up_4", "sing-box", tunloom=5.0, plain=6.0).passed is None


def test_every_target_is_judged_even_without_records() -> None:
    assert [each.target for each in verdicts({})] == list(TARGETS)
    assert {each.passed for each in verdicts({})} == {None}


def test_target_reads_as_in_the_table() -> None:
    assert str(Target("tcp_up_1", 0.85, "sing-box")) == "≥ 0.85 × sing-box"
    assert str(Target("pss_idle", 30.0, None)) == "≤ 30"


def test_steps_yield_every_measure_once() -> None:
    pytest.importorskip("psutil")
    from loadtests.bench.measure import STEPS

    assert sorted(name for step in STEPS for name in step.measures) == sorted(MEASURES)
    assert {target.measure for target in TARGETS} <= set(MEASURES)


# tables


def test_tables_show_medians_ratios_and_pass() -> None:
    report = shown(a_run(records("tcp_up_4", plain=8.0, tunloom=(4.0, 6.0), sing_box_mixed=4.0, sing_box_gvisor=2.0)))
    assert row(report, "Medians", "tcp_up_4") == ["Gbit/s", "8.00", "5.00", "4.00", "2.00"]
    targets = "≥ 1 × sing-box, ≥ 0.5 × plain"
    assert row(report, "its targets", "tcp_up_4") == ["5.00", "4.00 – 6.00", "1.25", "0.62", targets, "PASS"]


def test_shortfall_is_not_rounded_away() -> None:
    report = shown(a_run(records("tcp_up_4", plain=1000.0, tunloom=999.0, sing_box_mixed=1000.0)))
    assert row(report, "its targets", "tcp_up_4")[-1] == "short: 0.999 × sing-box"


def test_failed_measure_is_a_dash_and_its_error_is_told_once() -> None:
    failed = [Record(i, "xray", name, error="it went away") for i in (1, 2) for name in ("http_1", "http_64")]
    report = shown(a_run([*records("http_1", plain=7.0), *failed]))
    assert row(report, "Medians", "http_1") == ["requests/s", "7", "–"]
    assert report.count("it went away") == 1
    assert "http_1 (round 1), http_64 (round 1), http_1 (round 2), http_64 (round 2)" in report


def test_unavailable_peer_is_named_with_the_way_to_install_it() -> None:
    report = shown(a_run(records("http_1", plain=7.0), {"hev": "not installed (build it)"}))
    assert "hev was not measured: not installed (build it)" in report


def test_run_without_the_engine_has_no_targets() -> None:
    assert "targets" not in shown(a_run(records("http_1", plain=7.0)))


# files


def test_json_keeps_every_record(tmp_path: Path) -> None:
    taken = [
        *records("http_1", plain=(7.0, 8.0)),
        Record(1, "xray", "http_1", error="refused"),
        Record(1, "plain", "udp_up_200", 5.0, note="offered 9/s"),
    ]
    run = a_run(taken, {"hev": "not installed"})
    save_json(run, tmp_path / "run.json")
    assert load_json(tmp_path / "run.json") == run
    assert json.loads((tmp_path / "run.json").read_text())["records"][2] == {
        "round": 1,
        "peer": "xray",
        "measure": "http_1",
        "error": "refused",
    }


def test_json_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"records": []}')
    with pytest.raises(msgspec.ValidationError):
        load_json(tmp_path / "run.json")


def test_plot_is_drawn_with_missing_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    taken = [*records("tcp_up_1", plain=8.0, tunloom=(4.0, 6.0)), Record(1, "plain", "connections", error="refused")]
    plot(a_run(taken), tmp_path / "run.svg")
    plot(a_run(taken), tmp_path / "run.png")
    drawn = (tmp_path / "run.svg").read_text()
    assert drawn.count('id="axes_') == 2  # a panel per group of measures that were tried
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_plot_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="xyz"):
        plot(a_run(records("tcp_up_1", plain=8.0)), tmp_path / "run.xyz")
