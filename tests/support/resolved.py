"""A real systemd-resolved in a namespace, with a message bus, accounts and a /run of its own: the machine's is not touched.

Where the machine has none, it is the one that .ci/setup has unpacked into .venv/debian: Debian's package, once installed,
puts itself into /etc/resolv.conf.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.demo.service import Service
from tests.support.netns import Namespace, wait_until
from tests.support.upstreams import needs

__all__ = ["STUB", "Resolved", "resolved"]

STUB = "127.0.0.53"
"""Where programs ask it."""
USER, UID = "systemd-resolve", 4253
UNPACKED = Path(sys.prefix) / "debian"

_BUS = """<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
_CONFIG = "[Resolve]\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nDNSOverTLS=no\nFallbackDNS=\nCache=no\n"
_START = """
mount -t tmpfs none /run && mkdir -p /run/systemd/resolved.conf.d && cp '{work}/resolved.conf' /run/systemd/resolved.conf.d/
mount --bind '{work}/passwd' /etc/passwd && mount --bind '{work}/group' /etc/group
mount --bind '{work}/empty' /etc/resolv.conf
exec "$@"
"""


@dataclass(frozen=True)
class Resolved:
    """`wrapper`: runs a command that is to find this resolved, its resolvectl first."""

    client: Namespace
    wrapper: Sequence[str]

    def ctl(self, *arguments: str) -> str:
        """What resolvectl prints."""
        return self.client.run(*self.wrapper, "resolvectl", "--no-pager", *arguments)

    def answers(self) -> bool:
        """Whether it is there."""
        command = self.client.command(*self.wrapper, "resolvectl", "status")
        return subprocess.run(command, capture_output=True).returncode == 0


def _find(*places: str) -> Path:
    """Return the first of these files that is there, of the machine or unpacked; without one the test is skipped."""
    for root in (Path("/"), UNPACKED):
        for place in places:
            if (root / place).exists():
                return root / place
    pytest.skip("needs systemd-resolved (.ci/setup test unpacks it)")


@contextmanager
def resolved(client: Namespace, work: Path) -> Iterator[Resolved]:
    """Run it in `client`, without any servers yet."""
    program = _find("usr/lib/systemd/systemd-resolved", "lib/systemd/systemd-resolved")
    ctl = _find("usr/bin/resolvectl")
    address = f"unix:abstract={client.name}"  # of this network namespace alone
    (work / "bus.conf").write_text(_BUS.format(address=address))
    (work / "resolved.conf").write_text(_CONFIG)
    (work / "empty").touch()
    for name, line in (("passwd", f"{USER}:x:{UID}:{UID}::/:/bin/false"), ("group", f"{USER}:x:{UID}:")):
        others = [entry for entry in Path("/etc", name).read_text().splitlines() if not entry.startswith(f"{USER}:")]
        (work / name).write_text("".join(f"{entry}\n" for entry in (*others, line)))
    variables = [f"DBUS_SYSTEM_BUS_ADDRESS={address}", f"PATH={ctl.parent}:{os.environ['PATH']}"]
    libraries = UNPACKED / f"usr/lib/{platform.machine()}-linux-gnu/systemd"
    if UNPACKED in program.parents:
        variables.append(f"LD_LIBRARY_PATH={libraries}")
    made = Resolved(client, ("env", *variables))
    private = ("unshare", "--mount", "sh", "-ec", _START.format(work=work), "sh")
    daemon = [needs("dbus-daemon", "dbus"), "--nofork", "--nopidfile", f"--config-file={work}/bus.conf"]
    with client.entered():
        bus = Service("bus", [*private, *daemon])
    with bus:
        wait_until(lambda: f"@{client.name}" in client.run("ss", "-Hxl"), timeout=60, what="the bus")
        with client.entered():
            service = Service("resolved", [*made.wrapper, *private, str(program)])
        with service:
            wait_until(made.answers, timeout=60, what="systemd-resolved on the bus")
            yield made
