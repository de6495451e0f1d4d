"""Processes that outlive the command: without it they would sit in a namespace from which nothing leads out."""

import os
import signal
import time

__all__ = ["end_leftovers", "namespace_of"]

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
LOOK_INTERVAL = 0.05  # seconds


def namespace_of(pid: int | None = None) -> int | None:
    """Return what identifies the network namespace of a process (None: of this one); None when it may not be seen."""
    try:
        return os.stat(f"/proc/{'self' if pid is None else pid}/ns/net").st_ino
    except OSError:
        return None


def end_leftovers(namespace: int) -> list[str]:
    """End all processes of a network namespace; return their names with ids."""
    assert namespace != namespace_of(), "not everybody else on this machine"
    names: dict[int, str] = {}
    for number, patience in (signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE):
        deadline = time.monotonic() + patience
        told: set[int] = set()
        while (pids := _members(namespace)) and time.monotonic() < deadline:
            for pid in pids:
                if pid not in told:  # it may fork while we look
                    told.add(pid)
                    names.setdefault(pid, f"{_name(pid)} ({pid})")
                    _send(pid, number)
            time.sleep(LOOK_INTERVAL)
    return list(names.values())


def _members(namespace: int) -> list[int]:
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    return [pid for pid in pids if namespace_of(pid) == namespace and not _is_dead(pid)]


def _is_dead(pid: int) -> bool:
    """Tell whether it has ended and waits for its parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
