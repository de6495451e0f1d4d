"""Every system call and program of the macOS part, none of which does more than that; tests put a kernel in its place.

Variadic C functions (ioctl, fcntl, open) are never called by ctypes: on arm64 Apple passes variadic arguments on the stack.
Those that are called here take a fixed number. Errors are OSError with the kernel's errno.
"""

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from fcntl import ioctl as _ioctl
from typing import Any

from engine.darwin.interface import SYSPROTO_CONTROL
from engine.darwin.sockaddr import AF_INET, AF_INET6, AF_ROUTE, AF_SYSTEM

__all__ = [
    "batch_receiver",
    "connect_control",
    "control_socket",
    "get_option",
    "inet_socket",
    "interface_index",
    "interface_name",
    "ioctl",
    "monitor_socket",
    "process_ids",
    "process_info",
    "process_path",
    "route_socket",
    "run",
    "send_route",
    "set_option",
    "sysctl",
    "sysctl_by_name",
]

ROUTE_BUFFER = 512 * 1024  # bytes; what overflows the default of 8 KiB is lost without a word
DUMP_SLACK = 1.25  # tables grow between asking for their size and reading them
DUMP_TRIES = 8
TOOL_TIMEOUT = 10.0  # seconds
PATH_MAX = 4096  # PROC_PIDPATHINFO_MAXSIZE


def control_socket() -> socket.socket:
    """Return a socket for kernel controls. They take datagrams only; another type says EPROTOTYPE at connect."""
    return socket.socket(AF_SYSTEM, socket.SOCK_DGRAM, SYSPROTO_CONTROL)


def connect_control(sock: socket.socket, control_id: int, unit: int) -> None:
    """Connect it: for utun's control, this makes the interface."""
    sock.connect((control_id, unit))


def get_option(sock: socket.socket, level: int, option: int, size: int) -> bytes:
    """getsockopt(2)."""
    return sock.getsockopt(level, option, size)


def set_option(sock: socket.socket, level: int, option: int, value: bytes) -> None:
    """setsockopt(2)."""
    sock.setsockopt(level, option, value)


def inet_socket(version: int) -> socket.socket:
    """Return the socket by which an interface gets its IPv4 (or IPv6) addresses."""
    return socket.socket(AF_INET if version == 4 else AF_INET6, socket.SOCK_DGRAM)


def ioctl(sock: socket.socket, request: int, argument: bytes) -> bytes:
    """ioctl(2) with a struct of at most 1024 bytes; returns it as the kernel leaves it."""
    return _ioctl(sock.fileno(), request, argument)


def interface_index(name: str) -> int:
    """if_nametoindex(3)."""
    return socket.if_nametoindex(name)


def interface_name(index: int) -> str:
    """if_indextoname(3)."""
    return socket.if_indextoname(index)


def route_socket() -> socket.socket:
    """Return a routing socket, which may write if it was opened by root, with room for a storm of messages."""
    sock = socket.socket(AF_ROUTE, socket.SOCK_RAW, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROUTE_BUFFER)
    except OSError:
        pass  # more than kern.ipc.maxsockbuf
    return sock


def monitor_socket() -> socket.socket:
    """Return a routing socket that only listens, and does not block."""
    sock = route_socket()
    sock.setblocking(False)
    return sock


def send_route(sock: socket.socket, message: bytes) -> None:
    """Write one routing message; the kernel's verdict comes as the error of the write itself."""
    sock.send(message)


def sysctl(*name: int) -> bytes:
    """sysctl(3) by number: a table, whole."""
    mib = (ctypes.c_int * len(name))(*name)
    return _whole(
        lambda buffer, size: _libc().sysctl(mib, len(name), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    )


def sysctl_by_name(name: str) -> bytes:
    """sysctlbyname(3)."""
    return _whole(
        lambda buffer, size: _libc().sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    )


def _whole(read: Callable[[Any, Any], int]) -> bytes:
    """Ask for the size, then read with some slack; again while the table has outgrown it."""
    for _ in range(DUMP_TRIES):
        size = ctypes.c_size_t(0)
        _check(read(None, size))
        size = ctypes.c_size_t(int(size.value * DUMP_SLACK) + 512)
        buffer = ctypes.create_string_buffer(size.value)
        if read(buffer, size) == 0:
            return buffer.raw[: size.value]
        if ctypes.get_errno() != 12:  # ENOMEM, of Darwin
            _check(-1)
    raise OSError(12, "the table grows faster than it can be read")


def process_path(pid: int) -> str:
    """proc_pidpath: the executable's path."""
    buffer = ctypes.create_string_buffer(PATH_MAX)
    length = _libc().proc_pidpath(pid, buffer, PATH_MAX)
    _check(length if length > 0 else -1)
    return os.fsdecode(buffer.raw[:length])


def process_info(pid: int, flavor: int, size: int) -> bytes:
    """proc_pidinfo: a struct of `size` bytes."""
    buffer = ctypes.create_string_buffer(size)
    length = _libc().proc_pidinfo(pid, flavor, ctypes.c_uint64(0), buffer, size)
    _check(0 if length == size else -1)
    return buffer.raw


def process_ids(kind: int, of: int) -> bytes:
    """proc_listpids: an array of 32-bit numbers; room is made for some that are started meanwhile."""
    size = _libc().proc_listpids(kind, of, None, 0)
    _check(size if size > 0 else -1)
    buffer = ctypes.create_string_buffer(size + 256)
    length = _libc().proc_listpids(kind, of, buffer, len(buffer))
    _check(length if length > 0 else -1)
    return buffer.raw[:length]


def batch_receiver() -> Callable[[int, int, int], int] | None:
    """Return recvmsg_x(fd, address of the msghdr_x, their number), which waits for nothing; None where there is none.

    It is private, though exported by libSystem, and gives the number of datagrams.
    """
    function = getattr(_libc(), "recvmsg_x", None)
    if function is None:
        return None
    function.restype = ctypes.c_ssize_t
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

    def receive(fd: int, messages: int, count: int) -> int:
        got: int = function(fd, messages, count, MSG_DONTWAIT)
        if got < 0:
            _check(-1)
        return got

    return receive


MSG_DONTWAIT = 0x80


def run(command: Sequence[str]) -> str:
    """Run a program; return what it prints. Raises OSError when it cannot be run or fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_TIMEOUT, cwd="/")
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} gave no answer in {TOOL_TIMEOUT:g} seconds") from None
    if done.returncode:
        reason = (done.stderr or done.stdout).decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise OSError(f"{' '.join(command)}: {reason}")
    return done.stdout.decode(errors="replace")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)  # dlopen of what is there already


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
