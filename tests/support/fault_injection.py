"""Kills the master, a helper or the guardian at one step of what they do to the network, and looks at what is left.

    with fault_bed() as bed:
        for step in itertools.count(1):
            outcome = bed.inject(SCENARIOS["..."], step)
            if outcome is None: break        # there are no more steps

Each outcome has the seconds until the network was restored and how it differs from before, which must be: in nothing.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.netconf.linux import undo
from engine.netconf.plan import NetworkPlan, build_plan
from tests.support.netns import OTHER_TARGET_V4, PROXY_V4, TARGET_V6, Topology, ip, topology, wait_until
from tests.support.network_master import Master, network_master

__all__ = ["SCENARIOS", "FaultBed", "Outcome", "Scenario", "fault_bed"]

FAULTS = Path(__file__).with_name("faults")
RESTORE_TIMEOUT = 30.0  # seconds
BYPASSED = ("203.0.113.77", "2001:db8::77")
CHANGE_BYPASS = """
import sys
from pathlib import Path
from engine.netconf.bypass import add_bypass, remove_bypass
add_bypass(Path(sys.argv[1]), sys.argv[3:])
remove_bypass(Path(sys.argv[1]), sys.argv[3:])
"""


@dataclass(frozen=True)
class Scenario:
    """Who dies at a step of whom; `play` does it, and returns when everyone who restores the network has done so."""

    title: str
    role: str
    victim: str
    play: Callable[["Trial"], None]
    kill_switch: bool = False
    holds: bool = False
    """The kill switch must be closed afterwards, and all else as before."""


@dataclass
class Outcome:
    """What came of one trial."""

    seconds: float
    """From the kill until the network was restored."""
    differences: list[str] = field(default_factory=list)


@dataclass
class Trial:
    """One run of a scenario."""

    bed: "FaultBed"
    scenario: Scenario
    step: int
    run_dir: Path
    restored_at: float = 0.0

    @property
    def _file(self) -> Path:
        return self.run_dir.with_suffix(".fault")

    def fired_at(self) -> float | None:
        """When the kill happened; None when it did not."""
        try:
            return float(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def env(self) -> dict[str, str]:
        """The environment that makes processes of the scenario's role count their steps."""
        scenario = self.scenario
        fault = {"role": scenario.role, "step": self.step, "victim": scenario.victim, "file": str(self._file)}
        return {**os.environ, "PYTHONPATH": str(FAULTS), "TUNLOOM_FAULT": json.dumps(fault)}

    @contextmanager
    def master(self) -> Iterator[Master]:
        """A master whose guardian watches."""
        with network_master(
            self.bed.net.client, self.run_dir, self.bed.plan(self.scenario), "restored", self.env()
        ) as master:
            master.expect("guarded")
            yield master

    def run(self, *command: str) -> None:
        """Run a command in the namespace, which may be killed."""
        subprocess.run(self.bed.net.client.command(*command), env=self.env(), stdout=subprocess.DEVNULL)

    def restored(self, master: Master) -> None:
        """Wait for the end of all that restores the network."""
        wait_until(lambda: not master.helpers(), RESTORE_TIMEOUT, what="the end of guardian and helpers")
        self.restored_at = time.monotonic()


class FaultBed:
    """Namespaces with a persistent tun, so that routes and addresses do not go by themselves with whoever had it open."""

    def __init__(self, net: Topology, work: Path) -> None:
        self.net = net
        self._work = work
        self._trials = 0
        with net.client.entered():
            Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")
            ip("tuntap", "add", "tun0", "mode", "tun")
        self.before = net.client.snapshot()

    def plan(self, scenario: Scenario) -> NetworkPlan:
        """Some changes of each kind, in both families."""
        return build_plan(
            interface="tun0",
            mtu=1500,
            addresses=("172.19.0.1/30", "fdfe:dcba:9876::1/126"),
            include=("203.0.113.0/24", "198.51.100.0/24", "2001:db8::/32"),
            upstreams=(PROXY_V4,),
            bypass=(OTHER_TARGET_V4, TARGET_V6),
            own_uid=990,
            own_mark=0x2024,
            kill_switch=scenario.kill_switch,
        )

    def inject(self, scenario: Scenario, step: int) -> Outcome | None:
        """Play a scenario with the kill at `step`; None when it has fewer steps. The network is restored in any case."""
        self._trials += 1
        trial = Trial(self, scenario, step, self._work / str(self._trials))
        scenario.play(trial)
        fired_at = trial.fired_at()
        if fired_at is None:
            assert self._differences() == [], "a run without a fault"
            return None
        outcome = Outcome(trial.restored_at - fired_at)
        if scenario.holds:
            outcome.differences += [line for line in self._differences() if not line.startswith("nft:")]
            if "tunloom" not in self.net.client.snapshot()["nft"]:
                outcome.differences.append("the kill switch is open")
        else:
            outcome.differences += self._differences()
        for _ in range(2):  # `engine repair`, and once more: harmless
            with self.net.client.entered():
                undo(trial.run_dir)
            outcome.differences += [f"after a repair: {line}" for line in self._differences()]
        outcome.differences += [f"left: {path.name}" for path in trial.run_dir.iterdir()]
        return outcome

    def routes(self) -> list[Any]:
        """Every route of every table."""
        snapshot = self.net.client.snapshot()
        return [*snapshot["routes v4"], *snapshot["routes v6"]]

    def _differences(self) -> list[str]:
        now = self.net.client.snapshot()
        return [
            f"{what}: {_first_difference(self.before[what], now[what])}"
            for what in now
            if now[what] != self.before[what]
        ]


def _first_difference(before: Any, after: Any) -> str:
    if isinstance(before, list):
        gone, new = [item for item in before if item not in after], [item for item in after if item not in before]
        return f"gone {gone}, new {new}"
    if isinstance(before, dict):
        return str(
            {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}
        )
    return repr(after)


@contextmanager
def fault_bed() -> Iterator[FaultBed]:
    """Make a FaultBed; remove it on the way out."""
    with topology() as net, tempfile.TemporaryDirectory() as work:
        yield FaultBed(net, Path(work))


def _apply(trial: Trial) -> None:
    """The plan is applied, and somebody dies meanwhile; whoever is left stops, or restores what he finds."""
    with trial.master() as master:
        line = master.line()
        if line == "applied":
            master.go_on()
            line = master.line()
        elif line.startswith("failed"):
            line = master.line()
        if trial.scenario.victim != "parent" or trial.fired_at() is None:
            assert line == "restored", line
        trial.restored(master)


def _crash(trial: Trial) -> None:
    """The master is killed; its guardian restores, and dies over it."""
    with trial.master() as master:
        master.expect("applied")
        master.process.kill()
        trial.restored(master)
    with trial.bed.net.client.entered():
        undo(trial.run_dir)
    trial.restored_at = time.monotonic()


def _repair(trial: Trial) -> None:
    """Master and guardian are killed; `engine repair` restores, and dies over it."""
    with trial.master() as master:
        master.expect("applied")
        os.kill(master.process.pid, signal.SIGSTOP)  # or it would start another guardian
        os.kill(master.guardian(), signal.SIGKILL)
        master.process.kill()
        trial.restored(master)
    trial.run(sys.executable, "-P", "-m", "engine.netconf", "undo", "--run-dir", str(trial.run_dir))
    with trial.bed.net.client.entered():
        undo(trial.run_dir)
    trial.restored_at = time.monotonic()


def _stop(trial: Trial) -> None:
    """The master stops; its guardian restores, and dies over it."""
    with trial.master() as master:
        master.expect("applied")
        master.go_on()
        master.expect("restored")
        trial.restored(master)


def _renew(trial: Trial) -> None:
    """The tun was down; the helper that makes its routes again dies over it, and the master is killed after that."""
    with trial.master() as master:
        master.expect("applied")
        routes = trial.bed.routes()
        with trial.bed.net.client.entered():
            ip("link", "set", "tun0", "down")
            ip("link", "set", "tun0", "up")
        wait_until(lambda: trial.fired_at() is not None or trial.bed.routes() == routes, what="the routes made again")
        master.process.kill()
        trial.restored(master)


def _bypass(trial: Trial) -> None:
    """A host is let out beside the tun and led into it again; the one that does it dies over it, and then the master."""
    with trial.master() as master:
        master.expect("applied")
        trial.run(sys.executable, "-P", "-c", CHANGE_BYPASS, str(trial.run_dir), "--bypass", *BYPASSED)
        master.process.kill()
        trial.restored(master)


SCENARIOS = {
    scenario.title: scenario
    for scenario in (
        Scenario("master killed while its helper applies", "apply", "parent", _apply),
        Scenario("master killed, kill switch", "apply", "parent", _apply, kill_switch=True, holds=True),
        Scenario("helper killed while it applies", "apply", "self", _apply),
        Scenario("helper killed, kill switch", "apply", "self", _apply, kill_switch=True),
        Scenario("guardian killed while the helper applies", "apply", "guardian", _apply),
        Scenario("guardian killed while it restores after a crash", "guardian", "self", _crash),
        Scenario("guardian killed while it restores at a stop", "guardian", "self", _stop, kill_switch=True),
        Scenario("repair killed, after master and guardian", "undo", "self", _repair, kill_switch=True),
        Scenario("helper killed while it renews", "renew", "self", _renew),
        Scenario("master killed while its helper renews", "renew", "parent", _renew),
        Scenario("killed while a host is bypassed", "bypass", "self", _bypass),
    )
}
