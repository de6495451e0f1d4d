"""A master that has a tun, a guardian and a network, and nothing else: what the guardian and the journal can do to it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.netconf.plan import NetworkPlan
from tests.support.netns import Namespace

__all__ = ["Master", "command_line", "network_master", "pids"]

_SCRIPT = """
import asyncio, sys
from pathlib import Path
import msgspec, uvloop
from engine.netconf import Network, NetworkError
from engine.netconf.plan import NetworkPlan
from engine.tun import open_tun

async def main() -> None:
    run_dir, plan, last_step = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=NetworkPlan), sys.argv[3]
    tun = open_tun(plan.interface, mtu=plan.mtu)
    network = Network(run_dir)
    await network.start_guardian()
    print("guarded", flush=True)
    if last_step == "guarded":
        await asyncio.Event().wait()
    try:
        await network.apply(plan)
    except NetworkError as error:
        print(f"failed: {error}", flush=True)
    else:
        print("applied", flush=True)
        if last_step == "applied":
            await asyncio.Event().wait()
        await asyncio.to_thread(sys.stdin.readline)
    await network.restore()
    print("restored", flush=True)

uvloop.run(main())
"""


class Master:
    """Such a process, in a session of its own."""

    def __init__(self, process: subprocess.Popen[str], run_dir: Path) -> None:
        self.process = process
        self.run_dir = run_dir

    def line(self) -> str:
        """Return its next line; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def expect(self, line: str) -> None:
        """Its next line must be this one."""
        assert self.line() == line

    def go_on(self) -> None:
        """Let it restore the network, and end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def helpers(self) -> list[int]:
        """Pids of the guardian and of helpers at work."""
        mark = b"--run-dir\0" + os.fsencode(self.run_dir) + b"\0"
        return [pid for pid in pids() if mark in command_line(pid)]

    def guardians(self) -> list[int]:
        """Pids of guardians; one but for the moments in which it is replaced."""
        return [pid for pid in self.helpers() if b"engine.netconf.guardian" in command_line(pid)]

    def guardian(self) -> int:
        """Pid of the guardian."""
        (pid,) = self.guardians()
        return pid

    def helper(self) -> int:
        """Pid of the process that applies the plan."""
        (pid,) = (pid for pid in self.helpers() if b"\0apply\0" in command_line(pid))
        return pid

    def changes(self) -> int:
        """How many lines the journal has now."""
        try:
            return (self.run_dir / "network.journal").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


@contextmanager
def network_master(
    client: Namespace, run_dir: Path, plan: NetworkPlan, last_step: str, env: Mapping[str, str] | None = None
) -> Iterator[Master]:
    """Start one in `client`; it goes on until `last_step`: "guarded", "applied", or "restored" (told by Master.go_on)."""
    arguments = (sys.executable, "-P", "-c", _SCRIPT, str(run_dir), msgspec.json.encode(plan).decode(), last_step)
    with client.process(
        *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=env
    ) as process:
        yield Master(process, run_dir)  # type: ignore[arg-type]


def pids() -> list[int]:
    """All processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_line(pid: int) -> bytes:
    """The arguments of a process, each with a zero; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
