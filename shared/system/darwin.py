"""macOS: POSIX shared memory, pipes, stream sockets, kqueue. See shared/system/linux.py for the contracts."""

import _posixshmem  # of the standard library: what multiprocessing.shared_memory is made of
import ctypes
import errno
import os
import secrets
import select
import socket
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shared.confinement import Confinement
from shared.system.stream import StreamMessages

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

SOCKET_BUFFER = 256 * 1024
"""Bytes that wait on a message socket; the default of 8 KiB is less than one message."""
IP_BOUND_IF, IPV6_BOUND_IF = 25, 125  # netinet/in.h, netinet6/in6.h
OPEN_MAX = 10240  # sys/syslimits.h: what every kernel lets a process have


def create_memory(name: str, size: int) -> int:
    """See linux."""
    # A file would be written to disk now and then. The name is there for a moment; 31 bytes are the most (PSHMNAMLEN).
    path = f"/tunloom-{name[:6]}-{secrets.token_hex(6)}"
    fd: int = _posixshmem.shm_open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    try:
        _posixshmem.shm_unlink(path)
        os.set_inheritable(fd, False)
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sealed_file(data: bytes) -> int:
    """See linux. A file without a name, whose one descriptor only reads."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return os.open(file.name, os.O_RDONLY | os.O_CLOEXEC)


class Doorbell(NamedTuple):
    """See linux. Two ends of a pipe."""

    read: int
    write: int

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read)
        os.close(self.write)


def open_doorbell() -> Doorbell:
    """See linux."""
    ends = Doorbell(*os.pipe())
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


def ring_doorbell(fd: int) -> None:
    """See linux."""
    try:
        os.write(fd, b"\0")
    except BlockingIOError:
        pass  # it has been rung often enough


def clear_doorbell(fd: int) -> None:
    """See linux."""
    os.read(fd, 4096)


MessageSocket = StreamMessages


def message_pair() -> tuple[MessageSocket, MessageSocket]:
    """See linux."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        for option in socket.SO_SNDBUF, socket.SO_RCVBUF:
            end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    ours, theirs = (MessageSocket(end.family, end.type, end.proto, fileno=end.detach()) for end in ends)
    return ours, theirs


def message_socket(fd: int) -> MessageSocket:
    """See linux."""
    return MessageSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)


class ExitWatch:
    """See linux. A kqueue can be waited for like any descriptor; it is not inherited."""

    def __init__(self, pid: int) -> None:
        queue: Any = select
        self._queue = queue.kqueue()
        event = queue.kevent(
            pid, filter=queue.KQ_FILTER_PROC, flags=queue.KQ_EV_ADD | queue.KQ_EV_ONESHOT, fflags=queue.KQ_NOTE_EXIT
        )
        self._ended: Doorbell | None = None
        try:
            self._queue.control([event], 0)
        except ProcessLookupError:
            # It has ended already, and is a zombie that nobody has waited for: to the kqueue there is no such process.
            self._ended = open_doorbell()
            ring_doorbell(self._ended.write)
        except BaseException:
            self._queue.close()
            raise

    def fileno(self) -> int:
        """The descriptor."""
        fd: int = self._ended.read if self._ended is not None else self._queue.fileno()
        return fd

    def close(self) -> None:
        """Watch no more."""
        self._queue.close()
        if self._ended is not None:
            self._ended.close()


def bind_to_interface(sock: socket.socket, name: str | int) -> None:
    """See linux. The interface may be given by its index, too. Raises OSError when there is none."""
    index = name if isinstance(name, int) else socket.if_nametoindex(name)
    if not index:
        raise OSError(errno.ENETUNREACH, "the machine is in no network of this family")
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_BOUND_IF, index)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_BOUND_IF, index)


def take_any_port(sock: socket.socket) -> None:
    """See linux. The kernel chooses as it likes."""


def drop_privileges(uid: int | None, *, keep: Collection[int] = ()) -> None:
    """Become `uid` for good (None: stay who we are). Raises OSError when the kernel refuses.

    There are no capabilities to keep. When the master dies its end of the control channel closes, and whoever reads
    the other ends by itself: here nothing kills it.
    """
    del keep
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)  # of root, these set the real, effective and saved ones
        os.setuid(uid)


def kernel_confinement() -> Confinement:
    """See shared/confinement.py."""
    return Confinement(0, False, ("macOS has neither Landlock nor seccomp: workers are confined by their user alone",))


def confine(readable: Iterable[Path], *, sockets: bool) -> None:
    """See shared/confinement.py. There is nothing to confine with: sandbox_init(3) is deprecated, its rules not documented."""
    del readable, sockets


def keep_capabilities(keep: Collection[int]) -> None:
    """See linux. There are none to give up: root is root."""
    del keep


def file_limit(hard: int) -> int:
    """See linux. The hard limit is often infinite, which is more than the kernel lets anybody have."""
    most = _files_per_process()
    return min(hard, most) if hard >= 0 else most


def _files_per_process() -> int:
    """kern.maxfilesperproc, beyond which setrlimit says EINVAL."""
    value = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    try:
        answer = ctypes.CDLL(None).sysctlbyname
    except AttributeError:
        return OPEN_MAX
    failed = answer(b"kern.maxfilesperproc", ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return OPEN_MAX if failed else value.value


def user_exists(uid: int) -> bool:
    """See linux. Any number is a user; it needs no account."""
    del uid
    return True
