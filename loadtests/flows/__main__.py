"""`python -m loadtests.flows [--flows N] [--mappings N] [--workers N] [--memory MIB] [--hold SECONDS] [--json FILE]`

Exit codes: 0 every promise was kept, 1 one was not, 3 not root.
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import psutil

from loadtests.flows.holder import Carried
from loadtests.flows.lab import FlowLab, flow_lab
from loadtests.flows.verdict import MIB, Outcome, Phase, as_json, print_outcome
from tests.support.engine import Engine
from tests.support.netns import leaving_nothing, wait_until

__all__ = ["main"]

SAMPLE_INTERVAL = 2.0  # seconds between looks at the memory
END_TIMEOUT = 60.0  # seconds that flows may take to end


def main(arguments: list[str] | None = None) -> int:
    """Open, carry, hold, carry, close; print one table."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.flows", description=__doc__)
    parser.add_argument("--flows", type=int, default=50_000, help="TCP flows (default 50,000)")
    parser.add_argument("--mappings", type=int, default=4_000, help="UDP mappings beside them (default 4,000)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="PSS that is allowed (default 2048)")
    parser.add_argument("--hold", type=float, default=10.0, metavar="SECONDS", help="silence before the last phases")
    parser.add_argument(
        "--default-ports", action="store_true", help="leave the range of local ports as it is: shows how they run out"
    )
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("the flows need network namespaces: run it as root", file=sys.stderr)
        return 3
    outcome = Outcome(options.flows, options.mappings, options.workers, options.memory * MIB)
    total = options.flows + options.mappings
    with (
        leaving_nothing(),
        flow_lab(total, workers=options.workers, wide_ports=not options.default_ports) as lab,
    ):
        _play(lab, outcome, options.hold)
    print_outcome(outcome)
    if options.json is not None:
        options.json.write_text(as_json(outcome))
    return 1 if outcome.broken() else 0


def _play(lab: FlowLab, outcome: Outcome, hold: float) -> None:
    def note(carried: Carried) -> None:
        outcome.datagrams_sent_again += carried.sent_again
        for error, count in carried.errors.items():
            outcome.errors[error] = outcome.errors.get(error, 0) + count

    def phase(name: str, order: str) -> None:
        began = monotonic()
        carried = lab.applications.carry(name, order)
        note(carried)
        seconds = monotonic() - began
        workers = lab.engine.status().workers
        active = sum(worker.tcp_active for worker in workers), sum(worker.udp_active for worker in workers)
        outcome.phases.append(Phase(name, seconds, carried.tcp, carried.udp, *active, _memory(lab.engine)))

    outcome.memory_empty = sum(_memory(lab.engine).values())
    with _peak(lab.engine) as seen:
        began = monotonic()
        note(lab.applications.open(outcome.flows, outcome.mappings))
        outcome.open_seconds = monotonic() - began
        phase("start", "forth")
        sleep(hold)  # what is measured: flows that are silent
        phase("held", "mixed")
        sleep(hold)
        phase("end", "back")
    outcome.memory_peak = max(*seen, *(phase.total for phase in outcome.phases))
    lab.applications.close()
    status = lab.engine.status()
    outcome.no_local_port = sum(worker.no_local_port for worker in status.workers)
    outcome.restarts = sum(worker.restarts for worker in status.workers)
    for drops in (status.drops, *(worker.drops for worker in status.workers)):
        for reason, count in drops.items():
            outcome.drops[reason] = outcome.drops.get(reason, 0) + count

    def left() -> int:
        return sum(worker.tcp_active for worker in lab.engine.status().workers)

    try:
        wait_until(lambda: left() == 0, END_TIMEOUT, what="the end of all flows")
    except AssertionError:
        outcome.left = left()


def _memory(engine: Engine) -> dict[str, int]:
    """Bytes of each process of the engine, with its share of what is shared (PSS): workers, HTTP, guardian, master."""
    status = engine.status()
    names = {status.pid: "master", status.guardian_pid: "guardian", status.http_pid: "http"}
    names |= {worker.pid: f"worker {worker.index}" for worker in status.workers}
    sizes = {}
    for process in (psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)):
        try:
            sizes[names.get(process.pid, f"pid {process.pid}")] = int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:  # a helper that was there for a moment
            continue
    return sizes


@contextmanager
def _peak(engine: Engine) -> Iterator[list[int]]:
    """Look at the memory every SAMPLE_INTERVAL; gives the list of what was seen."""
    seen = [sum(_memory(engine).values())]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_INTERVAL):
            seen.append(sum(_memory(engine).values()))

    thread = threading.Thread(target=look, name="memory")
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
