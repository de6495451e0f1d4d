"""The command line: windows under attack and windows without take turns. `python -m loadtests.hostile --help`.

Exit codes: 0 done; 1 a byte was wrong, a worker fell, or the engine did not come back to rest; 3 not root.
"""

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from engine.demo.service import Service
from loadtests.hostile.attacks import ATTACKS, QUIET_PORT, TALKER_PORT
from loadtests.hostile.flood import Order
from loadtests.hostile.traffic import Connects, Meter, Talker, flow_key
from tests.support.engine import Bed, bed
from tests.support.netns import TARGET_V4, wait_until
from tests.support.sockets import close_sockets, connect, flow, listening, tcp_server

DEFAULT_RATE, DEFAULT_WINDOWS = 10_000, 5
WINDOW = 2.0  # seconds; those under attack and those without take turns
TARGET_RATIO = 0.7
CLIENTS = 300  # that never read, or whose window stays 0
REST_TIMEOUT = 60.0
MIB = 1024 * 1024


@dataclass
class Result:
    """One line of the table. Throughputs in bytes per second, of an upload and a download together."""

    attack: str
    without: float
    under: float
    ratio: float
    packets: int
    connects: list[float]
    failed: int
    memory: int
    rest: float
    faults: list[str]


def main() -> int:
    """Run the attacks; return the exit code."""
    options = _options()
    if os.geteuid() != 0:
        print("hostile: network namespaces and packet sockets take root", file=sys.stderr)
        return 3
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = [name for name in ATTACKS if not options.only or any(name.startswith(only) for only in options.only)]
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="tunloom-hostile-") as work,
        bed(Path(work) / "run", workers=options.workers) as made,
    ):
        made.net.internet.run("nft", "-f", "-", input=SILENCE)
        for name in chosen:
            print(f"{name} ...", file=sys.stderr)
            results.append(_attack(made, name, options))
    Console(width=None if sys.stdout.isatty() else 150).print(_table(results, options))
    faults = [f"{result.attack}: {fault}" for result in results for fault in result.faults]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


SILENCE = """
table inet tunloom_silence {
    chain answers { type filter hook output priority filter; policy accept; tcp sport 9 drop; }
    chain questions { type filter hook input priority filter; policy accept; tcp dport 9 drop; }
}
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.hostile", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rate", type=int, default=DEFAULT_RATE, help=f"packets of the attack per second, default {DEFAULT_RATE:,}")
    add("--windows", type=int, default=DEFAULT_WINDOWS, help=f"of {WINDOW:g} s under attack, default {DEFAULT_WINDOWS}")
    add("--workers", type=int, default=2)
    add("--seed", type=int, default=1)
    add("--only", action="append", metavar="ATTACK", help=f"beginning of a name, of: {', '.join(ATTACKS)}")
    return parser.parse_args()


def _attack(made: Bed, name: str, options: argparse.Namespace) -> Result:
    with ExitStack() as stack:
        server = stack.enter_context(listening(made.net, TARGET_V4))
        flows = [flow(made.net, server) for _ in range(2)]
        meter = stack.enter_context(Meter(up=flows[0], down=(flows[1][1], flows[1][0])))
        talker, _ = (
            stack.enter_context(Talker(tcp_server(made.net.internet, TARGET_V4, port, backlog=1024), amount))
            for port, amount in ((TALKER_PORT, 2 * MIB), (QUIET_PORT, 0))
        )
        memory = worker_memory(made)
        time.sleep(0.5)  # the windows open
        without = [meter.rate(WINDOW)]
        order = Order(
            name,
            made.engine.status().interface,
            TARGET_V4,
            options.rate,
            options.seed,
            flow=flow_key(flows[0][0]),
            forged=CLIENTS if name in ("1-byte segments", "window 0 for ever") else 0,
        )
        with _clients(made, CLIENTS if name == "never reading" else 0), Connects(made.net, server) as connects:
            command = [sys.executable, "-m", "loadtests.hostile.flood", msgspec.json.encode(order).decode()]
            with Service("flood", made.net.client.command(*command)) as flooder:
                flooder.wait_for("ready", 60)
                talker.wait_until_quiet(60)
                under = []
                for _ in range(options.windows):
                    under.append(meter.rate(WINDOW))
                    os.kill(flooder.process.pid, signal.SIGSTOP)
                    without.append(meter.rate(WINDOW))
                    os.kill(flooder.process.pid, signal.SIGCONT)
                peak = worker_memory(made)
            packets = int(flooder.output.splitlines()[-1])
        if name == "never reading":  # nothing was stopped
            without = [without[0], *(meter.rate(WINDOW) for _ in range(options.windows))]
        faults = meter.faults()
    close_sockets()
    rest, more = _rest(made)
    ratio = median(under) / median(without)
    return Result(
        name,
        median(without),
        median(under),
        ratio,
        packets,
        connects.took,
        connects.failed,
        peak - memory,
        rest,
        faults + more,
    )


@contextmanager
def _clients(made: Bed, count: int) -> Iterator[None]:
    """Programs that connect to the talker and never read."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connect(made.net.client, (TARGET_V4, TALKER_PORT)))
        yield


def _rest(made: Bed) -> tuple[float, list[str]]:
    """Wait until nothing is left of the attack; return how long that took, and what is wrong."""
    began = time.monotonic()
    faults = []
    try:
        wait_until(lambda: not _left(made), REST_TIMEOUT, what="the idle level")
    except AssertionError:
        faults.append(f"not back at the idle level: {_left(made)}")
    took = time.monotonic() - began
    workers = made.engine.status().workers
    faults += [f"worker {worker.index} fell" for worker in workers if worker.state != "running" or worker.restarts]
    if "Traceback" in made.engine.log:
        faults.append("the engine has logged a traceback")
    return took, faults


def _left(made: Bed) -> dict[str, int]:
    """Flows, and packets, that the engine holds."""
    status = made.engine.status()
    held = {
        "TCP flows": sum(worker.tcp_active for worker in status.workers),
        "packet slots": max(status.pool_slots - 1 - status.pool_free, 0),
    }
    return {what: amount for what, amount in held.items() if amount}


def worker_memory(made: Bed) -> int:
    """Private bytes of all workers."""
    total = 0
    for worker in made.engine.status().workers:
        lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return total


def _table(results: Sequence[Result], options: argparse.Namespace) -> Table:
    title = f"An upload and a download under attack by {options.rate:,} packets a second (medians of {options.windows} windows)"
    table = Table(title=title)
    for column in ("attack", "packets", "without", "under attack", "ratio", "new flows", "memory", "at rest after"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for one in results:
        connects = f"{len(one.connects)}, {median(one.connects) * 1000:.0f} ms" if one.connects else "none"
        table.add_row(
            one.attack,
            f"{one.packets:,}",
            *(f"{rate / 1e6:.0f} MB/s" for rate in (one.without, one.under)),
            f"{one.ratio:.2f}" + ("" if one.ratio >= TARGET_RATIO else f"  below {TARGET_RATIO}"),
            connects + (f", {one.failed} failed" if one.failed else ""),
            f"{one.memory / MIB:+.0f} MiB",
            f"{one.rest:.0f} s",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
