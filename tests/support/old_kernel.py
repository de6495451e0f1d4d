"""`python -m tests.support.old_kernel CMD ...`: runs a command as on a kernel without Landlock: the call answers ENOSYS.

A filter of system calls, which is inherited.
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # include/uapi/linux/prctl.h, seccomp.h
LANDLOCK_CREATE_RULESET = 444  # include/uapi/asm-generic/unistd.h
FILTER = (
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 0, 1, LANDLOCK_CREATE_RULESET),
    (0x06, 0, 0, 0x00050000 | errno.ENOSYS),  # SECCOMP_RET_ERRNO
    (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forget_landlock() -> None:
    """Be on such a kernel from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(FILTER), b"".join(struct.pack("=HBBI", *line) for line in FILTER))
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    mode, unused = ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_ulong(0)
    assert libc.prctl(PR_SET_SECCOMP, mode, ctypes.byref(program), unused, unused) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    forget_landlock()
    os.execvp(sys.argv[1], sys.argv[1:])
