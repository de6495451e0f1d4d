"""What of select.kqueue the engine uses, on a pidfd: the end of one child process."""

import os
import select
from types import SimpleNamespace

__all__ = ["KQUEUE"]

_pidfd_open = os.pidfd_open  # kept: a Mac has none (mac.py)


class Kqueue:
    """select.kqueue for one process: EVFILT_PROC with NOTE_EXIT."""

    def __init__(self) -> None:
        self._fd = -1

    def control(self, changes: list[SimpleNamespace], most: int) -> list[object]:
        (event,) = changes
        assert (event.filter, event.flags, event.fflags, most) == (-5, 0x11, 0x80000000, 0)
        self._fd = _pidfd_open(event.ident)  # ESRCH when there is no such process
        if select.select([self._fd], [], [], 0)[0]:
            os.close(self._fd)
            self._fd = -1
            raise ProcessLookupError(3, "a zombie is none to a kqueue")
        return []

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def kevent(ident: int, *, filter: int, flags: int, fflags: int) -> SimpleNamespace:
    return SimpleNamespace(ident=ident, filter=filter, flags=flags, fflags=fflags)


KQUEUE = SimpleNamespace(
    kqueue=Kqueue, kevent=kevent, KQ_FILTER_PROC=-5, KQ_EV_ADD=1, KQ_EV_ONESHOT=0x10, KQ_NOTE_EXIT=0x80000000
)
