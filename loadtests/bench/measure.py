"""What is measured of a peer: steps, each a load and the figures that it yields."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import psutil

from engine.demo.service import ServiceError
from loadtests.bench.lab import TARGET, BenchError, Lab
from loadtests.bench.peers import Peer
from loadtests.bench.results import Record
from loadtests.bench.servers import DNS_ZONE, ECHO_PORTS, HTTP_PORT, IPERF_PORT, dns_server, iperf_server

__all__ = ["STEPS", "Bench", "Step", "measure_peer"]

MARGIN = 30.0
"""Seconds that a load may take beyond its duration before it has failed."""
CONNECTION_THREADS = 8
UDP_PORT = 7100
DNS_NAMES = 100
"""Different questions; each comes many times."""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Bench:
    """What a step needs."""

    lab: Lab
    peer: Peer
    seconds: int
    """Duration of each load."""

    def client(self, command: Sequence[str]) -> str:
        """Run a TCP load client the way that its traffic reaches the peer; return its stdout. Raises BenchError."""
        return self.lab.run(self.lab.client, [*self.peer.prefix(self.lab), *command], self.seconds + MARGIN)

    def cpu_seconds(self) -> float:
        """Processor time, user and system, that the peer has taken so far, with children that have ended."""
        return sum(sum(process.cpu_times()[:4]) for process in self.peer.processes())


@dataclass(frozen=True)
class Reading:
    """A figure that a step yielded."""

    measure: str
    value: float
    note: str | None = None


@dataclass(frozen=True)
class Step:
    """A load, and the names of the figures that `take` yields; `engine` names those that need an engine to look at."""

    measures: tuple[str, ...]
    take: Callable[[Bench], list[Reading]]
    tool: tuple[str, str] | None = None
    """Program that it needs, and the command that installs it."""
    engine: tuple[str, ...] = ()


def tcp(bench: Bench, direction: str, flows: int) -> list[Reading]:
    """iperf3: what the receiving side counted, and what the engine's processes spent on it."""
    command = ["iperf3", "--client", TARGET, "--port", str(IPERF_PORT), "--json", "--time", str(bench.seconds)]
    command += ["--parallel", str(flows), *(["--reverse"] if direction == "down" else [])]
    with iperf_server(bench.lab):
        before = bench.cpu_seconds()
        received = json.loads(bench.client(command))["end"]["sum_received"]
        spent = bench.cpu_seconds() - before
    gbit = received["bytes"] * 8 / 1e9
    if not gbit:
        raise BenchError("iperf3 received nothing")
    readings = [Reading(f"tcp_{direction}_{flows}", received["bits_per_second"] / 1e9)]
    if bench.peer.process:
        readings.append(Reading(f"cpu_{direction}_{flows}", spent / gbit))
    return readings


def connections(bench: Bench) -> list[Reading]:
    """Connections that were opened, echoed a byte and were closed."""
    ports = [str(ECHO_PORTS.start), str(ECHO_PORTS.stop)]
    program = [sys.executable, "-m", "loadtests.bench.connection_load", TARGET, *ports]
    counts = json.loads(bench.client([*program, str(bench.seconds), str(CONNECTION_THREADS)]))
    if not counts["opened"]:
        raise BenchError(f"no connection succeeded, {counts['failed']} failed")
    note = f"{counts['failed']} failed" if counts["failed"] else None
    return [Reading("connections", counts["opened"] / counts["seconds"], note)]


def http(bench: Bench, connections: int) -> list[Reading]:
    """Keep-alive requests, by wrk."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{bench.seconds}s", f"http://{TARGET}:{HTTP_PORT}/"]
    output = bench.client(command)
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    if rate is None or not float(rate[1]):
        raise BenchError(f"wrk got no answer: {output.strip()}")
    if "Non-2xx" in output:
        raise BenchError("wrk got answers that were not 200")
    errors = re.search(r"Socket errors: .*", output)
    return [Reading(f"http_{connections}", float(rate[1]), errors[0] if errors else None)]


def udp(bench: Bench, direction: str, size: int) -> list[Reading]:
    """Datagrams that arrived, of a sender that goes as fast as it can."""
    lab = bench.lab
    rest = [f"{TARGET}:{UDP_PORT}", direction, str(size), str(bench.seconds)]
    program = [sys.executable, "-m", "loadtests.bench.datagram_load"]
    with lab.start(lab.internet, "UDP server", [*program, "server", *rest]) as server:
        server.wait_for("listening", MARGIN)
        command = [*program, "client", *rest, *bench.peer.datagram_options()]
        counts = json.loads(lab.run(lab.client, command, bench.seconds + MARGIN))
        counts |= {f"server_{name}": value for name, value in json.loads(server.wait_for("{", MARGIN)).items()}
    up = direction == "up"
    received, took = (
        (counts["server_received"], counts["server_seconds"]) if up else (counts["received"], counts["seconds"])
    )
    sent, sending = (counts["sent"], counts["seconds"]) if up else (counts["server_sent"], counts["server_seconds"])
    if not received or not took:
        raise BenchError(f"{received} of {sent} datagrams arrived")
    # A receiver may be done before the sender only if the tail was lost: then the time is the sender's.
    return [Reading(f"udp_{direction}_{size}", received / max(took, sending), f"offered {sent / sending:.0f}/s")]


def dns(bench: Bench) -> list[Reading]:
    """Queries that dnsperf had answered, after a first run of a second that fills the caches."""
    lab = bench.lab
    names = lab.write("names", "".join(f"name{number}.{DNS_ZONE} A\n" for number in range(DNS_NAMES)))
    command = ["dnsperf", "-s", TARGET, "-d", str(names), "-c", "8", "-q", "100", "-l"]
    with dns_server(lab):
        lab.run(lab.client, [*command, "1"], 1 + MARGIN)
        output = lab.run(lab.client, [*command, str(bench.seconds)], bench.seconds + MARGIN)
    rate = re.search(r"Queries per second: +([\d.]+)", output)
    lost = re.search(r"Queries lost: +(\d+)", output)
    if rate is None or lost is None or not float(rate[1]):
        raise BenchError(f"dnsperf got no answer: {output.strip()}")
    return [Reading("dns", float(rate[1]), f"{lost[1]} lost" if int(lost[1]) else None)]


def dns_miss(bench: Bench) -> list[Reading]:
    """What questions for new names take beyond their server's own time, which it tells."""
    lab = bench.lab
    program = [sys.executable, "-m", "loadtests.bench.dns_miss"]
    with lab.start(lab.internet, "slow DNS server", [*program, "server", TARGET]) as server:
        server.wait_for("listening", MARGIN)
        counts = json.loads(
            lab.run(lab.client, [*program, "client", TARGET, str(bench.seconds)], bench.seconds + MARGIN)
        )
    note = f"{counts['lost']} of {counts['asked']} lost" if counts["lost"] else None
    return [Reading("dns_miss_p50", counts["p50"], note), Reading("dns_miss_p99", counts["p99"], note)]


def pss(bench: Bench, moment: str) -> list[Reading]:
    """Proportional set size of the peer's largest process; the note has all of them."""
    sizes = sorted((process.memory_full_info().pss / MIB for process in bench.peer.processes()), reverse=True)
    return [Reading(f"pss_{moment}", sizes[0], " + ".join(f"{size:.1f}" for size in sizes))]


def _steps() -> Iterator[Step]:
    yield Step(("pss_idle",), partial(pss, moment="idle"), engine=("pss_idle",))
    for flows in (1, 4):
        for direction in ("up", "down"):
            cpu = f"cpu_{direction}_{flows}"
            yield Step(
                (f"tcp_{direction}_{flows}", cpu),
                partial(tcp, direction=direction, flows=flows),
                tool=("iperf3", "apt install iperf3"),
                engine=(cpu,),
            )
    yield Step(("connections",), connections)
    for count in (1, 64):
        yield Step((f"http_{count}",), partial(http, connections=count), tool=("wrk", "apt install wrk"))
    for size in (200, 1400):
        for direction in ("up", "down"):
            yield Step((f"udp_{direction}_{size}",), partial(udp, direction=direction, size=size))
    # proxychains carries no UDP: there is nothing to compare with outside an engine.
    yield Step(("dns",), dns, tool=("dnsperf", "apt install dnsperf dnsmasq-base"), engine=("dns",))
    yield Step(("dns_miss_p50", "dns_miss_p99"), dns_miss, engine=("dns_miss_p50", "dns_miss_p99"))
    yield Step(("pss_loaded",), partial(pss, moment="loaded"), engine=("pss_loaded",))


STEPS: tuple[Step, ...] = tuple(_steps())
"""In the order in which they are taken."""


def measure_peer(bench: Bench, steps: Sequence[Step], round_number: int) -> Iterator[Record]:
    """Start the peer, take the steps, stop it. A step that fails yields its error for each of its figures."""
    peer = bench.peer

    def failures(names: Sequence[str], error: Exception) -> Iterator[Record]:
        for name in names:
            yield Record(round_number, peer.name, name, error=str(error))

    with ExitStack() as undo:
        undo.callback(peer.stop)
        wanted = [(step, names) for step in steps if (names := _figures(step, peer))]
        try:
            peer.start(bench.lab)
        except BenchError as error:
            for _, names in wanted:
                yield from failures(names, error)
            return
        for step, names in wanted:
            try:
                peer.check()
                for reading in step.take(bench):
                    yield Record(round_number, peer.name, reading.measure, reading.value, note=reading.note)
            except (BenchError, ServiceError, psutil.Error) as error:
                yield from failures(names, error)


def _figures(step: Step, peer: Peer) -> list[str]:
    """Names of the figures that the step can yield of this peer."""
    return [name for name in step.measures if peer.process or name not in step.engine]
