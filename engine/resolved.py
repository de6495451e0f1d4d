"""systemd-resolved, where it runs: told to ask the tun, and to forget it again.

It sends to the servers of a link through that link, past all policy routes, so that its questions would not be captured.
What it is told belongs to the tun's link and is gone with it, however the engine ends: nothing is left to be repaired.
"""

import asyncio
import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["announce", "revert"]

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds for resolvectl(1)
PROC = Path("/proc")
_NAME = "systemd-resolve"  # comm has 15 characters (proc_pid_comm(5))
EVERYTHING = "~."
"""The domain of all names, for routing alone (resolvectl(1))."""


async def announce(interface: str, servers: Sequence[str], *, proxy_is_here: bool = False) -> bool:
    """Have resolved ask `servers` at the tun for every name. False: it does not run here, or refuses, which is logged.

    A proxy on this machine asks resolved for the name of its own server: if that question came to us, it would wait for the
    proxy, and the proxy for it. Then resolved is left alone.
    """
    if not servers or shutil.which("resolvectl") is None or not _runs_here():
        return False
    if proxy_is_here:
        log.warning(
            "systemd-resolved is left as it is, since the proxy on this machine may need it: what programs ask at 127.0.0.53 "
            "may leave past the proxy"
        )
        return False
    for command in (
        ("dns", interface, *servers),
        ("domain", interface, EVERYTHING),
        ("default-route", interface, "yes"),
    ):
        if not await _tell(*command):
            await revert(interface)
            return False
    log.info("systemd-resolved asks %s at %s", ", ".join(servers), interface)
    return True


async def revert(interface: str) -> None:
    """Have resolved forget the tun."""
    await _tell("revert", interface)


async def _tell(*arguments: str) -> bool:
    def run() -> str | None:
        try:
            done = subprocess.run(
                ("resolvectl", *arguments), capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"

    problem = await asyncio.to_thread(run)
    if problem is not None:
        log.warning("systemd-resolved was not told `%s`: %s", " ".join(arguments), problem)
    return problem is None


def _runs_here() -> bool:
    """Whether it runs in our network namespace: links of other namespaces are not its business."""
    ours = (PROC / "self/ns/net").stat().st_ino
    for comm in PROC.glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == _NAME and (comm.parent / "ns/net").stat().st_ino == ours:
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False
