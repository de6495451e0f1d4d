"""Whatever process it is, it is killed at whatever moment, under flows, and those that do not depend on it survive."""

import os
import random
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import sleep

from loadtests.crash.ends import restored
from loadtests.crash.processes import kill_guardian, kill_http, replace_worker
from loadtests.crash.proxies import proxy_pid
from loadtests.crash.report import Finding, Row
from loadtests.crash.traffic import Stage, close, surviving
from tests.support.engine import running_engine
from tests.support.netns import TARGET_V4, Topology, topology
from tests.support.sockets import listening
from tests.support.upstreams import embedded

__all__ = ["ROWS"]

FLOWS = 20
SEED = 7
LIFE = 6
"""Faults that an engine sees at most, until the next one is started."""


def _anyone(finding: Finding, quick: bool) -> None:
    chance = random.Random(SEED)
    left = 10 if quick else 60
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunloom-crash-")))
        pool = stack.enter_context(ThreadPoolExecutor(4 * FLOWS))
        life = 0
        while left:
            life += 1
            left -= _one_life(finding, net, work / str(life), pool, chance, min(left, LIFE))


def _one_life(
    finding: Finding, net: Topology, run_dir: Path, pool: ThreadPoolExecutor, chance: random.Random, most: int
) -> int:
    """Start an engine and kill this and that until the master dies; return how many faults there were."""
    before = net.client.snapshot()
    with ExitStack() as stack:
        proxies = stack.enter_context(ExitStack())
        url = proxies.enter_context(embedded(net.internet))
        engine = stack.enter_context(running_engine(net.client, run_dir, proxy=url))
        server = stack.enter_context(listening(net, TARGET_V4))
        made = Stage(net, engine, server, pool, run_dir.parent)
        for number in range(most):
            victim = chance.choice(("worker", "worker", "guardian", "http", "proxy", "master"))
            kept, doomed = made.flows_by_fate(FLOWS)
            if victim in ("guardian", "http"):
                kept, doomed = kept + doomed, []
            elif victim != "worker":
                kept, doomed = [], kept + doomed
            with surviving(finding, pool, kept):
                sleep(chance.uniform(0, 0.3))  # any moment
                with finding.recovering():
                    match victim:
                        case "worker":
                            replace_worker(made)
                        case "guardian":
                            kill_guardian(made)
                        case "http":
                            kill_http(made)
                        case "proxy":
                            os.kill(proxy_pid(net), signal.SIGKILL)
                            proxies.enter_context(embedded(net.internet))
                            close(made.flows(1))
                        case _:
                            os.kill(engine.pid, signal.SIGKILL)
                            restored(net.client, before, finding)
            close(kept + doomed)
            finding.times += 1
            if victim == "master":
                engine.exit_code()
                return number + 1
        return most


ROWS = [Row("anyone", "any process killed at any moment, flows that do not depend on it", _anyone)]
