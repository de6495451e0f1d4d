"""Entering a network namespace that `ip netns add` made."""

import ctypes
import os
from pathlib import Path

__all__ = ["NetnsError", "enter_netns"]

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


class NetnsError(Exception):
    """The namespace cannot be entered; the text is one sentence."""


def enter_netns(name: str) -> None:
    """Move this process, and what it starts from now on, into the namespace `name`. Raises NetnsError.

    Only the network changes: files, among them RUN_DIR, stay as they are.
    """
    try:
        fd = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetnsError(
            f"--netns: {NETNS_DIR / name} cannot be opened ({error.strerror}); `ip netns list` names those there are"
        ) from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns comes with Python 3.12 only
        if libc.setns(fd, CLONE_NEWNET) != 0:
            raise NetnsError(f"--netns: {name} cannot be entered ({os.strerror(ctypes.get_errno())}); it takes root")
    finally:
        os.close(fd)
