"""The run directory: one engine at a time holds it, by a lock that goes with the process, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["RunDirError", "lock_run_dir", "wait_until_unlocked"]

LOCK_NAME = "lock"
PATH_MAX = 90
"""Bytes: the control socket's path, some more, must fit sun_path, 108 with its terminating zero (unix(7))."""


class RunDirError(Exception):
    """The run directory cannot be used; the text is one sentence for the user."""


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Make `run_dir` and hold it. Raises RunDirError when another engine does, or when it cannot be used."""
    if len(os.fsencode(run_dir)) > PATH_MAX:
        raise RunDirError(
            f"--run-dir: {run_dir} is too long for a path that is to hold sockets: at most {PATH_MAX} bytes"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RunDirError(f"--run-dir: {run_dir} cannot be used ({error.strerror})") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirError(
                f"an engine is running with the run directory {run_dir}; "
                "stop it with `engine stop`, or give another --run-dir"
            ) from None
        yield
    finally:
        os.close(fd)


def wait_until_unlocked(run_dir: Path) -> None:
    """Wait until the engine of `run_dir` has put everything back and ended."""
    fd = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)
