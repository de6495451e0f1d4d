"""engine/usage.py: what was used comes together, outlives the engine, and is told by program and by destination."""

import sqlite3
from pathlib import Path

import pytest

from engine import usage as usage_module
from engine.usage import UsageBook, usage_path, usage_totals
from shared.control import Usage, UsageOf
from tests.support.loop import on_loop

CURL, SSH = "/usr/bin/curl", "/usr/bin/ssh"


def used(*each: UsageOf) -> Usage:
    return Usage(each)


@on_loop
async def test_totals_add_up_over_restarts(tmp_path: Path) -> None:
    for _ in range(2):
        book = UsageBook(tmp_path / "usage.db")
        book.take(used(UsageOf(CURL, "a.example", 1, 10, 100), UsageOf(SSH, "a.example", 1, 5, 5)))
        book.take(used(UsageOf(CURL, "b.example", 2, 1, 1), UsageOf(CURL, "a.example", 0, 1, 0)))
        await book.stop()
    by_process = usage_totals(book.path, "process", days=None)
    assert [(total.name, total.flows, total.up, total.down) for total in by_process] == [
        (CURL, 6, 24, 202),
        (SSH, 2, 10, 10),
    ]
    by_domain = usage_totals(book.path, "domain", days=1)
    assert [(total.name, total.flows, total.up, total.down) for total in by_domain] == [
        ("a.example", 4, 32, 210),
        ("b.example", 4, 2, 2),
    ]
    assert (tmp_path / "usage.db").stat().st_mode & 0o777 == 0o600


@on_loop
async def test_too_many_destinations_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "PENDING_MAX", 2)
    book = UsageBook(tmp_path / "usage.db")
    book.take(used(*(UsageOf(CURL, f"{n}.example", 1, 1, 0) for n in range(5))))
    await book.save()
    totals = usage_totals(book.path, "domain", days=None)
    assert sum(total.flows for total in totals) == 5
    assert {total.name: total.flows for total in totals}[""] == 3


@on_loop
async def test_file_that_cannot_be_used_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "usage.db").write_text("this is no database, and never was one of those" * 10)
    book = UsageBook(tmp_path / "usage.db")
    for _ in range(3):
        book.take(used(UsageOf(CURL, "a.example", 1, 1, 1)))
        await book.save()
    assert caplog.text.count("usage is not kept") == 1
    with pytest.raises(sqlite3.Error):
        usage_totals(book.path, "process", days=None)


def test_nothing_was_ever_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        usage_totals(tmp_path / "usage.db", "process", days=None)


def test_default_run_directory_does_not_outlive_a_boot() -> None:
    assert usage_path(Path("/run/tunloom")) == Path("/var/lib/tunloom/usage.db")
    assert usage_path(Path("/tmp/x")) == Path("/tmp/x/usage.db")
