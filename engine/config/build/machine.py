"""What a configuration is checked against: the interfaces and files of this machine. An argument, so that loading is pure."""

import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.tun import NAMED_UTUN

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """The machine that the configuration is for."""

    interfaces: frozenset[str]
    """Names of its network interfaces."""
    read: Callable[[Path], bytes]
    """Read a file; raises OSError."""
    is_open: Callable[[Path], bool] = lambda path: False
    """Whether every user of the machine can read a file."""
    named_utun: bool = False
    """Tun devices are named utunN, as on macOS."""


def this_machine() -> Machine:
    """Return the machine (the network namespace) that this process is in."""
    return Machine(frozenset(name for _, name in socket.if_nameindex()), Path.read_bytes, _is_open, NAMED_UTUN)


def _is_open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
