"""What processes give up (Linux; capabilities(7)).

A worker, or the HTTP process, becomes an unprivileged user of its own before it reads its first packet or request, can gain
nothing back (no_new_privs), and dies with the master. Master and guardian stay root, with few capabilities.
"""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Collection

__all__ = [
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
    "drop_privileges",
    "keep_capabilities",
    "wait_until_alone",
]

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 8, 23, 24, 38
# include/uapi/linux/capability.h
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 1, 2, 5, 6, 7, 8
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_NICE, CAP_SYS_RESOURCE = 10, 12, 19, 23, 24
THREADS_TIMEOUT = 10.0  # seconds
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


def keep_capabilities(keep: Collection[int]) -> None:
    """Give up all capabilities but these for good, also for what is executed from now on. Raises OSError.

    Of those that we have not, none is gained. They belong to a thread: call it while there is but one. Those that begin later
    inherit what it has.
    """
    wait_until_alone()
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    if libc.capget(ctypes.byref(header), data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capget: {os.strerror(code)}")
    # A program that root executes has all that the bounding set holds. Lowering that takes CAP_SETPCAP, which a container
    # may have kept from us: then no_new_privs alone sees to it.
    if data[0].effective >> CAP_SETPCAP & 1:
        number = 0
        while (present := libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(number))) >= 0:
            if present and number not in keep:
                _prctl(libc, PR_CAPBSET_DROP, number)
            number += 1
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    _set_capabilities(libc, data[0].permitted & sum(1 << capability for capability in set(keep)))


def wait_until_alone() -> None:
    """A thread that was joined may still be about to end. Raises OSError when others go on: they would keep what they have."""
    deadline = time.monotonic() + THREADS_TIMEOUT
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "other threads are running")
        time.sleep(0.001)


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
