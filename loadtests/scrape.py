"""What scrapes of /metrics take at full load, and what they cost the traffic: windows with and without them take turns.

    python -m loadtests.scrape [--rounds N] [--seconds S] [--every S]      as root, from the root of the repository

The scraper has precedence over all other processes: it stands for one on a machine of its own, and does next to nothing.
In a window four TCP flows upload as fast as they can, clients ask for pages on kept connections, and a call of UDP, whose
echoes are counted, tells what is lost. Exit code 1 when 99 % of the scrapes are not answered within 50 ms, or when more is
dropped or lost with scrapes than without.
"""

import argparse
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import monotonic, sleep

from engine.demo.lab import LabError
from engine.demo.load import DATAGRAM_TIMEOUT
from engine.demo.service import ServiceError
from engine.demo.targets import DATAGRAM_MAX, ECHO_PORT
from loadtests.lab import TARGET, LoadLab, load_lab
from loadtests.sampler import Sample, decode_metrics

GOAL = 0.05
"""Seconds within which 99 % of the scrapes are to be answered."""
LOST_MORE_MAX = 0.001
"""Share of the call's datagrams that may be lost more with scrapes than without: chance, not the scrapes."""
DATAGRAM_EVERY = 0.005  # seconds
DATAGRAM_SIZE = 200  # bytes
LOADS = ("tcp_up", "http")
"""Phases of engine/demo/load.py that run at the same time."""
PRECEDENCE = -15  # nice
LEAD = 1.0
"""Seconds for the load to begin."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one. `times`: seconds of each scrape."""

    times: tuple[float, ...]
    mbit: float
    """Per second, both ways, IP packets."""
    dropped: dict[str, float]
    """Reason -> packets, by the engine and by the kernel before it (tun_queue_full); without the zeros."""
    sent: int
    lost: int
    """Of the call."""


def main() -> int:
    """Measure and print; return the exit code."""
    options = _options()
    if os.geteuid() != 0:
        print("scrape: network namespaces and tun devices take root", file=sys.stderr)
        return 3
    having: list[Window] = []
    lacking: list[Window] = []
    try:
        with load_lab(workers=options.workers, socks_servers=1) as lab:
            for number in range(options.rounds):
                for scrapes in (True, False) if number % 2 else (False, True):
                    window = _window(lab, options.seconds, options.every if scrapes else None)
                    (having if scrapes else lacking).append(window)
    except (LabError, ServiceError, OSError) as error:
        print(f"scrape: {error}", file=sys.stderr)
        return 1
    lines, good = judged(having, lacking)
    print("\n".join(lines))
    return 0 if good else 1


def judged(having: list[Window], lacking: list[Window]) -> tuple[list[str], bool]:
    """Return a table of windows with scrapes and without, and whether it is as it should be."""
    times = sorted(time for window in having for time in window.times)
    p50, p99 = times[len(times) // 2], times[int(0.99 * (len(times) - 1))]
    ratio = median(a.mbit / b.mbit for a, b in zip(having, lacking, strict=True))
    lines = ["| | with scrapes | without |", "|---|---|---|"]

    def row(name: str, of: "tuple[str, str]") -> None:
        lines.append(f"| {name} | {of[0]} | {of[1]} |")

    row("Mbit/s, median", (f"{median(w.mbit for w in having):,.0f}", f"{median(w.mbit for w in lacking):,.0f}"))
    row("packets dropped", (_dropped(having), _dropped(lacking)))
    row("datagrams of the call lost", (_lost_text(having), _lost_text(lacking)))
    lines.append("")
    lines.append(
        f"{len(times)} scrapes: half within {p50 * 1e3:.1f} ms, 99 % within {p99 * 1e3:.1f} ms (to be {GOAL * 1e3:.0f} ms), the "
        f"slowest {times[-1] * 1e3:.1f} ms; throughput with them {ratio:.3f} of that without"
    )
    lost_more = _lost_share(having) - _lost_share(lacking)
    return lines, p99 < GOAL and lost_more <= LOST_MORE_MAX


def _dropped(windows: list[Window]) -> str:
    reasons: Counter[str] = Counter()
    for window in windows:
        reasons.update({reason: round(count) for reason, count in window.dropped.items()})
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "none"


def _lost_share(windows: list[Window]) -> float:
    return sum(window.lost for window in windows) / max(1, sum(window.sent for window in windows))


def _lost_text(windows: list[Window]) -> str:
    return f"{sum(window.lost for window in windows):,} of {sum(window.sent for window in windows):,}"


def _window(lab: LoadLab, seconds: float, every: float | None) -> Window:
    """One window; `every`: seconds between two scrapes. Raises OSError, ServiceError."""
    command = [sys.executable, "-m", "engine.demo.load", "--addresses", TARGET, "--seconds"]
    with ExitStack() as undo:
        # The phase http lasts half as long as it is told.
        for phase in LOADS:
            length = (seconds + 2 * LEAD) * (2 if phase == "http" else 1)
            undo.enter_context(lab.client.start(f"load {phase}", [*command, str(length), "--phases", phase]))
        call = undo.enter_context(Call(lab))
        sleep(LEAD)
        before, began = _counted(lab), monotonic()
        call.counts = True
        times = list(_scrapes(lab, seconds, every))
        call.counts = False
        after, took = _counted(lab), monotonic() - began
    carried = sum(after[name] - before[name] for name in ("bytes in", "bytes out"))
    dropped = {
        name.removeprefix("dropped "): after[name] - before.get(name, 0.0)
        for name in after
        if name.startswith("dropped ")
    }
    dropped = {reason: count for reason, count in dropped.items() if count}
    return Window(tuple(times), carried * 8e-6 / took, dropped, call.sent, call.sent - call.received)


def _scrapes(lab: LoadLab, seconds: float, every: float | None) -> Iterator[float]:
    """Scrape for so long, or wait; yield the seconds of each."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PRECEDENCE)
    end = monotonic() + seconds
    while (began := monotonic()) < end:
        if every is None:
            sleep(max(0.0, end - began))
        else:
            lab.get("/metrics")
            yield monotonic() - began
            sleep(max(0.0, began + every - monotonic()))


def _counted(lab: LoadLab) -> Sample:
    return decode_metrics(lab.get("/metrics").decode())


class Call:
    """Datagrams in a steady rhythm, echoed; those sent while `counts` is set are counted, and their echoes."""

    def __init__(self, lab: LoadLab) -> None:
        self.counts = False
        self.sent = self.received = 0
        self._over = threading.Event()
        with lab.client.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((TARGET, ECHO_PORT))
        self._socket.settimeout(DATAGRAM_TIMEOUT)
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self) -> "Call":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _send(self) -> None:
        while not self._over.wait(DATAGRAM_EVERY):
            is_counted = self.counts
            self._socket.send(bytes((is_counted,)) * DATAGRAM_SIZE)
            self.sent += is_counted

    def _receive(self) -> None:
        """Take in echoes until none has come for a while after the end."""
        while True:
            try:
                self.received += self._socket.recv(DATAGRAM_MAX)[0]
            except TimeoutError:
                if self._over.is_set():
                    return


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.scrape", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="pairs of windows, default 4")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window, default 5")
    parser.add_argument(
        "--every", type=float, default=0.1, metavar="S", help="seconds between two scrapes, default 0.1"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the engine, default 2")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
