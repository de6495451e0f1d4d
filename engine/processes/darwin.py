"""`ProcessTable` of macOS: the kernel's tables of sockets say at once which process has used each.

A socket's number (`Socket.inode`) is the kernel's handle of it. The tables are copied whole by each system call, so that a
look lasts SNAPSHOT_AGE seconds; a flow that it does not have is looked for once more in a fresh one. The process is the one
that has used the socket last, or on whose behalf that was done: mDNSResponder asks for names on behalf of all.
"""

import errno
import os
import pwd
import struct
from collections.abc import Collection
from time import monotonic

from engine.darwin import system
from engine.darwin.pcblist import PCBLIST_TCP, PCBLIST_UDP, SocketRecord, parse_pcblist
from engine.processes import Holder, Network, ProcessError, Socket
from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["DarwinProcessTable"]

SNAPSHOT_AGE = 0.2  # seconds
ANCESTORS_MAX = 64
USERS_MAX = 1024
"""User names remembered; then all are forgotten."""

PROC_PPID_ONLY = 6  # sys/proc_info.h; children of a process
PROC_PIDT_SHORTBSDINFO = 13
_SHORTBSDINFO = struct.Struct("=4I16s3I20x")  # see _basics; then real and saved ids
CTL_KERN, KERN_PROCARGS2 = 1, 49  # sys/sysctl.h
_TABLES: dict[Network, str] = {"tcp": PCBLIST_TCP, "udp": PCBLIST_UDP}


class DarwinProcessTable:
    """See engine.processes.ProcessTable."""

    def __init__(self) -> None:
        """Raises ProcessError."""
        self._snapshots: dict[Network, tuple[float, list[SocketRecord]]] = {}
        self._users: dict[int, str] = {}
        self._records("tcp")

    def close(self) -> None:
        """See ProcessTable.close."""
        self._snapshots.clear()

    def _records(self, network: Network, *, fresh: bool = False) -> list[SocketRecord]:
        now = monotonic()
        made_at, records = self._snapshots.get(network, (float("-inf"), []))
        if fresh or now - made_at > SNAPSHOT_AGE:
            try:
                records = parse_pcblist(system.sysctl_by_name(_TABLES[network]))
            except OSError as error:
                raise ProcessError(f"The kernel does not tell which program a flow is of: {error.strerror}.") from error
            self._snapshots[network] = (monotonic(), records)
        return records

    # sockets

    def find(self, flow: Ends) -> Socket | None:
        """See ProcessTable.find. Some hundred microseconds where the table is copied."""
        for fresh in (False, True):
            found = _match(flow, self._records(flow.network, fresh=fresh))
            if found is not None:
                return _as_socket(found)
        return None

    def search(self, flow: Ends) -> Socket | None:
        """See ProcessTable.search: the exact answer is out of all sockets already."""
        return self.find(flow)

    def listener(self, address: bytes, port: int) -> Socket | None:
        """See ProcessTable.listener."""
        candidates = [one for one in self._records("tcp") if not one.remote_port and one.local_port == port]
        exact = [one for one in candidates if one.local == address]
        wild = [one for one in candidates if not any(one.local) and (len(one.local) == len(address) or one.dual)]
        return _as_socket((exact or wild)[0]) if exact or wild else None

    def listeners(self) -> list[Socket]:
        """See ProcessTable.listeners."""
        return [_as_socket(one) for one in self._records("tcp") if not one.remote_port and one.local_port]

    def bound(self, port: int) -> list[Socket]:
        """See ProcessTable.bound."""
        return [_as_socket(one) for one in self._records("udp") if one.local_port == port]

    def connections(self, network: Network) -> list[Socket]:
        """See ProcessTable.connections."""
        return [_as_socket(one) for one in self._records(network) if one.remote_port]

    # processes

    def holders(self, inodes: Collection[int], *, uids: Collection[int] = ()) -> dict[int, Holder]:
        """See ProcessTable.holders. Descriptors are not known, and not needed."""
        wanted = frozenset(inodes)
        return {one.handle: Holder(one.pid, -1) for one in self._everything() if one.handle in wanted and one.pid}

    def all_holders(self, inode: int) -> list[int]:
        """See ProcessTable.all_holders: the one that has used it last stands for all."""
        return [one.pid for one in self._everything() if one.handle == inode and one.pid][:1]

    def holds(self, holder: Holder, inode: int) -> bool:
        """See ProcessTable.holds."""
        return any(one.handle == inode and one.pid == holder.pid for one in self._everything())

    def sockets_of(self, pid: int) -> set[int]:
        """See ProcessTable.sockets_of."""
        return {one.handle for one in self._everything() if one.pid == pid}

    def _everything(self) -> list[SocketRecord]:
        return [*self._records("tcp"), *self._records("udp")]

    def descendants(self, pid: int) -> list[int]:
        """See ProcessTable.descendants."""
        found: list[int] = []
        parents = [pid]
        while parents:
            children = [child for child in _children(parents.pop()) if child not in found and child != pid]
            found += children
            parents += children
        return found

    def ancestors(self, pid: int) -> list[int]:
        """See ProcessTable.ancestors."""
        found: list[int] = []
        while len(found) < ANCESTORS_MAX and (info := _basics(pid)) is not None and info[1] > 1:
            pid = info[1]
            found.append(pid)
        return found

    def uid_of(self, pid: int) -> int | None:
        """See ProcessTable.uid_of."""
        info = _basics(pid)
        return info[6] if info is not None else None

    def arguments(self, pid: int) -> tuple[str, ...]:
        """See ProcessTable.arguments."""
        try:
            return parse_arguments(system.sysctl(CTL_KERN, KERN_PROCARGS2, pid))
        except OSError:
            return ()

    def describe(self, pid: int | None, uid: int) -> ProcessInfo:
        """See ProcessTable.describe."""
        path = ""
        if pid is not None:
            try:
                path = system.process_path(pid)
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.EPERM, errno.ENOENT):
                    raise ProcessError(f"The path of process {pid} cannot be read: {error.strerror}.") from error
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


def _match(flow: Ends, records: list[SocketRecord]) -> SocketRecord | None:
    """Return the flow's socket: connected to its destination, else (UDP) bound to its source, else bound to its port."""
    at_port = [one for one in records if one.local_port == flow.source_port]
    for one in at_port:
        if (one.local, one.remote, one.remote_port) == (flow.source, flow.destination, flow.destination_port):
            return one
    if flow.network == "tcp":
        return None
    unconnected = [one for one in at_port if not one.remote_port]
    bound = [one for one in unconnected if one.local == flow.source]
    wild = [one for one in unconnected if not any(one.local) and (len(one.local) == len(flow.source) or one.dual)]
    best = bound or wild
    return best[0] if best else None


def _as_socket(one: SocketRecord) -> Socket:
    return Socket(one.local, one.local_port, one.remote, one.remote_port, one.uid, one.handle)


def _basics(pid: int) -> tuple[int, int, int, int, bytes, int, int, int] | None:
    """Return process id, parent, group, status, name, flags, user, group; None when it is gone."""
    try:
        return _SHORTBSDINFO.unpack(system.process_info(pid, PROC_PIDT_SHORTBSDINFO, _SHORTBSDINFO.size))
    except OSError:
        return None


def _children(pid: int) -> list[int]:
    try:
        data = system.process_ids(PROC_PPID_ONLY, pid)
    except OSError:
        return []
    return [child for (child,) in struct.iter_unpack("=i", data[: len(data) & ~3]) if child > 0]


def parse_arguments(data: bytes) -> tuple[str, ...]:
    """Read KERN_PROCARGS2: number of arguments, path of the executable, padding, then the arguments (and the environment)."""
    if len(data) < 4:
        return ()
    count = int.from_bytes(data[:4], "little", signed=True)
    _, _, rest = data[4:].partition(b"\0")
    words = rest.lstrip(b"\0").split(b"\0")
    return tuple(os.fsdecode(word) for word in words[: max(count, 0)])
