"""What programs and destinations have used, by day, kept across restarts in one SQLite file.

Workers tell what their flows carried (Usage); it comes together in memory, and goes to the file every SAVE_INTERVAL, in a thread.
A crash costs as much as that.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from shared.control import Usage

__all__ = ["FILE_NAME", "Total", "UsageBook", "state_dir", "usage_path", "usage_totals"]

log = logging.getLogger(__name__)

FILE_NAME = "usage.db"
STATE_DIR = Path("/var/lib/tunloom")
DEFAULT_RUN_DIR = Path("/run/tunloom")
SAVE_INTERVAL = 15.0  # seconds
PENDING_MAX = 20_000
"""Pairs of program and destination between two saves; what is beyond goes to no destination in particular."""
KEPT_DAYS = 90
ROWS_MAX = 500_000
"""Rows of the file; the oldest days go."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, process TEXT NOT NULL, host TEXT NOT NULL,
    flows INTEGER NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL,
    PRIMARY KEY (day, process, host)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET flows = flows + excluded.flows, up = up + excluded.up, down = down + excluded.down
"""

Key = tuple[str, str, str]
"""Day (ISO 8601), program, destination."""


def usage_path(run_dir: Path) -> Path:
    """Return the file of an engine: beside its socket, but for the default run directory, which does not outlive a boot."""
    return state_dir(run_dir) / FILE_NAME


def state_dir(run_dir: Path) -> Path:
    """Return where an engine keeps what outlives it: the run directory, but for the default one, which a boot empties."""
    return STATE_DIR if run_dir == DEFAULT_RUN_DIR else run_dir


class UsageBook:
    """Keeps the accounts in `path`. A file that cannot be used is told once, and then nothing is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: dict[Key, list[int]] = {}
        self._saving = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    def start(self) -> None:
        """Save every SAVE_INTERVAL from now on."""
        self._task = asyncio.get_running_loop().create_task(self._save_again_and_again(), name="usage")

    async def stop(self) -> None:
        """Save the rest."""
        if self._task is not None:
            self._task.cancel()
        await self.save()

    def take(self, report: Usage) -> None:
        """A worker tells what its flows have carried."""
        today = date.today().isoformat()
        for each in report.usage:
            key = (today, each.process, each.host)
            if key not in self._pending and len(self._pending) >= PENDING_MAX:
                key = (today, "", "")
            sums = self._pending.setdefault(key, [0, 0, 0])
            sums[0] += each.flows
            sums[1] += each.up
            sums[2] += each.down

    async def save(self) -> Path:
        """Write what came together since the last time; returns the file."""
        async with self._saving:
            pending, self._pending = self._pending, {}
            if pending:
                try:
                    await asyncio.to_thread(_write, self.path, pending)
                except (OSError, sqlite3.Error) as error:
                    if not self._failed:
                        log.warning("usage is not kept: %s: %s", self.path, error)
                    self._failed = True
        return self.path

    async def _save_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            await self.save()


def _write(path: Path, pending: dict[Key, list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # who has used what is root's alone to know
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(_SCHEMA)
            connection.executemany(_ADD, [(*key, *sums) for key, sums in pending.items()])
            oldest = (date.today() - timedelta(days=KEPT_DAYS)).isoformat()
            connection.execute("DELETE FROM usage WHERE day < ?", (oldest,))
            (rows,) = connection.execute("SELECT COUNT(*) FROM usage").fetchone()
            if rows > ROWS_MAX:
                connection.execute("DELETE FROM usage WHERE day = (SELECT MIN(day) FROM usage)")
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Total:
    """What a program, or a destination, has used."""

    name: str
    """Empty: not known."""
    flows: int
    up: int
    down: int
    first_day: str
    last_day: str


def usage_totals(path: Path, by: Literal["process", "domain"], *, days: int | None) -> list[Total]:
    """Return the totals, largest first; `days`: of the last so many, today included.

    Raises FileNotFoundError when nothing was ever kept, sqlite3.Error for a file that is none.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    column = "process" if by == "process" else "host"
    since = (date.today() - timedelta(days=days - 1)).isoformat() if days is not None else ""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows: Iterable[tuple[str, int, int, int, str, str]] = connection.execute(
            f"SELECT {column}, SUM(flows), SUM(up), SUM(down), MIN(day), MAX(day) FROM usage"
            f" WHERE day >= ? GROUP BY {column} ORDER BY SUM(up) + SUM(down) DESC, {column}",
            (since,),
        ).fetchall()
    finally:
        connection.close()
    return [Total(*row) for row in rows]
