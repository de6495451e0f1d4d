"""engine/supervisor.py with real worker processes on a tiny pool; one end of a socket pair is their tun."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import supervisor as supervisor_module
from engine.ingress import Ingress
from engine.supervisor import Report, Supervisor
from engine.worker_process import WorkerFailed, WorkerState
from shared import control
from shared.config import (
    DialConfig,
    DirectOutbound,
    Match,
    Policy,
    ProxyConfig,
    ProxyOutbound,
    Route,
    RouteConfig,
    Rule,
    StackConfig,
    WorkerConfig,
)
from shared.metrics import GAUGES, Cell
from shared.pool import Pool, PoolLayout
from shared.privileges import CAP_NET_ADMIN
from shared.ring import INLINE_MAX
from shared.wire.virtio import HEADER_LEN
from tests.support.loop import on_loop, until
from tests.support.netns import wait_until
from tests.support.packets import VIRTIO_NONE, ipv4

ROOT = Path(__file__).parents[2]
HANGS_AFTER = 10.0  # seconds
WORKERS, PLACES, SLOTS, RING_ENTRIES = 2, 6, 16, 64
ANYBODY = 60922 if os.geteuid() == 0 else None  # uid of the workers

CONFIG = WorkerConfig(
    index=0,
    places=PLACES,
    slots=SLOTS,
    ring_entries=RING_ENTRIES,
    policy=Policy(
        outbounds=(ProxyOutbound(tag="proxy", proxy=ProxyConfig("socks5", "127.0.0.1", 9, addresses=("127.0.0.1",))),)
    ),
    stack=StackConfig(mtu=65535, offload=True),
    uid=ANYBODY,
    secret=bytes(16),
    log_level="error",
)
LARGE = ipv4("192.0.2.1", "198.51.100.7", 132, bytes(INLINE_MAX))  # a worker gives its slot back at once


class Bed:
    """A supervisor with its pool, and an ingress that reads what `network` sends."""

    def __init__(self, config: WorkerConfig) -> None:
        self.reports: list[tuple[int, Report]] = []
        self.pool = Pool.create(PoolLayout(PLACES, SLOTS, RING_ENTRIES))
        self.network, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tun.setblocking(False)
        self.supervisor = Supervisor(
            config,
            workers=WORKERS,
            pool=self.pool,
            tun_fd=self.tun.fileno(),
            on_report=lambda worker, report: self.reports.append((worker, report)),
        )
        self.ingress: Ingress | None = None

    def dispatch(self, *packets: bytes) -> None:
        """Let the engine read `packets` from the tun."""
        assert self.ingress is not None
        for packet in packets:
            self.network.send(VIRTIO_NONE + packet)
            self.ingress.read_batch()

    def start_ingress(self) -> Ingress:
        self.ingress = Ingress(
            self.tun.fileno(), self.pool, self.supervisor.shards, self.pool.counters[-1], header_len=HEADER_LEN
        )
        self.supervisor.ingress = self.ingress
        return self.ingress

    async def restarted(self, index: int) -> None:
        """Wait until worker `index` is dead, reaped, and its successor ready."""
        worker = self.supervisor.workers[index]
        await worker.exited.wait()
        worker.ready = asyncio.get_running_loop().create_future()
        await worker.ready

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.supervisor.workers if worker.pid is not None]


@asynccontextmanager
async def running(config: WorkerConfig = CONFIG, *, started: bool = True) -> AsyncIterator[Bed]:
    bed = Bed(config)
    failed_callbacks: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed_callbacks.append(context))
    try:
        if started:
            await bed.supervisor.start()
        yield bed
    finally:
        pids = bed.pids()
        await bed.supervisor.stop()
        if bed.ingress is not None:
            bed.ingress.close()
        bed.network.close()
        bed.tun.close()
        bed.pool.close()
        assert not any(map(alive, pids)), "a worker outlived its supervisor"
        assert failed_callbacks == []


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def process_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def open_files(pid: int) -> list[str]:
    return [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]


@on_loop
async def test_workers_start_and_stop() -> None:
    async with running() as bed:
        assert [worker.state for worker in bed.supervisor.workers] == [WorkerState.RUNNING] * WORKERS
        assert len(set(bed.pids())) == WORKERS
        workers = bed.supervisor.workers
    assert [worker.state for worker in workers] == [WorkerState.STOPPED] * WORKERS
    assert [worker.restarts for worker in workers] == [0] * WORKERS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its rights up")
@on_loop
async def test_workers_have_no_rights() -> None:
    async with running() as bed:
        for pid in bed.pids():
            fields = process_status(pid)
            assert fields["Uid"].split() == [str(ANYBODY)] * 4
            assert fields["Gid"].split() == [str(ANYBODY)] * 4
            assert fields["Groups"].split() == []
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            assert fields["NoNewPrivs"].strip() == "1"


@on_loop
async def test_workers_inherit_their_own_descriptors_alone() -> None:
    async with running() as bed:
        marker = os.memfd_create("tunloom-not-yours")
        os.set_inheritable(marker, True)
        try:
            os.kill(bed.pids()[0], signal.SIGKILL)
            await bed.restarted(0)
            links = open_files(bed.pids()[0])
            assert any("tunloom-pool" in link for link in links)
            assert not any("tunloom-not-yours" in link for link in links)
        finally:
            os.close(marker)


@on_loop
async def test_killed_worker_is_replaced_and_its_slots_come_back() -> None:
    async with running() as bed:
        ingress = bed.start_ingress()
        before = ingress.free_slots
        first, second = bed.supervisor.workers
        pids = bed.pids()
        for pid in pids:  # stopped, so that the slots stay with them
            os.kill(pid, signal.SIGSTOP)
        bed.dispatch(*[ipv4(f"192.0.2.{n}", "198.51.100.7", 132, bytes(INLINE_MAX)) for n in range(1, 11)])
        held = [shard.held for shard in bed.supervisor.shards]
        assert before - ingress.free_slots == sum(held) > 0
        row = bed.pool.counters[0]
        for gauge in GAUGES:
            row[gauge] = 5
        row[Cell.PACKETS_OUT] = 77
        os.kill(pids[0], signal.SIGKILL)
        await bed.restarted(0)
        assert (first.state, first.restarts, first.index) == (WorkerState.RUNNING, 1, 0)
        assert first.pid not in (None, pids[0])
        assert ingress.free_slots == before - held[1]
        assert row[Cell.PACKETS_OUT] >= 77, "counters only ever grow"
        assert all(row[gauge] == 0 for gauge in GAUGES)
        assert (second.pid, second.restarts) == (pids[1], 0), "the other worker did not notice"
        os.kill(pids[1], signal.SIGCONT)


@on_loop
async def test_successor_serves_the_ring_of_the_dead() -> None:
    async with running() as bed:
        ingress = bed.start_ingress()
        before = ingress.free_slots
        for worker in bed.supervisor.workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await bed.restarted(worker.index)
        bed.dispatch(*[LARGE] * 8)
        wait_until(
            lambda: ingress.free_slots == before, timeout=10, what="every slot, from workers that serve their rings"
        )
        assert bed.pool.counters[-1][Cell.DROP_POOL_EMPTY] == 0


@on_loop
async def test_worker_that_dies_again_and_again_is_restarted_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST", 0.001)
    async with running() as bed:
        worker = bed.supervisor.workers[0]
        for deaths in range(1, 4):
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await bed.restarted(0)
            assert worker.restarts == worker.deaths_in_a_row == deaths


def test_backoff_grows_to_its_bound_however_many_deaths() -> None:
    delays = [supervisor_module._backoff(deaths) for deaths in range(1, 5000)]
    assert delays[0] == 0.0
    assert delays == sorted(delays)
    assert delays[-1] == supervisor_module.BACKOFF_MAX


# policies


def with_rules(*matches: Match, **dial: Any) -> Policy:
    """A direct outbound that takes what `matches` say."""
    rules = tuple(Rule(match=match, action=Route(outbound="direct"), origin="test") for match in matches)
    direct = DirectOutbound(tag="direct", dial=DialConfig(**dial))
    return msgspec.structs.replace(
        CONFIG.policy, outbounds=(*CONFIG.policy.outbounds, direct), route=RouteConfig(rules=rules)
    )


def with_policy(policy: Policy) -> WorkerConfig:
    return msgspec.structs.replace(CONFIG, policy=policy)


@on_loop
async def test_workers_take_policies_of_megabytes_at_the_start_and_later() -> None:
    large = with_rules(Match(domain=tuple(f"host-{n}.example.com" for n in range(50_000))))
    async with running(with_policy(large)) as bed:
        assert bed.supervisor.send_all(control.Reload(7, large)) == [0, 1]
        await until(lambda: len(bed.reports) == WORKERS)
        assert sorted(bed.reports, key=lambda report: report[0]) == [
            (index, control.Reloaded(7)) for index in range(WORKERS)
        ]


@on_loop
async def test_worker_tells_what_is_wrong_with_a_policy() -> None:
    wrong = with_rules(Match(domain_regex=("(",)))
    async with running(started=False, config=with_policy(wrong)) as bed:
        with pytest.raises(WorkerFailed, match="no regular expression"):
            await bed.supervisor.start()
    async with running() as bed:
        bed.supervisor.send(1, control.Reload(8, wrong))
        await until(lambda: bool(bed.reports))
        ((index, reloaded),) = bed.reports
        assert index == 1 and isinstance(reloaded, control.Reloaded)
        assert reloaded.error is not None and "regular expression" in reloaded.error
        assert bed.supervisor.workers[1].state is WorkerState.RUNNING


@on_loop
async def test_worker_started_again_has_the_newest_policy() -> None:
    async with running() as bed:
        bed.supervisor.set_policy(with_rules(Match(domain_regex=("(",))))
        pid = bed.supervisor.workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="no regular expression"):
            await bed.restarted(0)


@pytest.mark.skipif(ANYBODY is None, reason="needs root, to become somebody else")
@on_loop
async def test_routing_mark_keeps_the_one_capability_that_it_needs() -> None:
    marked = with_rules(routing_mark=0x1234)
    async with running(with_policy(marked)) as bed:
        for pid in bed.pids():
            fields = process_status(pid)
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 1 << CAP_NET_ADMIN
            assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
            assert fields["NoNewPrivs"].strip() == "1"
    async with running() as bed:
        bed.supervisor.send(0, control.Reload(9, marked))
        await until(lambda: bool(bed.reports))
        ((_, reloaded),) = bed.reports
        assert isinstance(reloaded, control.Reloaded)
        assert reloaded.error is not None and "restart the engine" in reloaded.error


# starts that fail


CANNOT_START = f"""#!{sys.executable}
import socket, sys
from shared import control
channel = socket.socket(fileno=int(sys.argv[6]))  # after -P -m workers MASTER_PID CONTRACT
channel.send(control.encode(control.Failed("the moon is full")))
"""


@on_loop
async def test_reason_of_a_worker_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cannot-start"
    program.write_text(CANNOT_START)
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(program))
    async with running(started=False) as bed:
        with pytest.raises(WorkerFailed, match=r"worker \d cannot start: the moon is full"):
            await bed.supervisor.start()


@on_loop
async def test_worker_that_exits_at_its_first_start_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with running(started=False) as bed:
        with pytest.raises(WorkerFailed, match=r"worker \d exited with code 1 before it was ready"):
            await bed.supervisor.start()


@on_loop
async def test_worker_that_cannot_be_started_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    async with running(started=False) as bed:
        with pytest.raises(WorkerFailed, match="worker 0 cannot be started: No such file"):
            await bed.supervisor.start()


@on_loop
async def test_restart_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST", 0.001)
    async with running() as bed:
        worker = bed.supervisor.workers[0]
        assert worker.pid is not None
        attempts = []
        popen = subprocess.Popen

        def fails_twice(*args: object, **kwargs: object) -> object:
            attempts.append(args)
            if len(attempts) <= 2:
                raise OSError(11, "Resource temporarily unavailable")
            return popen(*args, **kwargs)  # type: ignore[call-overload]

        monkeypatch.setattr(subprocess, "Popen", fails_twice)
        os.kill(worker.pid, signal.SIGKILL)
        await bed.restarted(0)
        assert (len(attempts), worker.restarts) == (3, 3)


@on_loop
async def test_workers_that_never_are_ready_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "START_TIMEOUT", 0.0)
    async with running(started=False) as bed:
        with pytest.raises(WorkerFailed, match=r"workers \[0, 1\] were not ready"):
            await bed.supervisor.start()


# ends


@on_loop
async def test_stop_kills_a_worker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_TIMEOUT", 0.1)
    async with running() as bed:
        os.kill(bed.pids()[0], signal.SIGSTOP)


@on_loop
async def test_stop_while_a_worker_waits_for_its_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_backoff", lambda deaths: 3600.0)
    async with running() as bed:
        worker = bed.supervisor.workers[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await worker.exited.wait()
        assert worker.state is WorkerState.BACKOFF
    assert worker.state is WorkerState.STOPPED


MASTER = """
import asyncio, os, sys
from tests.engine.test_supervisor import Bed, CONFIG

async def main():
    bed = Bed(CONFIG)
    await bed.supervisor.start()
    print(*bed.pids(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_the_master(how: signal.Signals, stopped: bool) -> None:
    """Also those that cannot notice that their channel is closed. The master gets a session of its own, because the
    kernel would continue and hang up stopped processes of a group that loses its last parent."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    master = subprocess.Popen(
        [sys.executable, "-c", MASTER], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )  # fmt: skip
    assert master.stdout is not None
    with master, master.stdout:
        pids = [int(pid) for pid in master.stdout.readline().split()]
        assert len(pids) == WORKERS
        watched = [os.pidfd_open(pid) for pid in pids]
        if stopped:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        master.send_signal(how)
        ended = [select.select([pidfd], [], [], HANGS_AFTER)[0] for pidfd in watched]  # no children of ours to wait for
        for pidfd, readable in zip(watched, ended, strict=True):
            if not readable:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    assert all(ended), "a worker outlived the master"
