"""/proc (proc(5)): who holds a socket, what a process is, its children.

Descriptors are read with readlink relative to the open directory, which takes 2.5 us each, against 6 us by path. Processes
and descriptors come and go while they are read: what is gone, or may not be seen (it takes CAP_SYS_PTRACE and
CAP_DAC_READ_SEARCH), is passed over.
"""

import os
from collections.abc import Collection, Iterable, Iterator

from engine.processes import Holder

__all__ = [
    "ancestors",
    "descendants",
    "executable",
    "find_holders",
    "holds",
    "parent",
    "pids",
    "read_arguments",
    "sockets_of",
    "uid_of",
]

DESCENDANTS_MAX = 1024
"""Processes followed below one; a proxy has a handful."""
ANCESTORS_MAX = 32
_DELETED = " (deleted)"  # suffix of the link when the file was replaced, as by an upgrade


def pids() -> list[int]:
    """Return the ids of all processes, none where there is no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def uid_of(pid: int) -> int | None:
    """Return the effective user of a process; None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def sockets_of(pid: int) -> set[int]:
    """Return the inodes of all sockets that a process holds."""
    return {int(link[8:-1]) for _, link in _sockets(pid)}


def find_holders(inodes: Collection[int], order: Iterable[int]) -> dict[int, Holder]:
    """Return one holder of each socket, looked for in the processes `order`, until all are found."""
    wanted = {_link(inode): inode for inode in inodes}
    found: dict[int, Holder] = {}
    for pid in order:
        if not wanted:
            break
        for fd, link in _sockets(pid):
            if link in wanted:
                found[wanted.pop(link)] = Holder(pid, fd)
                if not wanted:
                    break
    return found


def holds(holder: Holder, inode: int) -> bool:
    """Tell whether a descriptor is that socket."""
    try:
        return os.readlink(f"/proc/{holder.pid}/fd/{holder.fd}") == _link(inode)
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on (/proc/PID/task/TID/children, CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < DESCENDANTS_MAX:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def parent(pid: int) -> int | None:
    """Return the parent of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(
                file.read().rpartition(b")")[2].split()[1]
            )  # the name before the last parenthesis may hold blanks
    except OSError:
        return None


def ancestors(pid: int) -> list[int]:
    """Return the parent of a process, its parent, and so on, without init (1) and the kernel's (0)."""
    found: list[int] = []
    while len(found) < ANCESTORS_MAX and (next_one := parent(pid)) is not None and next_one > 1:
        found.append(next_one)
        pid = next_one
    return found


def executable(pid: int) -> str:
    """Return the path of a process's program; empty when it has none (threads of the kernel) or may not be seen."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)
    except OSError:
        return ""


def read_arguments(pid: int) -> tuple[str, ...]:
    """Return the command line of a process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return tuple(os.fsdecode(part) for part in file.read().rstrip(b"\0").split(b"\0") if part)
    except OSError:
        return ()


def _link(inode: int) -> str:
    return f"socket:[{inode}]"


def _sockets(pid: int) -> Iterator[tuple[int, str]]:
    """Give descriptor and link of each socket of a process."""
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for name in os.listdir(directory):
            try:
                link = os.readlink(name, dir_fd=directory)
            except OSError:
                continue
            if link.startswith("socket:["):
                yield int(name), link
    except OSError:
        return
    finally:
        os.close(directory)


def _children(pid: int) -> list[int]:
    """Return the processes that the threads of `pid` have started and that have not been given to another parent."""
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                children += map(int, file.read().split())
    except OSError:
        pass
    return children
