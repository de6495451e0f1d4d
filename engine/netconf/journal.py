"""RUN_DIR/network.journal: every change of the network, on disk before it is made, so that it can always be undone.

JSON lines, fsync'd before what they announce is done:

    {"type":"owner", ...}                              whose network it is: see Owner
    {"type":"recorded","number":1,"change":{...}}      about to be made, with everything that undoes it
    {"type":"settled","number":1}                      undone, or never made: not to be touched again

A change counts as made from the moment it is recorded: a crash between the two leaves a record whose undo finds nothing,
which is harmless. The file is removed when nothing is pending. Whoever has it open holds an exclusive lock on it, so a
guardian that has to undo waits for a helper that is still applying.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.netconf import NetworkError
from engine.netconf.darwin_plan import DarwinChange
from engine.netconf.plan import Change, KillSwitch

__all__ = ["AnyChange", "Journal", "Owner", "has_journal", "open_journal"]

JOURNAL_NAME = "network.journal"
SETTLED_LINES_MAX = 512
"""Lines of history, about, that the file may hold: bypasses come and go for as long as the engine runs."""


class Owner(msgspec.Struct, frozen=True, kw_only=True, tag="owner"):
    """Where the changes were made: names and numbers mean something else in another namespace or after a reboot."""

    interface: str
    index: int
    """Interface index: a later interface of the same name has another."""
    namespace: int
    """Inode of the network namespace; 0 on macOS, which has none."""
    boot: str
    """/proc/sys/kernel/random/boot_id; on macOS, kern.bootsessionuuid."""


AnyChange = Change | DarwinChange


class Recorded(msgspec.Struct, frozen=True, tag="recorded"):
    """`change` is about to be made."""

    number: int
    change: AnyChange


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """The change is undone, or was never made."""

    number: int


Entry = Owner | Recorded | Settled

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def has_journal(run_dir: Path) -> bool:
    """Whether there is anything to undo, as far as we may see."""
    return os.path.exists(run_dir / JOURNAL_NAME)  # Path.exists raises PermissionError


@contextmanager
def open_journal(run_dir: Path, *, create: bool) -> Iterator["Journal | None"]:
    """Give the locked journal, waiting for whoever holds it; None when there is none and `create` is False.

    On the way out the file is removed if nothing is pending. Raises NetworkError when it cannot be used.
    """
    path = run_dir / JOURNAL_NAME
    try:
        fd = _open_locked(path, create)
    except OSError as error:
        raise NetworkError(
            f"The journal {path} cannot be opened: {error.strerror}.", not_permitted=isinstance(error, PermissionError)
        ) from error
    if fd is None:
        yield None
        return
    journal = Journal(fd, path)
    try:
        journal.load()
        yield journal
    finally:
        journal.close()


def _open_locked(path: Path, create: bool) -> int | None:
    """Open and lock the file that is at `path` once the lock is held."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass  # removed, or put anew, by the one that held the lock
        os.close(fd)


class Journal:
    """An open journal; made by `open_journal`.

    owner     whose network it describes; None while the journal is empty
    pending   number -> change that is to be undone, in the order in which they were made
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self.owner: Owner | None = None
        self.pending: dict[int, AnyChange] = {}
        self._fd = fd
        self._next_number = 1
        self._lines = 0
        self._loaded = False

    def load(self) -> None:
        """Read what is on disk. Raises NetworkError when a line cannot be read."""
        content = self.path.read_bytes()
        # A last line without end was being written when the machine stopped: its change was not made.
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            os.ftruncate(self._fd, len(complete))
        for line_number, line in enumerate(complete.splitlines(), start=1):
            try:
                self._replay(_decode(line))
            except msgspec.MsgspecError as error:
                raise NetworkError(
                    f"Line {line_number} of the journal {self.path} is damaged ({error}): see `ip rule` (on macOS, "
                    "`netstat -rn`) for what is left to remove by hand, then delete the file."
                ) from error
        self._loaded = True

    def close(self) -> None:
        """Remove the file if nothing is pending, shorten it if most of it is history, and let the next one have it."""
        try:
            if self._loaded and not self.pending:
                self.path.unlink()  # while it is locked: whoever waits for the lock sees that it is gone, and looks again
            elif self._lines > 2 * len(self.pending) + SETTLED_LINES_MAX:
                self._shorten()
        finally:
            os.close(self._fd)

    def _shorten(self) -> None:
        """Put a file without what is settled in the place of this one."""
        assert self.owner is not None
        entries: list[Entry] = [self.owner, *(Recorded(number, change) for number, change in self.pending.items())]
        short = self.path.with_suffix(".short")
        fd = os.open(short, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_durably(fd, entries)
            os.rename(short, self.path)
        finally:
            os.close(fd)

    def _replay(self, entry: Entry) -> None:
        self._lines += 1
        match entry:
            case Owner():
                self.owner = entry
            case Recorded(number, change):
                self.pending[number] = change
                self._next_number = number + 1
            case Settled(number):
                self.pending.pop(number, None)

    def begin(self, owner: Owner) -> None:
        """Start the records of one run. Nothing may be pending but a kill switch, which knows of no interface index."""
        assert all(isinstance(change, KillSwitch) for change in self.pending.values()), (
            "an earlier run must be undone first"
        )
        self._append(owner)

    def fileno(self) -> int:
        """The descriptor that holds the lock; a program that is lent it holds the lock as well, until it ends."""
        return self._fd

    def record(self, *changes: AnyChange) -> list[int]:
        """Put `changes` on disk, before they are made; return their numbers."""
        numbers = list(range(self._next_number, self._next_number + len(changes)))
        self._append(*map(Recorded, numbers, changes))
        return numbers

    def settle(self, *numbers: int) -> None:
        """The changes are undone, or were not made."""
        self._append(*map(Settled, numbers))

    def _append(self, *entries: Entry) -> None:
        if entries:
            _write_durably(self._fd, entries)
        for entry in entries:
            self._replay(entry)


def _write_durably(fd: int, entries: Iterable[Entry]) -> None:
    """One write, then fsync."""
    lines = b"".join(_encode(entry) + b"\n" for entry in entries)
    while lines:
        lines = lines[os.write(fd, lines) :]
    os.fsync(fd)
