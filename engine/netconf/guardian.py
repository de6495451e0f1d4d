"""`python -m engine.netconf.guardian --run-dir DIR --fd N`: restores the network when the master is gone.

The master starts it before the first change and holds the other end of the pipe N, in which each byte is a message: PING
is answered at once; UNDO means that the master stops, HOLD that it fails, and end of file that it is gone, in any way. All
three take the same path, so a crash is undone as well as a clean stop; but only the latter opens a kill switch.

It imports next to nothing until then: it waits for days, and pyroute2 alone would double its size.
"""

import os
import signal
import sys

__all__ = ["HOLD", "PING", "UNDO", "main"]

PING, UNDO, HOLD = b"p", b"u", b"h"
OOM_SCORE_ADJ_MIN = "-1000"  # include/uapi/linux/oom.h


def main(arguments: list[str]) -> int:
    """Wait, restore, tell; return the exit code."""
    match arguments:
        case ["--run-dir", run_dir, "--fd", number] if number.isdecimal():
            pass
        case _:
            print("usage: python -m engine.netconf.guardian --run-dir DIR --fd N", file=sys.stderr)
            return 2
    # Whoever stops the engine signals its whole group, or everything in its cgroup; the network is restored after that.
    for number_of_signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_of_signal, signal.SIG_IGN)
    run_dir = os.path.abspath(run_dir)
    _be_spared()
    _be_served_first()
    _keep_rights(run_dir)
    os.chdir("/")  # to be in no one's way when a file system is unmounted
    _write(1, "ready")
    # Blocks until it is told, or end of file. Byte by byte: what a guardian that hung has not read is left to this one.
    while (told := os.read(int(number), 1)) == PING:
        _write(1, "pong")
    hold = told != UNDO
    problem, held = _restore(run_dir, hold)
    if not _write(1, problem or ("held" if held else "done")):  # the master cannot hear it any more: tell the user
        if problem:
            remedy = f"{problem} Run `engine repair`."
        elif held:
            remedy = "the kill switch lets nothing out until `engine start`, or opens with `engine repair`."
        else:
            remedy = "the network is as it was before."
        _write(2, f"engine: the master is gone; {remedy}")
    return 1 if problem else 0


def _be_spared() -> None:
    """Ask the kernel to kill any other process first when memory runs out (proc_pid_oom_score_adj(5))."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(OOM_SCORE_ADJ_MIN)
    except OSError:
        pass  # without CAP_SYS_RESOURCE we are as likely as others; at 10 MB not very


def _be_served_first() -> None:
    """Ask to run before all that is not real-time (sched(7)): a machine without network waits for us, and may be at its limit."""
    if not hasattr(os, "sched_setscheduler"):
        return  # macOS
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        pass  # not permitted here: it takes its turn with the others


def _keep_rights(run_dir: str) -> None:
    from pathlib import Path

    from engine.rights import GUARDIAN, RightsError, keep_rights

    try:
        keep_rights(GUARDIAN, [Path(run_dir)])
    except RightsError as error:  # the network is worth more
        _write(2, f"engine: the guardian: {error}")


def _restore(run_dir: str, hold: bool) -> tuple[str, bool]:
    """Undo the journal; return a sentence on what went wrong, empty when all is well, and whether a kill switch holds."""
    from pathlib import Path

    from engine.netconf import NetworkError, changes
    from engine.netconf.journal import has_journal

    try:
        changes().undo(Path(run_dir), hold=hold)
    except NetworkError as error:
        return str(error), False
    return "", has_journal(Path(run_dir))


def _write(fd: int, line: str) -> bool:
    """Write one line; False when nobody reads it."""
    try:
        os.write(fd, line.encode() + b"\n")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
