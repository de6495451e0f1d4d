"""`locust -f loadtests/locustfile.py --host http://ADDRESS [UserClass ...]`: load for a running engine.

ADDRESS is where `python -m loadtests.targets` listens, beyond the proxy. Without names all users take part but HttpHold and
Office. `python -m loadtests` brings up everything around it.
"""

import json
import logging
import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, events
from locust.env import Environment
from locust.runners import WorkerRunner

# Locust looks for packages beside this file; ours stand beside its folder.
sys.path.insert(0, str(Path(__file__).parents[1]))

from loadtests import shapes
from loadtests.objectives import is_about_loss, judge
from loadtests.spike import Spike
from loadtests.users import Dns, Http, HttpShort, StreamDown, StreamUp, TcpChurn, UdpEcho, WebSocket
from loadtests.worker_crash import Crash

__all__ = ["Dns", "Http", "HttpShort", "StreamDown", "StreamUp", "TcpChurn", "UdpEcho", "WebSocket"]

log = logging.getLogger(__name__)

if (_shape := shapes.chosen(sys.argv[1:], os.environ)) is not None:

    class Shape(LoadTestShape):
        """Users over time, as `--shape` says; locust takes the class that it finds here, and asks it every second."""

        use_common_options = True

        def tick(self) -> tuple[int, float] | None:
            """How many users, and how many a second may come or go; None: it is over."""
            global _spike
            assert self.runner is not None and _shape is not None
            options = self.runner.environment.parsed_options
            now = self.get_run_time()
            if now >= options.run_time:
                return None
            if _shape == shapes.SPIKE:
                if _spike is None:
                    _spike = Spike(p95=options.slo_p95, most=options.num_users)
                users = _spike.users()
                return None if users is None else (users, options.spawn_rate)
            return max(1, round(options.num_users * _shape(now / options.run_time, now))), options.spawn_rate


if "HttpHold" in sys.argv:
    from loadtests.users import HttpHold  # noqa: F401
if "Office" in sys.argv:
    from loadtests.users import Office  # noqa: F401


@events.init_command_line_parser.add_listener
def _add_options(parser: ArgumentParser, **_: object) -> None:
    group = parser.add_argument_group("tunloom", "Shape of the load, and what it must keep to")
    add = group.add_argument
    add(
        "--shape",
        choices=["", *shapes.SHAPES, shapes.SPIKE],
        default="",
        env_var="LOCUST_SHAPE",
        help="see loadtests/shapes.py",
    )  # type: ignore[call-arg]
    add(
        "--slo-p95",
        type=float,
        default=1000.0,
        metavar="MS",
        help="95 %% of small requests are answered within; default 1000",
    )
    add("--engine-run-dir", default="/run/tunloom", metavar="DIR", help="of the engine, for worker-crash")
    add("--verdict", default="", metavar="FILE", help="write the objectives that were missed, as JSON")
    add("--slo-loss", type=float, default=1.0, metavar="PERCENT", help="datagrams that may be lost; default 1")


_crash: Crash | None = None
_spike: Spike | None = None


@events.test_start.add_listener
def _plan_crash(environment: Environment, **_: object) -> None:
    global _crash
    options = environment.parsed_options
    if options.shape == "worker-crash" and not isinstance(environment.runner, WorkerRunner):
        _crash = Crash(Path(options.engine_run_dir))
        gevent.spawn_later(options.run_time / 2, _crash.kill)


@events.request.add_listener
def _note(name: str, exception: Exception | None, context: dict[str, Any], response_time: float, **_: object) -> None:
    if _crash is not None:
        flow = context["last"].flow if "last" in context else context.get("flow")
        _crash.ended(name, flow, failed=exception is not None, lost="lost" in context)
    if _spike is not None:
        _spike.add(response_time, exception)


@events.quitting.add_listener
def _judge(environment: Environment, **_: object) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return
    options = environment.parsed_options
    verdict: dict[str, Any] = {}
    if _spike is None:
        missed, kept = judge(environment.stats.entries.values(), p95=options.slo_p95, loss=options.slo_loss)
    else:  # more than can be carried is meant to be late
        missed, kept = _spike.verdict()
        verdict["spike"] = _spike.facts()
    if _crash is not None:
        missed = [sentence for sentence in missed if not is_about_loss(sentence)]  # whose they are is judged instead
        wrong, right = _crash.verdict(loss=options.slo_loss)
        missed, kept = missed + wrong, kept + right
    if environment.runner is not None:
        missed += [
            f"a user raised {error['msg']} ({error['count']} times)" for error in environment.runner.exceptions.values()
        ]
    for sentence in missed:
        log.error("missed: %s", sentence)
    for sentence in kept:
        log.info("kept: %s", sentence)
    if options.verdict:
        Path(options.verdict).write_text(json.dumps(verdict | {"missed": missed, "kept": kept}))
    environment.process_exit_code = 1 if missed else 0
    log.info("objectives: %s", "missed" if missed else "kept")
