"""The bench's laboratory: the demo's two namespaces, arranged so that a target answers only through the proxy.

    +--- client -----------------------------+             +--- internet ------------------+
    |  load clients, the peer and its tun    |  veth pair  |  SOCKS server 192.0.2.1:1080  |
    |  eth0 192.0.2.2/24                   --+-------------+-  targets on lo: 203.0.113.10 |
    |  default via 192.0.2.254, metric 1000  |             |     (iperf3, HTTP, echo, UDP) |
    +----------------------------------------+             +-------------------------------+

Nobody is 192.0.2.254: its entry in the neighbour table holds an unused MAC address. Peers find a default interface, as
on a real machine, and yet no packet that misses their tun can reach a target and pass for a measurement.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute

from engine.demo import lab as demo
from engine.demo.lab import Namespace
from engine.demo.service import Service

__all__ = ["PROXY_HOST", "PROXY_PORT", "TARGET", "BenchError", "Lab", "tune"]

PROXY_HOST, PROXY_PORT = demo.UPSTREAM_V4, 1080
TARGET = demo.TARGETS_V4[0]

DEAD_END = "192.0.2.254"
DEAD_END_MAC = "02:00:00:00:00:fe"
DEAD_END_METRIC = 1000
"""Above the metric that a peer's route gets, so that the peer's is taken."""

START_TIMEOUT = 20.0
"""Seconds a server or a peer has to start."""
POLL_INTERVAL = 0.02
"""Seconds between two looks at something that is starting."""

_SYSCTLS = {
    # Thousands of short connections a second leave as many ports in TIME_WAIT: let them be taken again after a second.
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/ip_local_port_range": "10000 65001",
}
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp, include/net/tcp_states.h


class BenchError(Exception):
    """Something was not measured; the text says what went wrong."""


class Lab:
    """Two fresh namespaces and a directory for configurations. Everything in it ends with the `with` block.

    client, internet   the namespaces
    directory          private, removed at the end
    """

    def __enter__(self) -> Self:
        """Build the lab. Raises LabError of engine/demo/lab.py."""
        self._lab = demo.Lab(default_routes=False).__enter__()
        try:
            self.client, self.internet = self._lab.client, self._lab.internet
            self.directory = Path(tempfile.mkdtemp(prefix="tunloom-bench-"))
            for namespace in (self.client, self.internet):
                tune(namespace)
            self._route_to_nowhere()
        except BaseException:
            self._lab.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lab.__exit__(kind, error, trace)
        shutil.rmtree(self.directory)

    def _route_to_nowhere(self) -> None:
        with self.client.entered(), IPRoute() as netlink:
            [eth0] = netlink.link_lookup(ifname="eth0")
            netlink.neigh("add", dst=DEAD_END, lladdr=DEAD_END_MAC, ifindex=eth0, state="permanent")
            netlink.route("add", dst="0.0.0.0/0", gateway=DEAD_END, priority=DEAD_END_METRIC)

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file and return its path."""
        path = self.directory / name
        path.write_text(text)
        return path

    def start(self, namespace: Namespace, name: str, command: Sequence[str]) -> Service:
        """Start a server or a peer, which dies with this process even when that is killed. Raises BenchError."""
        try:
            return namespace.start(name, ["setpriv", "--pdeathsig", "KILL", "--", *command])
        except OSError as error:
            raise BenchError(f"{name} cannot be run: {error}") from error

    def run(self, namespace: Namespace, command: Sequence[str], timeout: float) -> str:
        """Run `command` to its end and return what it printed on stdout.

        Raises BenchError with its last words when it fails or takes longer than `timeout` seconds.
        """
        name = Path(command[0]).name
        try:
            done = namespace.run(command, capture_output=True, text=True, timeout=timeout, start_new_session=True)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{name} was not done after {timeout:g} s") from None
        except OSError as error:
            raise BenchError(f"{name} cannot be run: {error}") from error
        if done.returncode != 0:
            raise BenchError(f"{name} failed: {_last_words(done.stderr) or _last_words(done.stdout)}")
        output: str = done.stdout
        return output


def tune(namespace: Namespace) -> None:
    """Prepare a namespace for thousands of short connections a second."""
    with namespace.entered():
        for name, value in _SYSCTLS.items():
            Path("/proc/sys/net", name).write_text(value)


def wait_listening(service: Service, port: int) -> None:
    """Wait until something in the namespace of `service` listens at TCP `port`. Raises BenchError."""
    pattern = re.compile(rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F:]+ {_LISTENING} ", re.MULTILINE)
    tables = [Path(f"/proc/{service.process.pid}/net/{name}") for name in ("tcp", "tcp6")]
    deadline = time.monotonic() + START_TIMEOUT
    while not any(table.exists() and pattern.search(table.read_text()) for table in tables):
        check_running(service)
        if time.monotonic() > deadline:
            raise BenchError(f"{service.name} does not listen at port {port} after {START_TIMEOUT:g} s")
        time.sleep(POLL_INTERVAL)


def check_running(service: Service) -> None:
    """Raise BenchError with the last words of `service` if it has ended."""
    code = service.process.poll()
    if code is not None:
        raise BenchError(f"{service.name} ended with exit code {code}: {_last_words(service.output) or 'no output'}")


def _last_words(output: str) -> str:
    return " / ".join(output.strip().splitlines()[-3:])
