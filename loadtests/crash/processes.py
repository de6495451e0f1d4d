"""Master, workers, guardian and proxy are killed or stopped under flows; the flows of others must carry every byte."""

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

from loadtests.crash.report import Finding
from tests.support.engine import Bed, Engine, bed, running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, topology, wait_until
from tests.support.sockets import flow, listening, pseudo_random, receive

__all__ = ["process_faults"]

PIECE = 512 * 1024
"""Bytes that each surviving flow carries in each direction around each fault."""
FLOWS = 200
RESTORE_TIME = 2.0  # seconds that the guardian may take
Pair = tuple[socket.socket, socket.socket]


def process_faults(*, quick: bool) -> Iterator[Finding]:
    """Give one finding for each kind of fault."""
    times = 3 if quick else 20
    for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV):
        yield _master(f"master dies of {number.name}", number, times)
    yield _under_flows("worker killed (SIGKILL), flows of the other", times, _kill_worker, others_only=True)
    yield _under_flows("worker hangs (SIGSTOP), flows of the other", 2 if quick else 5, _stop_worker, others_only=True)
    yield _under_flows("guardian killed (SIGKILL), all flows", times, _kill_guardian, others_only=False)
    yield _under_flows(
        "tun set down and up (kill switch), all flows", times, _tun_down_and_up, "--kill-switch", others_only=False
    )


def _master(title: str, number: signal.Signals, times: int) -> Finding:
    finding = Finding(title, seconds_max=RESTORE_TIME)
    with topology() as net, tempfile.TemporaryDirectory() as work:
        before = net.client.snapshot()
        for index in range(times):
            with running_engine(net.client, Path(work, str(index)), proxy=f"socks5://{PROXY_V4}:1080") as engine:
                os.kill(engine.pid, number)
                began_at = monotonic()
                engine.exit_code()
                wait_until(lambda: net.client.snapshot() == before, 10, what="the network as it was before")
                finding.seconds.append(monotonic() - began_at)
            finding.times += 1
    return finding


def _under_flows(title: str, times: int, fault: Callable[[Bed], None], *options: str, others_only: bool) -> Finding:
    finding = Finding(title)
    with tempfile.TemporaryDirectory() as work, _bed(Path(work, "run"), *options) as (made, server, pool):
        for _ in range(times):
            pairs, doomed = _flows(made, server, others_only)
            finding.flows_to_survive += len(pairs)
            carried = [_carry(pool, sender, receiver) for pair in pairs for sender, receiver in (pair, pair[::-1])]
            began_at = monotonic()
            fault(made)
            finding.seconds.append(monotonic() - began_at)
            whole = [future.result() for future in carried]
            finding.bytes_verified += sum(whole)
            finding.bytes_damaged += PIECE * len(whole) - sum(whole)
            finding.flows_survived += sum(up == down == PIECE for up, down in zip(whole[::2], whole[1::2], strict=True))
            finding.times += 1
            for pair in pairs + doomed:
                for sock in pair:
                    sock.close()
    return finding


@contextmanager
def _bed(run_dir: Path, *options: str) -> Iterator[tuple[Bed, socket.socket, ThreadPoolExecutor]]:
    with ExitStack() as stack:
        made = stack.enter_context(bed(run_dir, *options))
        server = stack.enter_context(listening(made.net, TARGET_V4))
        yield made, server, stack.enter_context(ThreadPoolExecutor(4 * FLOWS))


def _flows(made: Bed, server: socket.socket, others_only: bool) -> tuple[list[Pair], list[Pair]]:
    """Open FLOWS flows; return those that must survive, all or those of worker 1, and the rest."""
    kept, doomed = [], []
    for _ in range(FLOWS):
        before = made.engine.status().workers[0].tcp_opened if others_only else 0
        pair = flow(made.net, server)
        is_other = not others_only or made.engine.status().workers[0].tcp_opened == before
        (kept if is_other else doomed).append(pair)
    return kept, doomed


def _carry(pool: ThreadPoolExecutor, sender: socket.socket, receiver: socket.socket) -> Future[int]:
    """Send PIECE bytes; the result is how many of them have arrived as they were."""
    text = pseudo_random(PIECE, sender.fileno())

    def check() -> int:
        try:
            arrived = receive(receiver, PIECE)
        except OSError:
            return 0
        return PIECE if arrived == text else 0

    pool.submit(sender.sendall, text)
    return pool.submit(check)


def _kill_worker(made: Bed) -> None:
    _replaced(made.engine, signal.SIGKILL)


def _stop_worker(made: Bed) -> None:
    _replaced(made.engine, signal.SIGSTOP)


def _replaced(engine: Engine, number: signal.Signals) -> None:
    worker = engine.status().workers[0]
    assert worker.pid is not None
    os.kill(worker.pid, number)

    def is_back() -> bool:
        now = engine.status().workers[0]
        return now.restarts > worker.restarts and now.state == "running"

    wait_until(is_back, 60, what="the successor")


def _kill_guardian(made: Bed) -> None:
    status = made.engine.status()
    assert status.guardian_pid is not None
    os.kill(status.guardian_pid, signal.SIGKILL)
    wait_until(
        lambda: made.engine.status().guardian_pid not in (None, status.guardian_pid), 60, what="another guardian"
    )


def _tun_down_and_up(made: Bed) -> None:
    interface = made.engine.status().interface
    routes = made.net.client.run("ip", "route", "show", "table", "2022")
    for state in "down", "up":
        made.net.client.run("ip", "link", "set", interface, state)
    wait_until(
        lambda: made.net.client.run("ip", "route", "show", "table", "2022") == routes, 30, what="the routes made again"
    )
