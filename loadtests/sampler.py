"""The engine's side of a load test: one sample a second of its metrics, memory and processor time, until stopped."""

import csv
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic, time

import psutil
from prometheus_client.parser import text_string_to_metric_families

from engine.control import NotRunning, ask
from engine.requests import EngineStatus, Status
from loadtests.lab import LoadLab

__all__ = ["INTERVAL", "Sample", "Sampler", "decode_metrics", "read_samples"]

INTERVAL = 1.0  # seconds
LAG = "tunloom_event_loop_lag_seconds_bucket"
_MIB = 1024 * 1024

Sample = dict[str, float]
"""Name of a figure -> value; `time` is Unix time. Counts are totals since the engine's start."""

_SUMS = {
    "tunloom_tun_packets_total": "packets {direction}",
    "tunloom_tun_bytes_total": "bytes {direction}",
    "tunloom_flows_active": "flows {protocol}",
    "tunloom_flows_opened_total": "opened {protocol}",
    "tunloom_flows_half_open": "half open",
    "tunloom_packets_dropped_total": "dropped {reason}",
    "tunloom_tcp_retransmits_total": "retransmits",
    "tunloom_connects_failed_total": "connects failed",
    "tunloom_udp_refused_total": "udp refused",
    "tunloom_worker_restarts_total": "restarts",
    "tunloom_defects_total": "defects",
    "tunloom_pool_slots_free": "pool free",
    "tunloom_ring_packets": "ring",
    "tunloom_buffer_bytes": "buffers",
}
"""Metric -> name of the figure, summed over the labels that it does not name."""


class Sampler:
    """Samples `lab` in a thread from `start` to `stop`. Moments at which the engine did not answer are `missed`."""

    def __init__(self, lab: LoadLab) -> None:
        self.samples: list[Sample] = []
        self.missed: list[str] = []
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")
        self._lags: dict[str, float] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take one more sample and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            due = monotonic() + INTERVAL
            try:
                self.samples.append(self.take())
            except (OSError, NotRunning, psutil.Error) as error:
                self.missed.append(f"{type(error).__name__}: {error}")
            ended = self._stop.wait(max(0.0, due - monotonic()))
        try:
            self.samples.append(self.take())
        except (OSError, NotRunning, psutil.Error) as error:
            self.missed.append(f"{type(error).__name__}: {error}")

    def take(self) -> Sample:
        """Return a sample of now. Raises OSError, NotRunning, psutil.Error."""
        began = monotonic()
        text = self._lab.get("/metrics").decode()
        sample = decode_metrics(text) | {"time": time(), "scrape": monotonic() - began}
        sample |= self._lag(text)
        status = ask(self._lab.run_dir, Status()).status
        assert status is not None
        return sample | dict(_process_figures(status))

    def _lag(self, text: str) -> Sample:
        """The 99th percentile of how late timers fired since the last sample, over all processes."""
        now: dict[str, float] = {}
        for bound, count in re.findall(rf'^{LAG}{{le="([^"]+)",[^}}]*}} (\S+)$', text, re.MULTILINE):
            now[bound] = now.get(bound, 0.0) + float(count)
        before, self._lags = self._lags, now
        counts = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
        total = counts.get("+Inf", 0.0)
        if not before or not total:
            return {}
        reached = next(bound for bound, count in counts.items() if count >= 0.99 * total)
        return {"lag": float(reached)}


def decode_metrics(text: str) -> Sample:
    """Return the figures in a scrape."""
    sample: Sample = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            if each.name in _SUMS:
                name = _SUMS[each.name].format(**each.labels)
                sample[name] = sample.get(name, 0.0) + each.value
    return sample


def _process_figures(status: EngineStatus) -> Iterator[tuple[str, float]]:
    """Memory in MiB, processor seconds and descriptors of each process of the engine.

    `memory` is the proportional set size, which moves with who else maps the same libraries; behind `anonymous` there is no file.
    """
    processes = {"master": (status.pid, status.memory), "http": (status.http_pid, status.http_memory)}
    processes |= {f"worker {worker.index}": (worker.pid, worker.memory) for worker in status.workers}
    for name, (pid, memory) in processes.items():
        if memory is not None:
            yield f"memory {name}", memory / _MIB
        if pid is not None:
            process = psutil.Process(pid)
            yield f"cpu {name}", sum(process.cpu_times()[:2])
            yield f"fds {name}", process.num_fds()
            size = process.memory_info()
            yield f"anonymous {name}", (size.rss - size.shared) / _MIB


def write_samples(samples: list[Sample], path: Path) -> None:
    """Write samples as CSV; a figure that a sample does not have is empty."""
    names = sorted({name for sample in samples for name in sample} - {"time"})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["time", *names])
        writer.writeheader()
        writer.writerows(samples)


def read_samples(path: Path) -> list[Sample]:
    """Read what write_samples has written."""

    def numbers(row: Mapping[str, str]) -> Sample:
        return {name: float(value) for name, value in row.items() if value}

    with path.open(newline="") as file:
        return [numbers(row) for row in csv.DictReader(file)]
