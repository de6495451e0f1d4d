"""A running `engine start`, and what it needs around it, for end-to-end tests."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.control import ask
from engine.demo.service import Service
from engine.requests import EngineStatus, Status
from tests.support.netns import Namespace, Topology, topology, wait_until
from tests.support.upstreams import embedded

__all__ = ["ENGINE", "Bed", "Engine", "bed", "running_engine"]

ENGINE = (sys.executable, "-P", "-m", "engine")
"""The command, as it would be found on PATH."""
READY_TIMEOUT = 30.0  # seconds; a loaded machine needs three
STOP_TIMEOUT = 30.0


@dataclass(frozen=True)
class Engine:
    """What a test asks of a running engine."""

    service: Service
    run_dir: Path

    @property
    def pid(self) -> int:
        """The master's."""
        return self.service.process.pid

    @property
    def log(self) -> str:
        """What it has printed, last lines only."""
        return self.service.output

    def status(self) -> EngineStatus:
        """What `engine status` shows."""
        status = ask(self.run_dir, Status()).status
        assert status is not None
        return status

    def processes(self) -> list[int]:
        """Ids of the master and all its children: workers and guardian."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for the end that somebody has asked for."""
        return self.service.process.wait(STOP_TIMEOUT)


@contextmanager
def running_engine(
    client: Namespace,
    run_dir: Path,
    *options: str,
    proxy: str | None = None,
    workers: int | None = 2,
    netns_option: bool = False,
    wrapper: Sequence[str] = (),
) -> Iterator[Engine]:
    """Start the engine in `client` and wait until packets flow; afterwards the network must be as it was before.

    `proxy` None: that of the options (`-c FILE`), or the engine looks for one by itself. `workers` None: the file's number.

    It is stopped on the way out, and must exit 0, unless the test has ended it. `netns_option`: the engine is started
    outside, and enters by its option --netns, so that it sees the cgroups. `wrapper`: a command that runs its arguments.
    """
    before = client.snapshot()
    named = () if proxy is None else ("--proxy", proxy)
    number = () if workers is None else ("--workers", str(workers))
    start = ("start", *named, *number, "--run-dir", str(run_dir), *options)
    if netns_option:
        service = Service("engine", [*wrapper, *ENGINE, *start, "--netns", client.name])
    else:
        service = Service("engine", client.command(*wrapper, *ENGINE, *start))
    try:
        service.wait_for("ready", READY_TIMEOUT)
        yield Engine(service, run_dir)
    finally:
        code = service.process.poll()
        stopped = code if code is not None else service.stop(STOP_TIMEOUT)
    assert code is not None or stopped == 0, f"the engine exited with {stopped}:\n{service.output}"
    assert "Traceback" not in service.output, service.output
    try:
        wait_until(lambda: client.snapshot() == before, timeout=30)
    except AssertionError:
        now = client.snapshot()
        changed = {what: (before[what], now[what]) for what in before if before[what] != now[what]}
        raise AssertionError(f"the network is not as it was before, but: {changed}") from None


@dataclass(frozen=True)
class Bed:
    """The usual: two namespaces, the embedded proxy, the engine with two workers."""

    net: Topology
    engine: Engine


@contextmanager
def bed(run_dir: Path, *options: str, workers: int = 2) -> Iterator[Bed]:
    """Build a Bed; what the client sends past the proxy is dropped and counted, and must be nothing."""
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        url = stack.enter_context(embedded(net.internet))
        engine = stack.enter_context(running_engine(net.client, run_dir, *options, proxy=url, workers=workers))
        net.refuse_direct()
        yield Bed(net, engine)
        assert net.direct_packets() == 0, "packets went past the proxy"
