"""Other workers take over while flows live: `engine reload --workers N` and `--new-workers`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import workers
from engine.control import ask
from engine.requests import CloseFlows, Reload, Reloaded, WorkerStatus
from tests.support.engine import ENGINE, Engine, bed, running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, TARGET_V6, Namespace, Topology, wait_until
from tests.support.sockets import connect, flow, listening, pseudo_random, receive, udp_socket
from tests.support.upstreams import embedded, targets

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
FLOWS = 1000
PATIENCE = 60.0  # seconds
ECHO = (TARGET_V4, 7)


def reload(engine: Engine, workers: int | None = None) -> Reloaded:
    """Ask in this process: a child, while it is forked, would hold sockets open that a test closes."""
    reloaded = ask(engine.run_dir, Reload(workers=workers, new_workers=workers is None), timeout=PATIENCE).reloaded
    assert reloaded is not None
    return reloaded


def renew(engine: Engine, workers: int | None = None) -> None:
    reloaded = reload(engine, workers)
    assert (reloaded.errors, reloaded.failure) == ([], "")


def current(engine: Engine) -> list[WorkerStatus]:
    status = engine.status()
    return [worker for worker in status.workers if worker.generation == status.generation]


def draining(engine: Engine) -> list[WorkerStatus]:
    return [worker for worker in engine.status().workers if worker.state == "draining"]


def wait_until_drained(engine: Engine) -> None:
    wait_until(
        lambda: len(engine.status().workers) == len(current(engine)), PATIENCE, what="the end of the old workers"
    )


def exchange(app: socket.socket, peer: socket.socket, text: bytes) -> None:
    """Something goes up, and its reverse down."""
    app.sendall(text)
    assert receive(peer, len(text)) == text
    peer.sendall(text[::-1])
    assert receive(app, len(text)) == text[::-1]


Flow = tuple[socket.socket, socket.socket]


def close(*flows: Flow) -> None:
    for sock in (sock for ends in flows for sock in ends):
        sock.close()


def carries_new_flows(net: Topology, server: socket.socket) -> None:
    ends = flow(net, server)
    exchange(*ends, b"a new flow")
    close(ends)


class Churn:
    """Short flows one after the other, each of which must be carried whole."""

    def __init__(self, client: Namespace) -> None:
        self._client = client
        self._stopped = threading.Event()
        self.count = 0

    def run(self) -> None:
        while not self._stopped.is_set():
            text = pseudo_random(3000, self.count)
            with connect(self._client, ECHO) as app:
                app.settimeout(PATIENCE)
                app.sendall(text)
                assert receive(app, len(text)) == text
            self.count += 1

    def stop(self) -> None:
        self._stopped.set()

    def goes_on(self) -> None:
        """Wait until some more flows have come and gone."""
        before = self.count
        wait_until(lambda: self.count >= before + 20 or self._stopped.is_set(), PATIENCE, what="more short flows")


@contextlib.contextmanager
def churning(client: Namespace, pool: ThreadPoolExecutor, threads: int = 3) -> Iterator[list[Churn]]:
    churns = [Churn(client) for _ in range(threads)]
    done = [pool.submit(churn.run) for churn in churns]
    try:
        yield churns
    finally:
        for churn in churns:
            churn.stop()
        for future in done:
            future.result()


def test_thousand_flows_and_a_download_outlive_changes_of_workers_while_others_come_and_go(run_dir: Path) -> None:
    with (
        bed(run_dir) as made,
        targets(made.net.internet),
        listening(made.net, TARGET_V4) as server,
        listening(made.net, TARGET_V6) as server_v6,
        ThreadPoolExecutor(8) as pool,
    ):
        engine = made.engine
        flows = [flow(made.net, server if number % 4 else server_v6) for number in range(FLOWS)]
        app, peer = flow(made.net, server)
        app.settimeout(PATIENCE)
        peer.settimeout(PATIENCE)
        steps: list[int | None] = [4, 1, None, 3]
        text = pseudo_random(len(steps) * 30 * MIB)
        piece = len(text) // len(steps)
        arrived = pool.submit(receive, app, len(text))
        uploaded = pool.submit(receive, peer, len(text))
        with churning(made.net.client, pool) as churns:
            for step, count in enumerate(steps):
                part = text[step * piece : (step + 1) * piece]
                sending = [pool.submit(peer.sendall, part), pool.submit(app.sendall, part)]
                before = current(engine)
                renew(engine, count)
                now = current(engine)
                assert len(now) == (count or len(before))
                assert not {worker.pid for worker in before} & {worker.pid for worker in now}
                for number, ends in enumerate(flows):
                    exchange(*ends, b"%d after %d changes" % (number, step + 1))
                for churn in churns:
                    churn.goes_on()
                flows += [flow(made.net, server) for _ in range(10)]
                for future in sending:
                    future.result()
        assert arrived.result() == text
        assert uploaded.result() == text
        assert engine.status().generation == 1 + len(steps)
        assert {worker.generation for worker in draining(engine)} >= {1}
        close(*flows, (app, peer))
        wait_until_drained(engine)
        assert [worker.restarts for worker in engine.status().workers] == [0] * 3
        assert engine.status().drain_cut == 0
        carries_new_flows(made.net, server)


def test_udp_mapping_stays_where_it_is(run_dir: Path) -> None:
    with bed(run_dir) as made, udp_socket(made.net.internet, TARGET_V4) as peer:
        engine = made.engine
        apps = [udp_socket(made.net.client, "0.0.0.0") for _ in range(8)]
        mappings = []
        for app in apps:
            app.sendto(b"before", peer.getsockname())
            mappings.append(peer.recvfrom(100)[1])
        for count in (4, 1):
            renew(engine, count)
            for app, mapping in zip(apps, mappings, strict=True):
                app.sendto(b"after", peer.getsockname())
                assert peer.recvfrom(100) == (b"after", mapping), "the source endpoint has the mapping that it had"
                peer.sendto(b"back", mapping)
                assert app.recvfrom(100)[0] == b"back"
        assert sum(worker.udp_active for worker in draining(engine)) == len(apps)
        with udp_socket(made.net.client, "0.0.0.0") as app:
            app.sendto(b"new", peer.getsockname())
            assert peer.recvfrom(100)[0] == b"new"
        assert current(engine)[0].udp_active == 1
        for app in apps:
            app.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def write(config: Path, **engine: object) -> None:
    outbound = {"type": "socks", "tag": "proxy", "server": PROXY_V4, "server_port": 1080}
    tun = {"type": "tun", "address": ["172.19.0.1/30"], "auto_route": True}
    config.write_text(json.dumps({"inbounds": [tun], "outbounds": [outbound], "engine": engine}))


def test_flows_that_do_not_end_in_time_are_reset_and_counted(net: Topology, run_dir: Path, config: Path) -> None:
    write(config, drain_timeout="1s")
    with (
        embedded(net.internet),
        running_engine(net.client, run_dir, "-c", str(config)) as engine,
        listening(net, TARGET_V4) as server,
    ):
        flows = [flow(net, server) for _ in range(3)]
        renew(engine)
        for app, peer in flows:
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            close((app, peer))
        wait_until_drained(engine)
        assert engine.status().drain_cut == len(flows)
        assert "has not drained in time: its last" in engine.log
        carries_new_flows(net, server)


def test_worker_that_dies_while_it_drains_is_not_replaced(run_dir: Path) -> None:
    with bed(run_dir) as made, listening(made.net, TARGET_V4) as server:
        engine = made.engine
        flows = [flow(made.net, server) for _ in range(20)]
        renew(engine)
        for worker in draining(engine):
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        wait_until_drained(engine)
        for app, peer in flows:
            app.sendall(b"is anybody there")
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            close((app, peer))
        carries_new_flows(made.net, server)
        assert "while it drained; its flows are lost" in engine.log


def test_worker_that_dies_beside_those_that_drain_is_replaced(run_dir: Path) -> None:
    with bed(run_dir) as made, listening(made.net, TARGET_V4) as server:
        engine = made.engine
        kept = [flow(made.net, server) for _ in range(20)]
        renew(engine)
        (first, *_) = current(engine)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: [w.restarts for w in current(engine)] == [1, 0], PATIENCE, what="the death")
        wait_until(lambda: current(engine)[0].state == "running", PATIENCE, what="the successor")
        for ends in kept:
            exchange(*ends, b"nothing has happened here")
        for _ in range(8):
            carries_new_flows(made.net, server)
        close(*kept)


def test_new_workers_that_do_not_come_up_change_nothing(run_dir: Path) -> None:
    """Their files are gone, as in an upgrade that went wrong."""
    with bed(run_dir) as made, listening(made.net, TARGET_V4) as server:
        engine = made.engine
        kept = [flow(made.net, server) for _ in range(10)]
        before = [worker.pid for worker in engine.status().workers]
        program = Path(workers.__file__).with_name("__main__.py")
        # `ip netns exec` has given the engine a mount namespace of its own.
        enter = ["nsenter", "-t", str(engine.pid), "-m"]
        subprocess.run([*enter, "mount", "--bind", "/dev/null", str(program)], check=True)
        with pytest.raises(
            AssertionError, match=r"exit 1: .*the workers stay as they are: worker \d+ exited with code 1"
        ):
            made.net.client.run(*ENGINE, "reload", "--workers", "3", "--run-dir", str(run_dir))
        for ends in kept:
            exchange(*ends, b"nothing has happened")
        assert engine.status().generation == 1
        wait_until(
            lambda: [worker.pid for worker in engine.status().workers] == before, PATIENCE, what="the old workers alone"
        )
        subprocess.run([*enter, "umount", str(program)], check=True)
        out = made.net.client.run(*ENGINE, "reload", "--workers", "3", "--run-dir", str(run_dir))
        assert out == "reloaded, 3 new workers\n"
        for ends in kept:
            exchange(*ends, b"and now it has")
        assert len(current(engine)) == 3
        close(*kept)


def test_changed_number_in_the_file_and_a_signal(net: Topology, run_dir: Path, config: Path) -> None:
    write(config, workers=1)
    with (
        embedded(net.internet),
        # No option --workers: it would come before the file.
        running_engine(net.client, run_dir, "-c", str(config), workers=None) as engine,
        listening(net, TARGET_V4) as server,
    ):
        assert len(current(engine)) == 1
        ends = flow(net, server)
        write(config, workers=3)
        engine.signal(signal.SIGHUP)
        wait_until(lambda: len(current(engine)) == 3, PATIENCE, what="three workers")
        exchange(*ends, b"lives on")
        assert reload(engine, 2).workers == 2
        engine.signal(signal.SIGHUP)
        wait_until(lambda: engine.log.count("reloaded: new flows") == 3, PATIENCE, what="the third reload")
        assert len(current(engine)) == 2, "the file has not changed"
        exchange(*ends, b"lives on")
        close(ends)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_end_while_workers_drain(net: Topology, run_dir: Path, how: str) -> None:
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url) as engine,
        listening(net, TARGET_V4) as server,
    ):
        flows = [flow(net, server) for _ in range(10)]
        renew(engine)
        assert len(draining(engine)) >= 1
        if how == "stop":
            assert net.client.run(*ENGINE, "stop", "--run-dir", str(run_dir)) == "stopped\n"
            assert engine.exit_code() == 0
        else:
            engine.signal(signal.SIGKILL)
            engine.exit_code()
        close(*flows)


def test_views_show_flows_of_workers_that_drain(run_dir: Path) -> None:
    def listed() -> dict[tuple[str, int], str]:
        text = made.net.client.run(*ENGINE, "flows", "--json", "--run-dir", str(run_dir))
        return {(view["source"], view["source_port"]): view["id"] for view in json.loads(text)["flows"]}

    with bed(run_dir) as made, listening(made.net, TARGET_V4) as server:
        old = [flow(made.net, server) for _ in range(5)]
        renew(made.engine, 1)
        new = [flow(made.net, server) for _ in range(5)]
        shown = listed()
        assert shown.keys() >= {app.getsockname() for app, _ in (*old, *new)}
        closed = shown[old[0][0].getsockname()]
        made.net.client.run(*ENGINE, "flows", "--close", closed, "--run-dir", str(run_dir))
        with pytest.raises(ConnectionResetError):
            old[0][0].recv(1)
        close(old[0])
        for ends in (*old[1:], *new):
            exchange(*ends, b"is still there")
        ask(run_dir, CloseFlows())
        for app, peer in (*old[1:], *new):
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            close((app, peer))
        wait_until_drained(made.engine)
