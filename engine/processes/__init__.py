"""Which program a flow belongs to, and which sockets belong to a program.

    worker asks ──► ProcessFinder.find(flow)
                       1. exact query of the kernel's socket table     ──► Socket (uid, inode)        10 us, on the loop
                       2. cache inode -> (pid, fd), checked by one readlink                            3 us, on the loop
                       3. walk of /proc/PID/fd for all who wait, in a thread                           milliseconds
                       4. /proc/PID/exe, name of the user          ──► shared.process.ProcessInfo

Workers are unprivileged and cannot see other users' descriptors: the master looks for them, and only when a rule (or the
loop guard) asks, once a flow.

sock_diag   codec of the kernel's socket queries; pure
sockets     the queries themselves, each answer verified against the flow
proc        /proc: who holds a socket, what a process is, its children
linux       the two together: `ProcessTable` for Linux
darwin      `ProcessTable` for macOS, whose kernel tells the process along with the socket
finder      the master's front: caches, and keeps the slow part off the loop

`open_process_table` is the one place that knows which platform this is.
"""

import socket
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["Holder", "Network", "ProcessError", "ProcessTable", "Socket", "open_process_table"]

Network = Literal["tcp", "udp"]


class ProcessError(Exception):
    """Processes cannot be looked up on this machine; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Socket:
    """One socket of the kernel's table. IPv4 addresses of dual-stack sockets are 4 bytes here."""

    local: bytes
    """Packed; all zeros: any address."""
    local_port: int
    remote: bytes
    """Packed; all zeros: not connected, or listening."""
    remote_port: int
    uid: int
    inode: int
    """Names the socket in /proc/PID/fd. 0: no process holds it (TIME-WAIT, half open, orphaned), and `uid` means nothing;
    the table gives out no such socket."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and its descriptor of one socket."""

    pid: int
    fd: int


class ProcessTable(Protocol):
    """Sockets and processes of this machine. What is gone or may not be seen is absent from answers, never an error."""

    def find(self, flow: Ends) -> Socket | None:
        """Return the flow's socket, by exact queries: some microseconds."""

    def search(self, flow: Ends) -> Socket | None:
        """Look through all sockets of the source port, for what exact queries do not find. Call it in a thread."""

    def listener(self, address: bytes, port: int) -> Socket | None:
        """Return the TCP socket that a connection to `address` would reach: some microseconds."""

    def listeners(self) -> list[Socket]:
        """Return all listening TCP sockets. Call it in a thread."""

    def bound(self, port: int) -> list[Socket]:
        """Return all sockets that take datagrams at a UDP port. Call it in a thread."""

    def connections(self, network: Network) -> list[Socket]:
        """Return all connected sockets. Call it in a thread."""

    def holders(self, inodes: Collection[int], *, uids: Collection[int] = ()) -> dict[int, Holder]:
        """Return one holder of each socket; processes of `uids` are searched first. Call it in a thread."""

    def all_holders(self, inode: int) -> list[int]:
        """Return the ids of all processes that hold the socket. Call it in a thread."""

    def holds(self, holder: Holder, inode: int) -> bool:
        """Tell whether the descriptor still is that socket: some microseconds."""

    def sockets_of(self, pid: int) -> set[int]:
        """Return the inodes of all sockets that a process holds. Call it in a thread."""

    def descendants(self, pid: int) -> list[int]:
        """Return the children of a process, theirs, and so on. Call it in a thread."""

    def uid_of(self, pid: int) -> int | None:
        """Return the effective user of a process; None when it is gone."""

    def ancestors(self, pid: int) -> list[int]:
        """Return the parent of a process, its parent, and so on, without init. Call it in a thread."""

    def arguments(self, pid: int) -> tuple[str, ...]:
        """Return the command line of a process, empty when it has none."""

    def describe(self, pid: int | None, uid: int) -> ProcessInfo:
        """Return what rules see; `uid` is the socket's. Call it in a thread: the user's name may come over the network."""

    def close(self) -> None:
        """Release the kernel's table; harmless when repeated."""


def open_process_table(sockets: Sequence[int] = ()) -> ProcessTable:
    """Open the table of the network namespace that the calling thread is in. Raises ProcessError.

    `sockets`: two descriptors of sockets that were made for it in another namespace; they are taken over.
    """
    if sys.platform == "linux":
        from engine.processes.linux import LinuxProcessTable
        from engine.processes.sockets import open_sock_diag

        quick, slow = (socket.socket(fileno=fd) for fd in sockets) if sockets else (open_sock_diag(), open_sock_diag())
        return LinuxProcessTable(quick, slow)
    if sys.platform == "darwin":
        from engine.processes.darwin import DarwinProcessTable

        return DarwinProcessTable()
    raise ProcessError(f"Programs cannot be told by their flows on {sys.platform}: the engine runs on Linux and macOS.")
