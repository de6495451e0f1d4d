"""What a worker, or the HTTP process, gives up before it reads its first packet or request (Linux).

It becomes an unprivileged user of its own, can gain nothing back (no_new_privs), and dies with the master.
"""

import ctypes
import os
import signal
from collections.abc import Collection

__all__ = ["CAP_NET_ADMIN", "drop_privileges"]

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 8, 38  # include/uapi/linux/prctl.h
CAP_NET_ADMIN = 12  # include/uapi/linux/capability.h; SO_MARK asks for it (socket(7))
_CAPABILITY_VERSION_3 = 0x20080522


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_privileges(uid: int | None, *, keep: Collection[int] = ()) -> None:
    """Become `uid` (None: stay who we are) with none but these capabilities. Raises OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if uid is not None:
        if keep:
            _prctl(libc, PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if keep:
            _set_capabilities(libc, sum(1 << capability for capability in keep))
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    # After setresuid, which clears it.
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    unused = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), unused, unused, unused) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def _set_capabilities(libc: ctypes.CDLL, mask: int) -> None:
    """Have these capabilities alone, now and ever (capset(2))."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    data[0].effective = data[0].permitted = mask
    if libc.capset(ctypes.byref(header), data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")
