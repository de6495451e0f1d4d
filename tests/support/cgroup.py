"""A cgroup with a limit of memory, of either version, for a command of a test."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.netns import wait_until

__all__ = ["MemoryCgroup", "memory_cgroup"]


@dataclass(frozen=True)
class MemoryCgroup:
    """`wrapper` is a command that runs its arguments inside."""

    folder: Path
    wrapper: tuple[str, ...]

    def oom_kills(self) -> int:
        """How many processes inside were killed for want of memory."""
        for name in "memory.oom_control", "memory.events":
            if (self.folder / name).exists():
                counts = dict(line.split() for line in (self.folder / name).read_text().splitlines())
                return int(counts["oom_kill"])
        raise AssertionError("the kernel counts no kills")

    def peak(self) -> int:
        """The most bytes that were in use; 0 where the kernel does not remember."""
        for name in "memory.max_usage_in_bytes", "memory.peak":
            if (self.folder / name).exists():
                return int((self.folder / name).read_text())
        return 0


@contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """Make one of `limit` bytes; the test is skipped where none can be made."""
    name = f"tunloom-{uuid.uuid4().hex[:8]}"
    if Path("/sys/fs/cgroup/memory").exists():
        folder, file, procs = Path("/sys/fs/cgroup/memory", name), "memory.limit_in_bytes", "tasks"
    else:
        folder, file, procs = Path("/sys/fs/cgroup", name), "memory.max", "cgroup.procs"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"needs a memory cgroup ({folder}: {error.strerror})")
    if not (folder / file).exists():
        folder.rmdir()
        pytest.skip(f"needs a cgroup hierarchy that controls memory ({folder / file})")
    (folder / file).write_text(str(limit))
    join = f'echo $$ > {folder / procs} && exec "$@"'
    try:
        yield MemoryCgroup(folder, ("sh", "-c", join, "sh"))
    finally:
        wait_until(lambda: _removed(folder), what="an empty cgroup")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
