"""What a worker, or the HTTP process, gives up before it reads its first packet or request (Linux).

It becomes an unprivileged user of its own, can gain nothing back (no_new_privs), and dies with the master.
"""

import ctypes
import os
import signal

__all__ = ["drop_privileges"]

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # include/uapi/linux/prctl.h


def drop_privileges(uid: int | None) -> None:
    """Become `uid` (None: stay who we are). Raises OSError when the kernel refuses."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    # After setresuid, which clears it.
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    unused = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), unused, unused, unused) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
