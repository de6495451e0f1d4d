"""Deaths and ends: of a worker, of the master, of the interface. The network is as before, and nothing is left."""

import os
import signal
import socket
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import workers
from tests.support.engine import ENGINE, Bed, Engine, bed, running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, TARGET_V6, Topology, wait_until
from tests.support.sockets import flow, listening, pseudo_random, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
NO_PROXY_NEEDED = f"socks5://{PROXY_V4}:1080"  # nothing listens there, and no flow is opened


def flows_by_worker(made: Bed, server: socket.socket, at_least: int) -> list[list[tuple[socket.socket, socket.socket]]]:
    """Open flows until each worker has `at_least` of them; return (application, peer) per worker."""
    engine = made.engine
    flows: list[list[tuple[socket.socket, socket.socket]]] = [[] for _ in engine.status().workers]
    while min(map(len, flows)) < at_least:
        before = [worker.tcp_opened for worker in engine.status().workers]
        ends = flow(made.net, server)
        after = [worker.tcp_opened for worker in engine.status().workers]
        (owner,) = (i for i in range(len(flows)) if after[i] > before[i])
        flows[owner].append(ends)
    return flows


def transfer(pool: ThreadPoolExecutor, sender: socket.socket, receiver: socket.socket, size: int) -> Future[bytes]:
    """Begin to send `size` pseudo-random bytes; the result is what has arrived."""
    pool.submit(sender.sendall, pseudo_random(size))
    return pool.submit(receive, receiver, size)


def worker_is_back(engine: Engine, index: int, restarts: int) -> bool:
    worker = engine.status().workers[index]
    return worker.restarts == restarts and worker.state == "running"


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6], ids=["ipv4", "ipv6"])
def test_killed_worker_is_replaced_and_flows_of_others_do_not_notice(run_dir: Path, host: str) -> None:
    with bed(run_dir) as made, listening(made.net, host) as server, ThreadPoolExecutor() as pool:
        lost, kept = flows_by_worker(made, server, at_least=2)
        transfers = [transfer(pool, *pair, 40 * MIB) for app, peer in kept for pair in ((app, peer), (peer, app))]
        pid = made.engine.status().workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: worker_is_back(made.engine, 0, restarts=1), what="the successor")
        for app, _ in lost:
            app.sendall(b"is anybody there")
            with pytest.raises(ConnectionResetError):
                app.recv(1)
        assert [future.result() == pseudo_random(40 * MIB) for future in transfers] == [True] * len(transfers)
        for _ in range(8):
            app, peer = flow(made.net, server)
            with app, peer:
                app.sendall(b"new")
                assert peer.recv(10) == b"new"
        for app, peer in lost + kept:
            app.close()
            peer.close()


def test_worker_killed_again_and_again_under_load(run_dir: Path) -> None:
    with bed(run_dir) as made, listening(made.net, TARGET_V4) as server, ThreadPoolExecutor() as pool:
        for restarts in range(1, 5):
            lost, kept = flows_by_worker(made, server, at_least=1)
            transfers = [transfer(pool, *kept[0], 20 * MIB), transfer(pool, *kept[0][::-1], 20 * MIB)]
            doomed = [pool.submit(app.sendall, bytes(100 * MIB)) for app, _ in lost]
            pid = made.engine.status().workers[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: worker_is_back(made.engine, 0, restarts), what="the successor")  # noqa: B023
            assert all(isinstance(future.exception(), ConnectionError) for future in doomed)
            assert [future.result() == pseudo_random(20 * MIB) for future in transfers] == [True, True]
            for app, peer in lost + kept:
                app.close()
                peer.close()
        status = made.engine.status()
        assert status.pool_free == status.pool_slots - 1, "slots of dead workers are lost"


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop"])
def test_stop_puts_everything_back_and_exits_0(net: Topology, run_dir: Path, how: str) -> None:
    with (
        embedded(net.internet) as url,
        listening(net, TARGET_V4) as server,
        running_engine(net.client, run_dir, proxy=url) as engine,
    ):
        app, _peer = flow(net, server)
        if how == "stop":
            assert net.client.run(*ENGINE, "stop", "--run-dir", str(run_dir)) == "stopped\n"
        else:
            engine.signal(signal.Signals[how])
        assert engine.exit_code() == 0
        with app, pytest.raises(ConnectionResetError):
            app.recv(1)
        _peer.close()
        assert not (run_dir / "control.sock").exists()


def test_second_signal_while_stopping_does_no_harm(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
        engine.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in engine.log, what="the engine stopping")
        for number in signal.SIGTERM, signal.SIGINT:
            if engine.service.process.poll() is None:
                engine.signal(number)
        assert engine.exit_code() == 0


def test_killed_master_leaves_nothing_and_the_next_start_works(net: Topology, run_dir: Path) -> None:
    before = net.client.snapshot()
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
        wait_until(lambda: len(engine.processes()) == 5, what="master, two workers, guardian, HTTP")
        family = engine.processes()
        engine.signal(signal.SIGKILL)
        assert engine.exit_code() == -signal.SIGKILL
        wait_until(lambda: not any(is_alive(pid) for pid in family), what="the end of workers, guardian and HTTP")
    assert net.client.snapshot() == before
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED):
        pass


def test_repair_undoes_what_master_and_guardian_have_left(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
        family = engine.processes()
        (guardian,) = (pid for pid in family if "guardian" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(guardian, signal.SIGKILL)
        engine.signal(signal.SIGKILL)
        assert engine.exit_code() == -signal.SIGKILL
        wait_until(lambda: not any(is_alive(pid) for pid in family), what="the end of the workers")
        assert "2022" in net.client.run("ip", "rule"), "nobody was left to undo it"
        assert "changes undone" in net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
        assert net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir)) == "nothing to repair\n"


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_run_directory_in_use_is_one_clear_sentence(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
        rules = net.client.run("ip", "rule")
        second = start(net, run_dir)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1), second.stderr
        assert "an engine is running with the run directory" in second.stderr
        assert engine.status().workers[0].state == "running"
        assert net.client.run("ip", "rule") == rules


def test_second_engine_with_another_run_directory_is_refused(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED):
        before = net.client.snapshot()
        second = start(net, run_dir.with_name("other"))
        assert second.returncode == 1
        assert "routing rule of another program at priority 9000" in second.stderr
        assert "Traceback" not in second.stderr
        assert net.client.snapshot() == before


def start(net: Topology, run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run an engine that must end by itself."""
    command = (*ENGINE, "start", "--proxy", NO_PROXY_NEEDED, "--workers", "1", "--run-dir", str(run_dir), *options)
    return subprocess.run(net.client.command(*command), capture_output=True, text=True, timeout=30)


def test_deleted_interface_ends_the_engine_with_a_clear_error(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, "--interface", "tl0", proxy=NO_PROXY_NEEDED) as engine:
        net.client.run("ip", "link", "del", "tl0")
        assert engine.exit_code() == 1
        assert "the interface tl0 is gone" in engine.log.splitlines()[-1]


def test_flows_go_on_after_the_interface_was_down(net: Topology, run_dir: Path) -> None:
    """The kernel takes the routes of an interface that is set down; the engine warns, and makes them again."""
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--interface", "tl0", proxy=url) as engine,
        listening(net, TARGET_V4) as server_v4,
        listening(net, TARGET_V6) as server_v6,
    ):
        flows = [flow(net, server) for server in (server_v4, server_v6)]
        routes = net.client.run("ip", "route", "show", "table", "2022")
        net.client.run("ip", "link", "set", "tl0", "down")
        for _, peer in flows:
            peer.sendall(b"while it is down")
        net.client.run("ip", "link", "set", "tl0", "up")
        wait_until(lambda: "made again" in engine.log, what="the routes, which the kernel took away")
        assert "traffic goes past the proxy" in engine.log
        assert net.client.run("ip", "route", "show", "table", "2022") == routes
        net.refuse_direct()
        flows += [flow(net, server) for server in (server_v4, server_v6)]
        for app, _ in flows[:2]:
            assert receive(app, 16) == b"while it is down"
        for app, peer in flows:
            with app, peer:
                app.sendall(b"back again")
                assert receive(peer, 10) == b"back again"
        assert net.direct_packets() == 0


def test_name_in_use_is_one_sentence(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, "--interface", "tl0", proxy=NO_PROXY_NEEDED):
        second = start(net, run_dir.with_name("other"), "--interface", "tl0", "--no-auto-route")
        assert second.returncode == 1
        assert second.stderr.splitlines() == [
            "engine: The interface 'tl0' is in use by another program: choose another with --interface."
        ]


def test_hung_worker_is_replaced_and_flows_of_others_do_not_notice(run_dir: Path) -> None:
    with bed(run_dir) as made, listening(made.net, TARGET_V4) as server, ThreadPoolExecutor() as pool:
        lost, kept = flows_by_worker(made, server, at_least=1)
        transfers = [transfer(pool, *pair, 40 * MIB) for app, peer in kept for pair in ((app, peer), (peer, app))]
        pid = made.engine.status().workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: worker_is_back(made.engine, 0, restarts=1), 30, what="the successor")
        status = made.engine.status().workers[0]
        assert status.last_end == "did nothing for 6 s"
        assert "worker 0 did nothing for 6 s" in made.engine.log
        assert [future.result() == pseudo_random(40 * MIB) for future in transfers] == [True] * len(transfers)
        for app, _ in lost:
            app.sendall(b"is anybody there")
            with pytest.raises(ConnectionResetError):
                app.recv(1)
        for app, peer in lost + kept:
            app.close()
            peer.close()


def test_engine_of_which_a_worker_comes_up_no_more_ends_with_the_reason(net: Topology, run_dir: Path) -> None:
    """Its interpreter's files are gone, as in an upgrade that went wrong."""
    with running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine:
        pid = engine.status().workers[0].pid
        assert pid is not None
        # `ip netns exec` has given the engine a mount namespace of its own.
        program = Path(workers.__file__).with_name("__main__.py")
        subprocess.run(
            ["nsenter", "-t", str(engine.pid), "-m", "mount", "--bind", "/dev/null", str(program)], check=True
        )
        os.kill(pid, signal.SIGKILL)
        assert engine.exit_code() == 1
        last = engine.log.splitlines()[-1]
        assert last == "engine: worker 0 has not come up in 8 starts; the last time it exited with code 1"
