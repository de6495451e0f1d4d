"""`engine demo`: real programs, the engine, a SOCKS5 server and targets, in two private namespaces.

1. Lab: the client can reach the proxy and nothing else, so what arrives at a target has passed the proxy.
2. Targets and the SOCKS5 server start on the internet side, the engine on the client side.
3. The load runs (engine/demo/load.py) and checks every byte.
4. `engine status` tells the flows of each worker.
5. The engine is stopped; the client's network must be as it was, and no process be left.
"""

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

import msgspec
from rich.console import Console

from engine.demo.lab import UPSTREAM_V4, Lab, LabError
from engine.demo.load import PHASES
from engine.demo.meter import PhaseResult, Progress, decode_message
from engine.demo.progress import Steps
from engine.demo.report import make_report, print_report
from engine.demo.service import Service, ServiceError
from engine.demo.targets import ECHO_PORT
from engine.requests import EngineStatus

__all__ = ["run_demo"]

PROXY_PORT = 1080
READY = "ready:"
"""In the line that the engine prints once packets flow."""
START_TIMEOUT = 20.0
"""Seconds for the engine, and each server, to become ready."""
LOAD_TIMEOUT = 30.0
"""Seconds without a word from the load, whose own waits are shorter."""
DIRECT_TIMEOUT = 2.0
"""Seconds for a direct connection, which is to fail at once."""
STATUS_TIMEOUT = 20.0
"""Seconds for `engine status`."""
FLOWS_FOR_EVERY_WORKER = 32
"""Flows per worker, on average, from which none may be idle: by chance that happens once in 10^13 runs."""

EXIT_DONE, EXIT_FAILED, EXIT_NOT_PERMITTED = 0, 1, 3

_PYTHON = (sys.executable, "-P", "-m")


def run_demo(*, workers: int, seconds: float, as_json: bool) -> int:
    """Run the demo with `workers` workers and throughput phases of `seconds`; return the exit code of the command.

    Progress goes to stderr, the report to stdout: tables, or with `as_json` one object (DemoReport). To be called in the
    main thread, which is the one that signals interrupt.
    """
    screen = Console(stderr=True)
    try:
        with _one_interrupt(), Lab(default_routes=False) as lab, Steps(screen) as steps:
            demo = _Demo(lab, workers, seconds, steps)
            demo.run()
    except LabError as error:
        screen.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return EXIT_NOT_PERMITTED if error.not_permitted else EXIT_FAILED
    except KeyboardInterrupt:
        screen.print("Interrupted; everything has been removed.")
        return EXIT_FAILED
    report = make_report(demo.phases, demo.checks, demo.flows_per_worker, workers)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        print_report(report, Console())
    if not report.ok and demo.engine_output not in demo.checks["completed"]:
        screen.print(f"The engine said:\n{demo.engine_output}", markup=False, highlight=False, soft_wrap=True)
    return EXIT_DONE if report.ok else EXIT_FAILED


class _Demo:
    """One run in a lab, and what came of it.

    phases         name -> result of the phases that have run
    checks         name -> error, empty when passed
    engine_output  the last lines that the engine printed
    """

    def __init__(self, lab: Lab, workers: int, seconds: float, steps: Steps) -> None:
        self.phases: dict[str, PhaseResult] = {}
        self.checks: dict[str, str] = {}
        self.flows_per_worker: list[int] = []
        self.engine_output = ""
        self._lab = lab
        self._workers = workers
        self._seconds = seconds
        self._steps = steps

    def run(self) -> None:
        """Run everything; what goes wrong stands in `checks` afterwards."""
        try:
            self._run_between_servers()
        except ServiceError as error:
            self.checks["completed"] = str(error)
        else:
            self.checks["completed"] = ""

    def _run_between_servers(self) -> None:
        user, password = secrets.token_hex(8), secrets.token_hex(16)
        self._steps.show("Lab", "two namespaces, targets and a SOCKS5 server")
        with self._start_targets() as targets, self._start_proxy(user, password) as proxy:
            targets.wait_for("listening", START_TIMEOUT)
            proxy.wait_for("listening", START_TIMEOUT)
            self.checks["no_direct_path"] = self._check_no_direct_path()
            self._steps.end(not self.checks["no_direct_path"])
            with TemporaryDirectory(prefix="tunloom-demo-") as run_dir:
                self._run_engine(f"socks5://{user}:{password}@{UPSTREAM_V4}:{PROXY_PORT}", run_dir)

    def _start_targets(self) -> Service:
        return self._lab.internet.start("targets", [*_PYTHON, "engine.demo.targets", *self._lab.targets])

    def _start_proxy(self, user: str, password: str) -> Service:
        password_fd, writer = os.pipe()
        try:
            with open(writer, "w") as pipe:
                pipe.write(password)
            command = [*_PYTHON, "engine.demo.socks_server", "--listen", f"{UPSTREAM_V4}:{PROXY_PORT}"]
            command += ["--user", user, "--password-fd", str(password_fd)]
            return self._lab.internet.start("SOCKS5 server", command, pass_fds=(password_fd,))
        finally:
            os.close(password_fd)

    def _check_no_direct_path(self) -> str:
        for address in self._lab.targets:
            with self._lab.client.entered():
                code = _connect_error(address, ECHO_PORT)
            if code != errno.ENETUNREACH:
                return f"{address}: {errno.errorcode[code] if code else 'connected'} instead of ENETUNREACH"
        return ""

    def _run_engine(self, proxy_url: str, run_dir: str) -> None:
        network_before = self._lab.client.network_state()
        command = [*_PYTHON, "engine", "start", "--proxy", proxy_url, "--workers", str(self._workers)]
        command += ["--run-dir", run_dir, "--metrics", "off"]
        self._steps.show("Engine", f"{self._workers} workers")
        with self._lab.client.start("engine", command) as engine:
            try:
                engine.wait_for(READY, START_TIMEOUT)
                self._steps.end(True)
                self._run_load()
                self._read_status(run_dir)
            finally:
                self._stop_engine(engine, network_before)

    def _stop_engine(self, engine: Service, network_before: dict[str, list[str]]) -> None:
        self._steps.show("Restore", "stopping the engine")
        code = engine.stop()
        left = self._lab.client.processes()
        results = {
            "engine_stopped": f"the exit code is {code}" if code else "",
            "network_restored": _differences(network_before, self._lab.client.network_state()),
            "nothing_left": f"processes {left} are still there" if left else "",
        }
        self.checks |= results
        self.engine_output = engine.output
        self._steps.end(not any(results.values()))

    def _run_load(self) -> None:
        command = [*_PYTHON, "engine.demo.load", "--seconds", str(self._seconds), "--addresses", *self._lab.targets]
        with self._lab.client.start("load", command) as load:
            while (line := load.next_line(LOAD_TIMEOUT)) is not None:
                if not line.startswith("{"):
                    continue  # a warning or traceback; the service keeps it for error messages
                message = decode_message(line)
                title, unit, _ = PHASES[message.phase]
                detail = f"{message.rate:,.2f} {unit}" if unit else ""
                if isinstance(message, Progress):
                    self._steps.show(title, detail)
                else:
                    self.phases[message.phase] = message
                    self._steps.end(not message.errors, detail)
            if len(self.phases) < len(PHASES):
                raise ServiceError(f"the load ended early. It said:\n{load.output}")

    def _read_status(self, run_dir: str) -> None:
        self._steps.show("Status")
        command = [*_PYTHON, "engine", "status", "--json", "--run-dir", run_dir]
        try:
            answer = subprocess.run(command, capture_output=True, timeout=STATUS_TIMEOUT, check=True).stdout
            status = msgspec.json.decode(answer, type=EngineStatus)
        except (subprocess.SubprocessError, msgspec.DecodeError) as error:
            raise ServiceError(f"engine status: {error}") from error
        self.flows_per_worker = [worker.tcp_opened + worker.udp_opened for worker in status.workers]
        expected = sum(self.flows_per_worker) >= FLOWS_FOR_EVERY_WORKER * self._workers
        idle = [index for index, flows in enumerate(self.flows_per_worker) if not flows]
        self.checks["all_workers_used"] = f"workers {idle} carried no flow" if idle and expected else ""
        self._steps.end(not self.checks["all_workers_used"], f"flows per worker: {self.flows_per_worker}")


def _connect_error(address: str, port: int) -> int:
    """Return the errno of an attempt to connect, 0 if it succeeds."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as flow:
        flow.settimeout(DIRECT_TIMEOUT)
        return flow.connect_ex((address, port))


def _differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> str:
    """Return what differs between two states of a network, "" if nothing does."""
    changes = []
    for kind, lines in before.items():
        changes += [f"{kind}: missing: {line}" for line in lines if line not in after[kind]]
        changes += [f"{kind}: left behind: {line}" for line in after[kind] if line not in lines]
    return "; ".join(changes)


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Let the first SIGINT, SIGTERM or SIGHUP raise KeyboardInterrupt; the rest are ignored, lest they stop the undoing."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    for each in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        before[each] = signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
