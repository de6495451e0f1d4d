"""What confines a worker and the HTTP process beyond their user: Landlock and seccomp, where the kernel has them (Linux).

What it has is in force, or the process does not start: so `kernel_confinement`, asked anywhere, says it of all of them.
"""

import errno
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shared.landlock import landlock_abi, restrict_files
from shared.privileges import wait_until_alone
from shared.seccomp import filter_system_calls, seccomp_trouble

__all__ = ["Confinement", "confine", "kernel_confinement", "library_paths"]


class Confinement(NamedTuple):
    """What is in force."""

    landlock: int
    """Its ABI; 0: none."""
    seccomp: bool
    remarks: tuple[str, ...] = ()
    """Why there is less than there could be, a sentence each."""


def kernel_confinement() -> Confinement:
    """Return what this kernel has."""
    remarks = []
    abi = 0
    try:
        abi = landlock_abi()
    except OSError as error:
        reasons = {
            errno.ENOSYS: "the kernel has none, as Linux does since 5.13",
            errno.EOPNOTSUPP: "it is not among the security modules that the kernel was started with (lsm=)",
        }
        why = reasons.get(error.errno or 0, error.strerror)
        remarks.append(f"no Landlock, so that their user alone keeps workers from files: {why}")
    trouble = seccomp_trouble()
    if trouble:
        remarks.append(f"no filter of system calls for workers: {trouble}")
    return Confinement(abi, not trouble, tuple(remarks))


def confine(readable: Iterable[Path], *, sockets: bool) -> None:
    """Give up what is not needed, after privileges were dropped. Raises OSError.

    readable  files, and directories with all that lies below them, that may be read; no file may be written, none executed
    sockets   whether to make sockets for TCP and UDP, and connect them; none that would listen
    """
    has = kernel_confinement()
    if has.landlock or has.seccomp:
        wait_until_alone()
    if has.landlock:
        restrict_files(readable, connect=sockets)
    if has.seccomp:
        filter_system_calls(sockets=sockets)


def library_paths() -> list[Path]:
    """Where the interpreter, its libraries and our own sources lie: some are read only when they are used."""
    places = (
        *(place for place in sys.path if place not in ("", "/")),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"),
    )
    own = Path(__file__).parents[1]
    return [*(Path(place).absolute() for place in places), *(own / name for name in ("engine", "shared", "workers"))]
