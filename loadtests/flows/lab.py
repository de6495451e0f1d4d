"""Two namespaces with room for 50,000 flows.

    client: applications, engine ══ veth ══ internet: SOCKS servers that share 192.0.2.1:1080, targets on several addresses

What a flow needs beside memory: a descriptor in the application, one in its worker, two in the SOCKS server and one in the
target, so applications, servers and targets are as many processes as open files ask for (a hard limit of 20,000 is common);
and a local port for each of these connections. An address has 28,232 by default for connections to one other address and port.
The applications' flows spread over the targets' addresses, and so do those of the SOCKS servers; the engine's all go to one
proxy, so its machine needs net.ipv4.ip_local_port_range from 1024 on, as any does that is to hold so many.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.demo.service import Service
from engine.limits import raise_file_limit
from loadtests.flows.holder import Carried
from tests.support.engine import Engine, running_engine
from tests.support.netns import Namespace, topology
from tests.support.upstreams import embedded

__all__ = ["Applications", "FlowLab", "flow_lab"]

FLOWS_OF_A_PROCESS = 7_000
START_TIMEOUT = 60.0  # seconds


class Applications:
    """Processes that hold flows (loadtests/flows/holder.py), told what to do all at once."""

    def __init__(self, client: Namespace, count: int, targets: list[str]) -> None:
        command = [sys.executable, "-m", "loadtests.flows.holder"]
        with client.entered():
            self._processes = [
                subprocess.Popen([*command, str(n), *targets], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for n in range(count)
            ]

    def open(self, flows: int, mappings: int) -> Carried:
        """Open so many flows, shared out evenly; return how many there are."""
        count = len(self._processes)
        return self._tell([f"open {_share(flows, count, n)} {_share(mappings, count, n)}" for n in range(count)])

    def carry(self, phase: str, order: str) -> Carried:
        """Have every flow carry a message each way; return how many did."""
        return self._tell([f"carry {phase} {order}"] * len(self._processes))

    def close(self) -> None:
        """End all flows."""
        self._tell(["close"] * len(self._processes))

    def end(self) -> None:
        """End the processes."""
        for process in self._processes:
            with process:
                process.kill()

    def _tell(self, commands: list[str]) -> Carried:
        for process, command in zip(self._processes, commands, strict=True):
            assert process.stdin is not None
            print(command, file=process.stdin, flush=True)
        whole = Carried()
        for process in self._processes:
            assert process.stdout is not None
            one = msgspec.json.decode(process.stdout.readline(), type=Carried)
            whole.tcp += one.tcp
            whole.udp += one.udp
            whole.sent_again += one.sent_again
            for error, count in one.errors.items():
                whole.errors[error] = whole.errors.get(error, 0) + count
        return whole


def _share(total: int, parts: int, number: int) -> int:
    return total // parts + (number < total % parts)


@dataclass(frozen=True)
class FlowLab:
    """What runs."""

    engine: Engine
    applications: Applications


@contextmanager
def flow_lab(total: int, *, workers: int, wide_ports: bool = True) -> Iterator[FlowLab]:
    """Bring everything up for `total` flows; all of it ends with the block.

    `wide_ports`: the client's range of local ports begins at 1024.
    """
    raise_file_limit()
    ends = -(-total // FLOWS_OF_A_PROCESS)
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        if wide_ports:
            with net.client.entered():
                Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535")
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunloom-flows-")), "run")
        targets = [f"198.51.100.{20 + end}" for end in range(ends)]
        for address in targets:
            url = stack.enter_context(embedded(net.internet, "--reuse-port"))
            net.internet.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
            with net.internet.entered():
                service = Service("targets", [sys.executable, "-P", "-m", "engine.demo.targets", address])
            stack.enter_context(service)
            service.wait_for("listening", START_TIMEOUT)
        engine = stack.enter_context(running_engine(net.client, run_dir, proxy=url, workers=workers))
        applications = Applications(net.client, ends, targets)
        stack.callback(applications.end)
        yield FlowLab(engine, applications)
