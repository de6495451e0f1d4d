"""The demo's two namespaces with everything a load test needs: targets, SOCKS servers, the engine.

    +--- client ---------------------------+            +--- internet ------------------------------+
    |  locust, the engine and its tun,     | veth pair  |  SOCKS servers 192.0.2.1:1080             |
    |  metrics at 127.0.0.1:9464           +------------+  targets 203.0.113.10 (loadtests/targets) |
    +--------------------------------------+            +-------------------------------------------+

The client knows no other way to the targets, so what arrives there has gone through the engine.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.demo.lab import TARGETS_V4, UPSTREAM_V4, Lab, Namespace
from engine.demo.service import Service
from loadtests.bench.lab import tune

__all__ = ["METRICS_PORT", "TARGET", "LoadLab", "load_lab"]

ROOT = Path(__file__).parents[1]
TARGET = TARGETS_V4[0]
SOCKS_PORT = 1080
METRICS_PORT = 9464
START_TIMEOUT = 30.0  # seconds
ANSWER_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class LoadLab:
    """What runs. `run_dir` is the engine's."""

    client: Namespace
    engine: Service
    run_dir: Path

    def get(self, path: str) -> bytes:
        """Ask the engine over HTTP; may be called in any thread. Raises OSError, and OSError for an answer that is not 200."""
        connection = HTTPConnection("127.0.0.1", METRICS_PORT, timeout=ANSWER_TIMEOUT)
        try:
            with self.client.entered():
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status} {answer.reason}")
        return body

    def run(self, command: list[str]) -> int:
        """Run a command in the client's namespace, from the root of the repository; return its exit code."""
        return self.client.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode


@contextmanager
def load_lab(*, workers: int, socks_servers: int, engine_options: tuple[str, ...] = ()) -> Iterator[LoadLab]:
    """Bring everything up; all of it ends with the block. Raises LabError, ServiceError."""
    _raise_file_limit()
    python = [sys.executable, "-m"]
    with ExitStack() as undo:
        lab = undo.enter_context(Lab(default_routes=False))
        for namespace in (lab.client, lab.internet):
            tune(namespace)
        run_dir = Path(undo.enter_context(TemporaryDirectory(prefix="tunloom-load-")))
        services = [lab.internet.start("targets", [*python, "loadtests.targets", *lab.targets])]
        undo.enter_context(services[0])
        listen = ["--listen", f"{UPSTREAM_V4}:{SOCKS_PORT}", "--reuse-port"]
        for number in range(socks_servers):
            command = [*python, "engine.demo.socks_server", *listen]
            services.append(undo.enter_context(lab.internet.start(f"SOCKS server {number}", command)))
        for service in services:
            service.wait_for("listening", START_TIMEOUT)
        command = [*python, "engine", "start", "--proxy", f"socks5://{UPSTREAM_V4}:{SOCKS_PORT}"]
        command += ["--workers", str(workers), "--run-dir", str(run_dir), *engine_options]
        engine = undo.enter_context(lab.client.start("engine", command))
        engine.wait_for("ready", START_TIMEOUT)
        yield LoadLab(lab.client, engine, run_dir)


def _raise_file_limit() -> None:
    """Ten thousand connections take as many descriptors in each process on the way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
