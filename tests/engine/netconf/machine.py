"""A machine to configure: the client of the test topology with an open tun, and the helper processes run inside it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.netconf.plan import NetworkPlan, build_plan
from engine.tun import open_tun
from tests.support.netns import OTHER_TARGET_V4, PROXY_V4, Namespace

UID, MARK = 990, 0x2024
TUN_V4, TUN_V6 = "172.19.0.1", "fdfe:dcba:9876::1"
UPSTREAM = OTHER_TARGET_V4  # behind the default route: it would be captured if it were not excluded


def plan(**changed: Any) -> NetworkPlan:
    """The plan of an ordinary run."""
    settings: dict[str, Any] = {
        "interface": "tun0",
        "mtu": 1500,
        "addresses": (f"{TUN_V4}/30", f"{TUN_V6}/126"),
        "upstreams": (PROXY_V4, UPSTREAM),
        "own_uid": UID,
        "own_mark": MARK,
    }
    return build_plan(**settings | changed)


@contextmanager
def tun(client: Namespace, name: str = "tun0") -> Iterator[None]:
    """Hold a tun open, as the master does."""
    with client.entered():
        device = open_tun(name, mtu=1500)
    try:
        yield
    finally:
        device.close()


@dataclass(frozen=True)
class Helper:
    """Runs `python -m engine.netconf` inside."""

    client: Namespace
    run_dir: Path

    def apply(self, wanted: NetworkPlan, *wrapper: str) -> subprocess.CompletedProcess[str]:
        return self._run(*wrapper, *self._command("apply"), input=msgspec.json.encode(wanted).decode())

    def undo(self) -> subprocess.CompletedProcess[str]:
        return self._run(*self._command("undo"), input="")

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        return self._run(*self._command(name), input="")

    def _command(self, name: str) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", "engine.netconf", name, "--run-dir", str(self.run_dir))

    def _run(self, *arguments: str, input: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.client.command(*arguments), input=input, capture_output=True, text=True)

    def left_in_run_dir(self) -> list[str]:
        return [path.name for path in self.run_dir.iterdir()]
