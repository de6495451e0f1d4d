"""loadtests/flows: a few flows are played, and a broken promise makes exit 1."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.flows.__main__ import main
from loadtests.flows.verdict import Outcome, Phase

KEPT = Outcome(
    flows=10,
    mappings=2,
    workers=1,
    memory_max=100,
    memory_peak=90,
    phases=[Phase("start", 1.0, tcp_whole=10, udp_whole=2, tcp_active=10, udp_active=2, memory={"master": 80})],
)


def test_a_run_in_which_all_is_well() -> None:
    assert KEPT.broken() == []


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (replace(KEPT, phases=[]), "no flow carried anything"),
        (replace(KEPT, memory_peak=101), "allowed"),
        (replace(KEPT, errors={"stream: ECONNRESET": 3}), "3 times stream: ECONNRESET"),
        (replace(KEPT, restarts=1), "1 workers died"),
        (replace(KEPT, left=1), "left"),
        (replace(KEPT, no_local_port=1), "no local port"),
        (replace(KEPT, phases=[replace(KEPT.phases[0], tcp_whole=9)]), "9 of 10 TCP flows"),
        (replace(KEPT, phases=[replace(KEPT.phases[0], udp_whole=1)]), "1 of 2 UDP mappings"),
        (replace(KEPT, phases=[replace(KEPT.phases[0], udp_active=1)]), "the engine holds 10 TCP flows and 1 UDP"),
    ],
)
def test_what_was_not_kept_is_said(broken: Outcome, sentence: str) -> None:
    (said,) = broken.broken()
    assert sentence in said


@pytest.mark.e2e
@pytest.mark.parametrize(("memory", "code"), [(2048, 0), (1, 1)])
def test_a_small_run(memory: int, code: int, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    few = ["--flows", "100", "--mappings", "10", "--workers", "2", "--hold", "0", "--memory", str(memory)]
    assert main([*few, "--json", str(file)]) == code
    run = json.loads(file.read_text())
    assert [(phase["tcp_whole"], phase["udp_whole"]) for phase in run["phases"]] == [(100, 10)] * 3
    assert len(run["broken"]) == code
