"""Kills a process at the Nth step of what an `engine.netconf` process does to the journal and the network.

Put this directory on PYTHONPATH and set TUNLOOM_FAULT to a JSON object; no line of the product knows of it.

    role    which process counts its steps: apply, renew, undo, guardian, or bypass
    step    the one at which to kill, from 1 on
    victim  self; parent: the master; guardian
    file    written right before the kill: the time (monotonic, seconds) as text

Steps, counted once the journal is locked: before and after each write, fsync, truncation, renaming and removal of a file;
after each change of the network was made or taken back.
"""

import fcntl
import json
import os
import posix
import signal
import sys
import time
from types import FrameType
from typing import Any

CALLS = {posix.write, posix.fsync, posix.ftruncate, posix.rename, posix.unlink}
RETURNS = {
    *("Netlink.make", "Netlink.revert", "Netlink.make_if_missing", "Netlink.close_kill_switch"),
    *("ThrowRoutes.make", "ThrowRoutes.remove", "admit", "dismiss"),
}


def role() -> str:
    """What this process is for."""
    arguments = sys.orig_argv
    if "engine.netconf.guardian" in arguments:
        return "guardian"
    if "engine.netconf" in arguments:
        return arguments[arguments.index("engine.netconf") + 1]
    return "bypass" if "--bypass" in arguments else "other"


class Fault:
    """The profile function of this process (sys.setprofile)."""

    def __init__(self, step: int, victim: str, file: str) -> None:
        self.left = step
        self.victim = victim
        self.file = file
        self.armed = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.armed:
            self.armed = event == "c_return" and argument is fcntl.flock
        elif event in ("c_call", "c_return"):
            if argument in CALLS:
                self.count()
        elif event == "return" and frame.f_code.co_qualname in RETURNS:
            self.count()

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            victim = self.pid()
            with open(self.file, "w") as file:
                file.write(str(time.monotonic()))
            os.kill(victim, signal.SIGKILL)

    def pid(self) -> int:
        if self.victim == "self":
            return os.getpid()
        master = os.getppid()
        if self.victim == "parent":
            return master
        with open(f"/proc/{master}/task/{master}/children") as file:
            children = map(int, file.read().split())
        return next(pid for pid in children if b"engine.netconf.guardian" in open(f"/proc/{pid}/cmdline", "rb").read())


if "TUNLOOM_FAULT" in os.environ:
    fault = json.loads(os.environ["TUNLOOM_FAULT"])
    if fault["role"] == role():
        sys.setprofile(Fault(fault["step"], fault["victim"], fault["file"]))
