"""loadtests/crash: a promise that was broken makes exit 1, whatever it is; what was found is kept row by row."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loadtests.crash.__main__ import main
from loadtests.crash.report import Finding, Row, add_to_file, as_markdown, from_file, play
from loadtests.crash.rows import ROWS
from loadtests.crash.traffic import AFTER, PIECE, surviving


def good(finding: Finding, quick: bool) -> None:
    finding.times = 2 if quick else 20
    finding.seconds = [0.5, 1.5]
    finding.flows_to_survive = finding.flows_survived = 3
    finding.bytes_verified = 1000


def differs(finding: Finding) -> None:
    finding.compare({"rules": ["a"]}, {"rules": ["a", "b"]})


def late(finding: Finding) -> None:
    finding.seconds.append(2.5)


def flow_lost(finding: Finding) -> None:
    finding.flows_survived -= 1


def damaged(finding: Finding) -> None:
    finding.bytes_damaged = 1


def problem(finding: Finding) -> None:
    finding.problems.append("a second repair found something")


def not_played(finding: Finding) -> None:
    finding.times = 0


def fails(finding: Finding) -> None:
    raise AssertionError("the successor did not come about within 60 seconds")


def skipped(finding: Finding) -> None:
    pytest.skip("needs a memory cgroup")


def row(broken: Callable[[Finding], None] | None) -> Row:
    def play(finding: Finding, quick: bool) -> None:
        good(finding, quick)
        if broken is not None:
            broken(finding)

    return Row("cut", "cable cut", play, seconds_max=2.0)


def test_a_promise_that_was_kept() -> None:
    finding = play(row(None), quick=True)
    assert finding.is_good
    assert finding.cells() == ("cable cut", "2", "3 of 3", "1.00 (at most 1.50)", "as before", "1,000 whole")
    assert finding.played_at


@pytest.mark.parametrize(
    ("broken", "shown"),
    [
        (differs, "1 DIFFERENCES"),
        (late, "TOO LATE: 2 are promised"),
        (flow_lost, "2 of 3"),
        (damaged, "1 DAMAGED"),
        (problem, "1 PROBLEMS"),
        (not_played, "| 0 |"),
        (fails, "1 PROBLEMS"),
        (skipped, "1 PROBLEMS"),
    ],
)
def test_a_broken_promise_shows(broken: Callable[[Finding], None], shown: str) -> None:
    finding = play(row(broken), quick=False)
    assert not finding.is_good
    assert shown in as_markdown([finding])


@pytest.mark.e2e
@pytest.mark.parametrize(("broken", "code"), [(None, 0), (damaged, 1), (fails, 1)])
def test_exit_code(
    broken: Callable[[Finding], None] | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that is not as promised does not keep the next from being played."""
    file = tmp_path / "results.json"
    rows = {"cut": row(broken), "next": Row("next", "the next", good)}
    assert main(["--quick", "--results", str(file), "--markdown", "-"], rows) == code
    assert [finding["times"] for finding in json.loads(file.read_text())] == [2, 2]
    assert "| the next | 2 | 3 of 3 |" in capsys.readouterr().out


@pytest.mark.e2e
def test_a_row_that_leaves_something_behind_is_not_good(capsys: pytest.CaptureFixture[str]) -> None:
    def leaves(finding: Finding, quick: bool) -> None:
        good(finding, quick)
        with open("/dev/shm/tunloom-left", "w"):
            pass

    try:
        assert main(["--quick"], {"leaves": Row("leaves", "leaves a file", leaves)}) == 1
    finally:
        Path("/dev/shm/tunloom-left").unlink()
    assert "left behind: /dev/shm/tunloom-left" in capsys.readouterr().out


def test_rows_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--only", "worker-killed,nonsense"])
    assert caught.value.code == 2
    assert "there is no row nonsense (--list shows them)" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ROWS)


def test_no_row_hides_another() -> None:
    assert len({row.what for row in ROWS.values()}) == len(ROWS)
    assert all(name == row.name for name, row in ROWS.items())


def test_results_are_kept_in_the_order_of_rows_the_latest_of_each(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    for finding in (Finding("two", "second"), Finding("one, early", "first"), Finding("one", "first", times=3)):
        add_to_file(file, finding)
    assert [finding.what for finding in from_file(file, ["first", "second"])] == ["one", "two"]
    assert from_file(file, ["first"])[0].times == 3


@pytest.fixture
def pairs() -> list[tuple[socket.socket, socket.socket]]:
    """Flows that lead straight to their peers."""
    made = [socket.socketpair() for _ in range(3)]
    for pair in made:
        for sock in pair:
            sock.settimeout(30)
    return made


def test_flows_that_survive_are_counted_with_their_bytes(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    finding = Finding("nothing")
    with ThreadPoolExecutor(12) as pool, surviving(finding, pool, pairs):
        pass
    assert (finding.flows_to_survive, finding.flows_survived) == (3, 3)
    assert (finding.bytes_verified, finding.bytes_damaged) == (6 * (PIECE + AFTER), 0)
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_a_byte_that_was_not_sent_is_damage(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    finding = Finding("a byte")
    pairs[1][0].send(b"!")
    with ThreadPoolExecutor(12) as pool, surviving(finding, pool, pairs):
        pass
    assert (finding.flows_to_survive, finding.flows_survived) == (3, 2)
    assert finding.bytes_damaged == PIECE + AFTER
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_a_flow_that_ends_is_lost(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    finding = Finding("an end")
    with ThreadPoolExecutor(12) as pool, surviving(finding, pool, pairs) as arrived:
        arrived()
        pairs[2][1].shutdown(socket.SHUT_RDWR)
    assert (finding.flows_to_survive, finding.flows_survived) == (3, 2)
    for pair in pairs:
        for sock in pair:
            sock.close()
