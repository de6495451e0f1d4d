"""Landlock (landlock(7)): a process gives up, for itself and its children, what it does not need of files, TCP and others.

There is no kept library for it in Python; it is three system calls. Kernels since 5.13 have it, if they are started with it.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["landlock_abi", "restrict_files"]

# The same numbers on every architecture (include/uapi/asm-generic/unistd.h)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
# include/uapi/linux/landlock.h
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""ABI -> all rights about files that it knows: read, write, execute, make, remove; move (2), truncate (3), ioctl (5)."""
_BIND_TCP, _CONNECT_TCP = 1, 2  # since ABI 4
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2  # since ABI 6


class _RulesetAttribute(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneathAttribute(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


_libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """Return the version of Landlock that this kernel has. Raises OSError when it has none (ENOSYS, EOPNOTSUPP)."""
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))


def restrict_files(readable: Iterable[Path], *, connect: bool) -> None:
    """From now on only read, and only these files, and what lies below these directories; nothing else by a path.

    What is open already stays usable. As far as the kernel knows it: no TCP port is bound (ABI 4), nor, without `connect`, a
    TCP connection made; signals and abstract Unix sockets of others are out of reach (6). A path that cannot be opened is passed
    over: it cannot be read in any case. no_new_privs must be set, and there be one thread. Raises OSError.
    """
    abi = landlock_abi()
    attribute = _RulesetAttribute(_FILES[min(abi, max(_FILES))], 0, 0)
    size = 8
    if abi >= 4:
        attribute.network = _BIND_TCP | (0 if connect else _CONNECT_TCP)
        size = 16
    if abi >= 6:
        attribute.scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL
        size = 24
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attribute), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in readable:
            _allow(ruleset, path)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
        attribute = _PathBeneathAttribute(rights, fd)
        kind, flags = ctypes.c_int(_RULE_PATH_BENEATH), ctypes.c_uint32(0)
        _call(_ADD_RULE, ctypes.c_int(ruleset), kind, ctypes.byref(attribute), flags)
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "landlock")
    return result
