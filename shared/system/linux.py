"""Linux: memfd, eventfd, SOCK_SEQPACKET, pidfd."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import NamedTuple

from shared.confinement import confine, kernel_confinement
from shared.privileges import drop_privileges, keep_capabilities

__all__ = [
    "Doorbell",
    "ExitWatch",
    "MessageSocket",
    "bind_to_interface",
    "clear_doorbell",
    "confine",
    "create_memory",
    "drop_privileges",
    "file_limit",
    "keep_capabilities",
    "kernel_confinement",
    "message_pair",
    "message_socket",
    "open_doorbell",
    "ring_doorbell",
    "sealed_file",
    "take_any_port",
    "user_exists",
]

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def create_memory(name: str, size: int) -> int:
    """Return a descriptor of `size` bytes, zeroed, to map; pages are taken when first written. Raises OSError."""
    fd = os.memfd_create(f"tunloom-{name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sealed_file(data: bytes) -> int:
    """Return a descriptor from which `data` can be read, and which nobody can change any more. Raises OSError."""
    fd = os.memfd_create("tunloom-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Doorbell(NamedTuple):
    """Wakes one process; both are the same descriptor here."""

    read: int
    write: int

    def close(self) -> None:
        """Close it."""
        os.close(self.read)


def open_doorbell() -> Doorbell:
    """Return a new one. Raises OSError."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    return Doorbell(fd, fd)


def ring_doorbell(fd: int) -> None:
    """Make the other end readable; it needs to be rung once."""
    os.eventfd_write(fd, 1)


def clear_doorbell(fd: int) -> None:
    """Take note: it is readable no more until it is rung again."""
    os.eventfd_read(fd)


class MessageSocket(socket.socket):
    """A connected socket that keeps the boundaries of messages: SOCK_SEQPACKET does so by itself."""

    has_unsent = False
    """Whether a part of a message is still to be sent: call `flush` when it is writable."""
    has_unread = False
    """Whether a message is here that the kernel no longer has: it does not make the socket readable."""

    def flush(self) -> None:
        """Send what is unsent. Raises BlockingIOError, OSError."""


def message_pair() -> tuple[MessageSocket, MessageSocket]:
    """Return two of them, connected."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return message_socket(ours.detach()), message_socket(theirs.detach())


def message_socket(fd: int) -> MessageSocket:
    """Return the one that was inherited as `fd`."""
    return MessageSocket(fileno=fd)


class ExitWatch:
    """Readable when a child process has ended; `fileno` for an event loop. Raises OSError."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)


def bind_to_interface(sock: socket.socket, name: str | int) -> None:
    """Let what the socket sends leave by this interface, of this name or index. Raises OSError."""
    text = socket.if_indextoname(name) if isinstance(name, int) else name
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, text.encode())


_IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h
_WHOLE_RANGE = (
    -0x10000
)  # 0xffff in the upper half, 0 in the lower: what is outside of the machine's own range does not count


def take_any_port(sock: socket.socket) -> None:
    """Let connect(2) take the first port that is free towards the peer.

    By itself it tries all ports of one parity before the others: with half of them in use every connection costs as many
    look-ups as there are ports. Linux before 6.3 goes on doing so.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _WHOLE_RANGE)


def file_limit(hard: int) -> int:
    """Return the most descriptors that a process may be allowed, given its hard limit."""
    return hard


def user_exists(uid: int) -> bool:
    """Whether `uid` exists in this user namespace (it may not in a rootless container; user_namespaces(7))."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= uid < first + count:
            return True
    return False
