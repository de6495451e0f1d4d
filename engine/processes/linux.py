"""`ProcessTable` of Linux: netlink for sockets, /proc for processes."""

import os
import pwd
import socket
from collections import OrderedDict
from collections.abc import Collection, Iterator

from engine.processes import Holder, Network, Socket, proc
from engine.processes.sockets import SocketQueries
from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["LinuxProcessTable"]

RECENT_MAX = 8
"""Processes that are searched first, since they were found before: browsers open most of a machine's sockets."""
USERS_MAX = 1024
"""User names remembered; then all are forgotten."""


class LinuxProcessTable:
    """See engine.processes.ProcessTable. One thread beside the loop may use it at a time."""

    def __init__(self, quick: socket.socket, slow: socket.socket) -> None:
        """Take over two sockets of sockets.open_sock_diag."""
        self._quick = SocketQueries(quick)  # the loop's
        self._slow = SocketQueries(slow)  # the thread's
        self._recent: OrderedDict[int, None] = OrderedDict()  # process ids, the latest hit last
        self._users: dict[int, str] = {}

    def close(self) -> None:
        """See ProcessTable.close."""
        self._quick.close()
        self._slow.close()

    def find(self, flow: Ends) -> Socket | None:
        """See ProcessTable.find."""
        return self._quick.find(flow)

    def search(self, flow: Ends) -> Socket | None:
        """See ProcessTable.search."""
        return self._slow.search(flow)

    def listener(self, address: bytes, port: int) -> Socket | None:
        """See ProcessTable.listener."""
        return self._quick.listener(address, port)

    def listeners(self) -> list[Socket]:
        """See ProcessTable.listeners."""
        return self._slow.listeners()

    def bound(self, port: int) -> list[Socket]:
        """See ProcessTable.bound."""
        return self._slow.bound(port)

    def connections(self, network: Network) -> list[Socket]:
        """See ProcessTable.connections."""
        return self._slow.connections(network)

    def holders(self, inodes: Collection[int], *, uids: Collection[int] = ()) -> dict[int, Holder]:
        """See ProcessTable.holders."""
        found = proc.find_holders(inodes, self._likely_first(frozenset(uids)))
        for holder in found.values():
            self._recent[holder.pid] = None
            self._recent.move_to_end(holder.pid)
            if len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)
        return found

    def _likely_first(self, uids: frozenset[int]) -> Iterator[int]:
        """Give all processes: those found lately, then those of `uids`, then the others.

        A socket may be used by a process of another user than the one that made it, so the others cannot be left out.
        """
        recent = tuple(reversed(self._recent))
        yield from recent
        others = []
        for pid in proc.pids():
            if pid in recent:
                continue
            if proc.uid_of(pid) in uids:
                yield pid
            else:
                others.append(pid)
        yield from others

    def all_holders(self, inode: int) -> list[int]:
        """See ProcessTable.all_holders."""
        return [pid for pid in proc.pids() if proc.find_holders((inode,), (pid,))]

    def holds(self, holder: Holder, inode: int) -> bool:
        """See ProcessTable.holds."""
        return proc.holds(holder, inode)

    def sockets_of(self, pid: int) -> set[int]:
        """See ProcessTable.sockets_of."""
        return proc.sockets_of(pid)

    def descendants(self, pid: int) -> list[int]:
        """See ProcessTable.descendants."""
        return proc.descendants(pid)

    def ancestors(self, pid: int) -> list[int]:
        """See ProcessTable.ancestors."""
        return proc.ancestors(pid)

    def uid_of(self, pid: int) -> int | None:
        """See ProcessTable.uid_of."""
        return proc.uid_of(pid)

    def arguments(self, pid: int) -> tuple[str, ...]:
        """See ProcessTable.arguments."""
        return proc.read_arguments(pid)

    def describe(self, pid: int | None, uid: int) -> ProcessInfo:
        """See ProcessTable.describe."""
        path = proc.executable(pid) if pid is not None else ""
        return ProcessInfo(pid, os.path.basename(path), path, uid, self._user(uid))

    def _user(self, uid: int) -> str:
        user = self._users.get(uid)
        if user is None:
            try:
                user = pwd.getpwuid(uid).pw_name
            except KeyError:
                user = ""
            if len(self._users) >= USERS_MAX:
                self._users.clear()
            self._users[uid] = user
        return user
