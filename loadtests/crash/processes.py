"""One process of the engine is killed, stopped, too large or out of descriptors, under flows."""

import os
import signal
from pathlib import Path

from loadtests.crash.report import Finding, Row
from loadtests.crash.traffic import FLOWS, WAIT, Pair, Stage, close, stage, surviving, under_flows
from tests.support.cgroup import memory_cgroup
from tests.support.netns import wait_until
from tests.support.sockets import connect

__all__ = ["ROWS", "kill_guardian", "kill_http", "replace_worker"]

MIB = 1024 * 1024
APPETITE = Path(__file__).parents[2] / "tests" / "support" / "appetite"
LOOPS = 5
"""Deaths of a worker in a row."""


def replace_worker(made: Stage, number: signal.Signals = signal.SIGKILL) -> None:
    """Send worker 0 a signal that it does not live through, and wait for its successor."""
    worker = made.engine.status().workers[0]
    assert worker.pid is not None
    os.kill(worker.pid, number)

    def is_back() -> bool:
        now = made.engine.status().workers[0]
        return now.restarts > worker.restarts and now.state == "running"

    wait_until(is_back, WAIT, what="the successor")


def _crash_loop(made: Stage) -> None:
    for _ in range(LOOPS):
        replace_worker(made)


def kill_guardian(made: Stage, number: signal.Signals = signal.SIGKILL) -> None:
    """Send the guardian a signal that it does not live through, and wait for another that watches."""
    pid = made.engine.status().guardian_pid
    assert pid is not None
    os.kill(pid, number)
    wait_until(lambda: made.engine.status().guardian_pid not in (None, pid), WAIT, what="another guardian")


def kill_http(made: Stage) -> None:
    """Kill the HTTP process and wait for another."""
    status = made.engine.status()
    assert status.http_pid is not None
    os.kill(status.http_pid, signal.SIGKILL)

    def is_back() -> bool:
        now = made.engine.status()
        return now.http_restarts > status.http_restarts and now.http_pid not in (None, status.http_pid)

    wait_until(is_back, WAIT, what="another HTTP process")


def _too_large(finding: Finding, quick: bool) -> None:
    """A worker that is sent SIGUSR1 eats memory (tests/support/appetite); in 1 GiB each of two may have 320 MiB."""
    eats = ("env", f"PYTHONPATH={APPETITE}")
    with (
        memory_cgroup(1024 * MIB) as cgroup,
        stage("--metrics", "off", netns_option=True, wrapper=(*cgroup.wrapper, *eats)) as made,
    ):
        for _ in range(2 if quick else 10):
            kept, doomed = made.flows_by_fate(FLOWS)
            with surviving(finding, made.pool, kept), finding.recovering():
                replace_worker(made, signal.SIGUSR1)
            if "MiB of memory, of" not in made.engine.status().workers[0].last_end:
                finding.problems.append(f"the worker {made.engine.status().workers[0].last_end}")
            finding.times += 1
            close(kept + doomed)
        if cgroup.oom_kills():
            finding.problems.append(f"{cgroup.oom_kills()} processes were killed by the kernel for want of memory")


def _out_of_descriptors(finding: Finding, quick: bool) -> None:
    """Of 256 files: flows until one is refused; those that are there live on, and when they end others are let in."""
    few = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    with stage(workers=1, wrapper=few, flows=256) as made:
        for _ in range(2 if quick else 10):
            pairs: list[Pair] = []
            refused = 0
            while not refused:
                try:
                    pairs += made.flows(1)
                except ConnectionRefusedError:
                    refused = 1
                if len(pairs) > 256:
                    raise AssertionError("no flow was refused")
            with surviving(finding, made.pool, pairs):
                for _ in range(50):
                    try:
                        connect(made.net.client, made.server.getsockname()).close()
                        finding.problems.append("a flow beyond the limit was not refused")
                    except ConnectionRefusedError:
                        refused += 1
            close(pairs)
            with finding.recovering():
                wait_until(lambda: _admits(made), WAIT, what="room for another flow")
                wait_until(lambda: made.engine.status().workers[0].tcp_active == 0, WAIT, what="the end of all flows")
            finding.times += 1
        if made.engine.status().workers[0].restarts:
            finding.problems.append("the worker died")


def _admits(made: Stage) -> bool:
    try:
        close(made.flows(1))
    except ConnectionRefusedError:
        return False
    return True


ROWS = [
    Row("worker-killed", "worker killed, flows of the other", under_flows(replace_worker, others_only=True)),
    Row(
        "worker-hangs",
        "worker hangs (SIGSTOP), flows of the other",
        under_flows(lambda made: replace_worker(made, signal.SIGSTOP), times=(2, 5), others_only=True),
    ),
    Row("worker-memory", "worker takes more memory than it may, flows of the other", _too_large),
    Row(
        "worker-crash-loop",
        f"worker killed {LOOPS} times in a row, flows of the other",
        under_flows(_crash_loop, times=(1, 5), others_only=True),
    ),
    Row("descriptors", "all descriptors of a worker in use (ulimit -n 256), all flows", _out_of_descriptors),
    Row("guardian-killed", "guardian killed, all flows", under_flows(kill_guardian)),
    Row(
        "guardian-hangs",
        "guardian hangs (SIGSTOP), all flows",
        under_flows(lambda made: kill_guardian(made, signal.SIGSTOP), times=(2, 5)),
    ),
    Row("http-killed", "HTTP process killed, all flows", under_flows(kill_http)),
]
