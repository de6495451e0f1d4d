"""The journal on disk. Linux is not asked: what is recorded is never made."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.netconf import NetworkError
from engine.netconf.journal import Owner, open_journal
from engine.netconf.plan import Address, Link, LinkState, Route, Rule, Sysctl

OWNER = Owner(interface="tun0", index=7, namespace=1, boot="b")
DOWN, UP = LinkState(mtu=1500, queue_length=500, up=False), LinkState(mtu=9000, queue_length=1000, up=True)
CHANGES = [
    Sysctl(path="net/x", before="0", after="2"),
    Link(before=DOWN, after=UP),
    Address(family=6, address="fd00::1/126"),
    Route(family=4, destination="0.0.0.0/1", table=2022),
    Rule(family=4, priority=9000, uid=0, goto=9010),
]


def journal_file(run_dir: Path) -> Path:
    return run_dir / "network.journal"


def record(run_dir: Path) -> None:
    with open_journal(run_dir, create=True) as journal:
        assert journal is not None
        journal.begin(OWNER)
        assert [journal.record(change) for change in CHANGES] == [[1], [2], [3], [4], [5]]


def test_next_run_reads_what_is_pending(tmp_path: Path) -> None:
    record(tmp_path)
    with open_journal(tmp_path, create=False) as journal:
        assert journal is not None
        assert journal.owner == OWNER
        assert list(journal.pending.values()) == CHANGES
        journal.settle(5)
        journal.settle(2)
    with open_journal(tmp_path, create=False) as journal:
        assert journal is not None
        assert list(journal.pending) == [1, 3, 4]


def test_file_goes_when_nothing_is_pending(tmp_path: Path) -> None:
    record(tmp_path)
    with open_journal(tmp_path, create=False) as journal:
        assert journal is not None
        for number in range(1, 6):
            journal.settle(number)
        assert journal_file(tmp_path).exists()
    assert not journal_file(tmp_path).exists()
    with open_journal(tmp_path, create=False) as journal:
        assert journal is None


def test_record_is_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    with open_journal(tmp_path, create=True) as journal:
        assert journal is not None
        journal.begin(OWNER)
        journal.record(CHANGES[4])
        assert journal_file(tmp_path).read_bytes().splitlines()[-1] == (
            b'{"type":"recorded","number":1,"change":{"type":"rule","family":4,"priority":9000,"goto":9010,"uid":0}}'
        )
        journal.settle(1)


def test_several_at_once_have_their_numbers_in_order(tmp_path: Path) -> None:
    with open_journal(tmp_path, create=True) as journal:
        assert journal is not None
        journal.begin(OWNER)
        assert journal.record(*CHANGES) == [1, 2, 3, 4, 5]
        journal.settle(2, 4)
        assert journal.record() == []
    with open_journal(tmp_path, create=False) as journal:
        assert journal is not None
        assert journal.pending == {1: CHANGES[0], 3: CHANGES[2], 5: CHANGES[4]}


def test_history_is_dropped_and_what_is_pending_kept(tmp_path: Path) -> None:
    record(tmp_path)
    for _ in range(20):
        with open_journal(tmp_path, create=False) as journal:
            assert journal is not None
            for _ in range(100):
                journal.settle(*journal.record(CHANGES[3]))
    with open_journal(tmp_path, create=False) as journal:
        assert journal is not None
        assert (journal.owner, list(journal.pending.values())) == (OWNER, CHANGES)
    assert journal_file(tmp_path).read_bytes().count(b"\n") < 1000
    assert list(tmp_path.iterdir()) == [journal_file(tmp_path)]


def test_line_cut_short_counts_as_never_written(tmp_path: Path) -> None:
    record(tmp_path)
    whole = journal_file(tmp_path).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(last, len(whole)):
        journal_file(tmp_path).write_bytes(whole[:length])
        with open_journal(tmp_path, create=False) as journal:
            assert journal is not None
            assert list(journal.pending) == [1, 2, 3, 4]
            assert journal.record(CHANGES[4]) == [5]
        assert journal_file(tmp_path).read_bytes() == whole


def test_damaged_line(tmp_path: Path) -> None:
    record(tmp_path)
    lines = journal_file(tmp_path).read_bytes().splitlines(keepends=True)
    lines[2] = b"garbage\n"
    journal_file(tmp_path).write_bytes(b"".join(lines))
    with pytest.raises(NetworkError, match="Line 3 of the journal"), open_journal(tmp_path, create=False):
        pass
    assert journal_file(tmp_path).exists()


def test_second_one_waits_for_the_first_and_sees_that_the_file_is_gone(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from engine.netconf.journal import open_journal
print("asking", flush=True)
with open_journal(Path(sys.argv[1]), create=False) as journal:
    print(journal)
"""
    with open_journal(tmp_path, create=True) as journal:
        assert journal is not None
        journal.begin(OWNER)
        (number,) = journal.record(CHANGES[0])
        arguments = [sys.executable, "-c", script, str(tmp_path)]
        waiting = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "asking\n"
        journal.settle(number)
    with waiting:
        assert waiting.stdout.read() == "None\n"
    assert waiting.returncode == 0


def test_run_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NetworkError, match="cannot be opened"), open_journal(tmp_path / "file" / "run", create=True):
        pass
