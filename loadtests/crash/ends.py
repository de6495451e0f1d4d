"""The whole engine ends, in every way; the network must be as it was before."""

import os
import random
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep

from engine.demo.service import Service
from loadtests.crash.report import Finding, Row
from loadtests.crash.traffic import FLOWS, WAIT, stage
from tests.support.engine import ENGINE, running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, Namespace, topology, wait_until
from tests.support.sockets import connect, listening

__all__ = ["NO_PROXY_NEEDED", "RESTORE_TIME", "ROWS", "family", "kill_all", "restored"]

RESTORE_TIME = 2.0  # seconds that the guardian may take
NO_PROXY_NEEDED = f"socks5://{PROXY_V4}:1080"  # nothing listens there, and no flow is opened
START_TIME = 2.5
"""Seconds that a start takes, or more: in which a random moment is chosen."""


def restored(client: Namespace, before: dict[str, object], finding: Finding) -> None:
    """Wait until the network is as it was before; note the differences if it does not come to that."""
    try:
        wait_until(lambda: client.snapshot() == before, 10, what="the network as it was before")
    except AssertionError:
        finding.compare(before, client.snapshot())


def family(pid: int) -> list[int]:
    """Process ids of a master and of its children; empty when it is gone."""
    try:
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except FileNotFoundError:
        return []


def kill_all(pids: list[int]) -> None:
    """Kill processes as a machine does that loses power: none of them gets to do anything about it."""
    for number in signal.SIGSTOP, signal.SIGKILL:
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    wait_until(lambda: not any(_lives(pid) for pid in pids), WAIT, what="the end of all processes")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _master(numbers: tuple[signal.Signals, ...], finding: Finding, quick: bool) -> None:
    """The master gets these signals, the last of which is its end."""
    with topology() as net, tempfile.TemporaryDirectory() as work:
        before = net.client.snapshot()
        for index in range(3 if quick else 20):
            run_dir = Path(work, str(index))
            with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
                for number in numbers[:-1]:
                    os.kill(engine.pid, number)
                began_at = monotonic()
                os.kill(engine.pid, numbers[-1])
                # The guardian ends when it has restored all. To look at everything takes half a second on a busy machine.
                wait_until(lambda: not _guardians(run_dir), WAIT, what="the end of the guardian")  # noqa: B023
                seconds = monotonic() - began_at
                if net.client.snapshot() != before:
                    restored(net.client, before, finding)
                    seconds = monotonic() - began_at
                finding.seconds.append(seconds)
                engine.exit_code()
            finding.times += 1


def _kill_switch(finding: Finding, quick: bool) -> None:
    """The master is killed; nothing gets out until `engine repair`."""
    with topology() as net, tempfile.TemporaryDirectory() as work, listening(net, TARGET_V4) as server:
        before = net.client.snapshot()
        net.refuse_direct()
        for index in range(3 if quick else 20):
            run_dir = Path(work, str(index))
            with running_engine(net.client, run_dir, "--kill-switch", proxy=NO_PROXY_NEEDED) as engine:
                os.kill(engine.pid, signal.SIGKILL)
                with finding.recovering():
                    wait_until(lambda: "kill switch lets nothing out" in engine.log, WAIT, what="the guardian")
                engine.exit_code()
                try:
                    connect(net.client, server.getsockname()).close()
                    finding.problems.append("a connection left past the kill switch")
                except OSError:
                    pass
                net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
                restored(net.client, before, finding)
            finding.times += 1
        if net.direct_packets():
            finding.problems.append(f"{net.direct_packets()} packets went past the kill switch")


def _stop_in_traffic(finding: Finding, quick: bool) -> None:
    """`engine stop` while flows send as fast as they can."""
    for _ in range(2 if quick else 10):
        with stage() as made:
            pairs = made.flows(FLOWS // 4)
            sending = [made.pool.submit(app.sendall, bytes(64 << 20)) for app, _ in pairs]
            draining = [made.pool.submit(_drain, peer) for _, peer in pairs]
            with finding.recovering():
                made.net.client.run(*ENGINE, "stop", "--run-dir", str(made.engine.run_dir))
            if made.engine.exit_code() != 0:
                finding.problems.append(f"the engine exited with {made.engine.exit_code()}")
            for future in sending:
                if not isinstance(future.exception(WAIT), OSError):
                    finding.problems.append("a flow was not ended")
            for _, peer in pairs:
                peer.close()
            for future in draining:
                future.exception(WAIT)
            for app, _ in pairs:
                app.close()
        finding.times += 1  # and the network is compared by `stage`


def _drain(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def _power_loss(finding: Finding, quick: bool) -> None:
    """Everything is killed at once; what the journal tells is undone by the next start, or by `engine repair`."""
    with topology() as net, tempfile.TemporaryDirectory() as work:
        before = net.client.snapshot()
        for index in range(4 if quick else 20):
            run_dir = Path(work, str(index))
            with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
                kill_all(family(engine.pid))
                engine.exit_code()
                if net.client.snapshot() == before:
                    finding.problems.append("nothing was left to be undone")
                with finding.recovering():
                    if index % 2:
                        net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
                    else:
                        with _next_start(net.client, run_dir) as service:
                            service.wait_for("ready", WAIT)
                restored(net.client, before, finding)
                again = net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
                if again != "nothing to repair\n":
                    finding.problems.append(f"a second repair says {again!r}")
            finding.times += 1


@contextmanager
def _next_start(client: Namespace, run_dir: Path) -> Iterator[Service]:
    start = ("start", "--proxy", NO_PROXY_NEEDED, "--workers", "2", "--run-dir", str(run_dir))
    with Service("engine", client.command(*ENGINE, *start)) as service:
        yield service
    if service.process.returncode != 0:
        raise AssertionError(f"the engine exited with {service.process.returncode}: {service.output}")


def _reboot(finding: Finding, quick: bool) -> None:
    """The machine comes up with a network that knows nothing of the journal that is left: it must stay as it is.

    The kernel cannot be started anew here: the journal is given the name of another boot instead.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for _ in range(2 if quick else 10):
        with tempfile.TemporaryDirectory() as work:
            run_dir = Path(work, "run")
            with topology() as net:
                start = ("start", "--proxy", NO_PROXY_NEEDED, "--workers", "1", "--run-dir", str(run_dir))
                with Service("engine", net.client.command(*ENGINE, *start)) as service:
                    service.wait_for("ready", WAIT)
                    kill_all(family(service.process.pid))
            with topology() as net:
                before = net.client.snapshot()
                journal = run_dir / "network.journal"
                text = journal.read_text()
                if boot not in text:
                    finding.problems.append("the journal does not tell the boot")
                journal.write_text(text.replace(boot, "00000000-0000-0000-0000-000000000000"))
                with finding.recovering():
                    net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
                restored(net.client, before, finding)
                if journal.exists():
                    finding.problems.append("the journal of the other boot is still there")
            finding.times += 1


def _two_starts(finding: Finding, quick: bool) -> None:
    """Two engines are started at the same moment; one runs, the other says why it does not."""
    with topology() as net, tempfile.TemporaryDirectory() as work:
        before = net.client.snapshot()
        for index in range(3 if quick else 20):
            same = index % 2 == 0
            run_dirs = [Path(work, f"{index}"), Path(work, f"{index}{'' if same else '-other'}")]
            services = [
                Service(
                    f"engine {number}",
                    net.client.command(*ENGINE, "start", "--proxy", NO_PROXY_NEEDED, "--workers", "1", "--metrics", "off",
                                       "--run-dir", str(run_dir)),
                )
                for number, run_dir in enumerate(run_dirs)
            ]  # fmt: skip
            try:
                with finding.recovering():
                    wait_until(lambda: _settled(services), WAIT, what="one that runs, and one that has ended")  # noqa: B023
                loser = next(service for service in services if service.process.poll() is not None)
                if loser.process.returncode != 1 or "Traceback" in loser.output or "engine: " not in loser.output:
                    finding.problems.append(f"exit {loser.process.returncode}: {loser.output[-300:]}")
            finally:
                codes = [service.stop(WAIT) for service in services]
            if sorted(codes) != [0, 1]:
                finding.problems.append(f"exit codes {codes}")
            restored(net.client, before, finding)
            finding.times += 1


def _settled(services: list[Service]) -> bool:
    ended = [service for service in services if service.process.poll() is not None]
    running = [service for service in services if service.process.poll() is None and "ready" in service.output]
    if len(ended) == 2:
        raise AssertionError(f"neither runs: {[service.output[-300:] for service in ended]}")
    return len(ended) == 1 and len(running) == 1


def _start_killed(finding: Finding, quick: bool) -> None:
    """While an engine starts, some process of it is killed at some moment; it ends, or runs. Then it is stopped."""
    chance = random.Random(60)
    with topology() as net, tempfile.TemporaryDirectory() as work:
        before = net.client.snapshot()
        for index in range(5 if quick else 60):
            run_dir = Path(work, str(index))
            start = ("start", "--proxy", NO_PROXY_NEEDED, "--workers", "2", "--run-dir", str(run_dir))
            service = Service("engine", net.client.command(*ENGINE, *start))
            try:
                until = monotonic() + chance.uniform(0, START_TIME)
                while monotonic() < until and "ready" not in service.output:
                    sleep(0.005)
                there = family(service.process.pid)
                if there:
                    os.kill(chance.choice(there), signal.SIGKILL)
                with finding.recovering():
                    wait_until(
                        lambda: service.process.poll() is not None or "ready" in service.output,  # noqa: B023
                        WAIT,
                        what="an engine that runs or has ended",
                    )
                    service.stop(WAIT)
                    # The guardian may have died with the master: then `engine repair` is the way out.
                    wait_until(lambda: not _guardians(run_dir), WAIT, what="the end of the guardian")  # noqa: B023
                    if net.client.snapshot() != before:
                        net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
                    restored(net.client, before, finding)
            finally:
                service.stop(WAIT)
            if "Traceback" in service.output:
                finding.problems.append(service.output[-500:])
            finding.times += 1


def _guardians(run_dir: Path) -> bool:
    """Whether a guardian or a helper works for an engine."""
    mark = f"--run-dir\0{run_dir}\0".encode()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if mark in arguments and b"engine.netconf" in arguments:
            return True
    return False


KILL, STOP = signal.SIGKILL, signal.SIGSTOP

ROWS = [
    *(
        Row(
            f"master-{number.name.lower()}",
            f"master dies of {number.name}",
            partial(_master, (number,)),
            seconds_max=RESTORE_TIME,
        )
        for number in (KILL, signal.SIGABRT, signal.SIGSEGV)
    ),
    Row("master-hung-killed", "master hangs (SIGSTOP), then killed", partial(_master, (STOP, KILL)), RESTORE_TIME),
    Row("kill-switch", "master killed, kill switch on: nothing gets out, then repair", _kill_switch),
    Row("stop-in-traffic", "`engine stop` in the middle of traffic", _stop_in_traffic),
    Row("power-loss", "everything killed at once, then start or repair", _power_loss),
    Row("reboot", "everything killed at once, then repair on a machine that knows nothing of it", _reboot),
    Row("two-starts", "two engines started at the same moment", _two_starts),
    Row("start-killed", "any process killed at any moment of a start", _start_killed),
]
