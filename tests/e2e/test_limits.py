"""Little memory and few files: the engine says so, carries what it can, and refuses the rest at once."""

import hashlib
import json
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cgroup import memory_cgroup
from tests.support.engine import ENGINE, running_engine
from tests.support.netns import OTHER_TARGET_V4, PROXY_V4, TARGET_V4, Topology, wait_until
from tests.support.sockets import connect, flow, listening, pseudo_random, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024


def test_few_files(net: Topology, run_dir: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url, workers=1, wrapper=few) as engine,
        listening(net, TARGET_V4) as server,
    ):
        assert "only 256 files may be open (ulimit -n)" in engine.log
        flows = []
        with pytest.raises(ConnectionRefusedError):
            while len(flows) < 256:
                flows.append(flow(net, server))
        assert len(flows) > 100
        for _ in range(200):
            with pytest.raises(ConnectionRefusedError):
                connect(net.client, server.getsockname())
        for app, peer in flows:
            app.sendall(b"the old ones live on")
            assert receive(peer, 20) == b"the old ones live on"
            app.close()
            peer.close()
        wait_until(lambda: engine.status().workers[0].flows == 0, what="the end of all flows")
        for app, peer in [flow(net, server) for _ in flows]:
            app.close()
            peer.close()
        (worker,) = engine.status().workers
        assert worker.restarts == 0
        # A program that is kept waiting sends again: one SYN more, or a segment that has arrived already.
        assert worker.drops["flow_limit"] >= 201
        assert worker.drops.keys() <= {"flow_limit", "out_of_window", "stale"}


def test_few_local_ports(net: Topology, run_dir: Path) -> None:
    with net.client.entered():
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40031")
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url) as engine,
        listening(net, TARGET_V4) as server,
        listening(net, OTHER_TARGET_V4) as other,
    ):
        flows = []
        with pytest.raises(OSError, match="Network is unreachable"):
            while len(flows) < 64:
                flows.append(flow(net, (server, other)[len(flows) % 2]))  # whose ports do not run out
        assert 16 < len(flows) <= 32
        assert sum(worker.no_local_port for worker in engine.status().workers) >= 1
        assert f"no local port is left for one more connection to {PROXY_V4} port 1080" in engine.log
        assert "connections found no local port" in net.client.run(*ENGINE, "status", "--run-dir", str(run_dir))
        for app, peer in flows:
            app.sendall(b"the old ones live on")
            assert receive(peer, 20) == b"the old ones live on"
            app.close()
            peer.close()
        with net.client.entered():
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40999")
        app, peer = flow(net, server)
        app.close()
        peer.close()
        with net.client.entered():
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40031")


def test_small_queues(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    """What finds them full is dropped and comes again."""
    config = tmp_path / "config.json"
    proxy = {"type": "socks", "tag": "proxy", "server": PROXY_V4, "server_port": 1080}
    config.write_text(json.dumps({"outbounds": [proxy], "engine": {"queues": {"packets": 64, "large_packets": 32}}}))
    text = pseudo_random(2 * MIB)
    with (
        embedded(net.internet),
        running_engine(net.client, run_dir, "-c", str(config)) as engine,
        listening(net, TARGET_V4) as server,
        ThreadPoolExecutor(32) as pool,
    ):
        assert engine.status().pool_slots == 32
        flows = [flow(net, server) for _ in range(16)]
        for app, peer in flows:
            app.settimeout(60)
            peer.settimeout(60)
            pool.submit(app.sendall, text)
        arrived = [pool.submit(receive, peer, len(text)) for _, peer in flows]
        assert [future.result() == text for future in arrived] == [True] * len(flows)
        for app, peer in flows:
            app.close()
            peer.close()


@pytest.mark.parametrize("direction", ["down", "up"])
def test_little_memory(net: Topology, run_dir: Path, direction: str) -> None:
    """200 flows with 2 MiB each, which nobody takes at first, in 256 MiB; then all of it arrives whole."""
    text = pseudo_random(2 * MIB)
    with (
        memory_cgroup(256 * MIB) as cgroup,
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url, netns_option=True, wrapper=cgroup.wrapper) as engine,
        listening(net, TARGET_V4) as server,
        ThreadPoolExecutor(32) as pool,
    ):
        assert "only 256 MiB of memory (cgroup)" in engine.log
        flows = [flow(net, server) for _ in range(200)]
        ends = flows if direction == "up" else [(peer, app) for app, peer in flows]
        senders = [threading.Thread(target=sender.sendall, args=(text,)) for sender, _ in ends]
        for sender, receiver in ends:
            sender.settimeout(60)
            receiver.settimeout(60)
        for thread in senders:
            thread.start()
        moved = -1

        def has_stalled() -> bool:
            nonlocal moved
            before, moved = moved, sum(w.bytes_in + w.bytes_out for w in engine.status().workers)
            return moved == before

        wait_until(has_stalled, 30, what="the moment in which all buffers are full")
        expected = hashlib.sha256(text).digest()
        hashes = list(pool.map(lambda end: hashlib.sha256(receive(end[1], len(text))).digest(), ends))
        assert hashes == [expected] * len(ends)
        for thread in senders:
            thread.join()
        for app, peer in flows:
            app.close()
            peer.close()
        assert [worker.restarts for worker in engine.status().workers] == [0, 0]
        assert cgroup.oom_kills() == 0


def test_out_of_memory_kill_of_the_master_is_a_crash_like_any_other(net: Topology, run_dir: Path) -> None:
    """The guardian, in the same cgroup, restores the network."""
    before = net.client.snapshot()
    with memory_cgroup(256 * MIB) as cgroup:
        with running_engine(
            net.client, run_dir, proxy="socks5://192.0.2.1:1080", netns_option=True, wrapper=cgroup.wrapper
        ) as engine:
            Path(f"/proc/{engine.pid}/oom_score_adj").write_text("1000")
            with subprocess.Popen([*cgroup.wrapper, "tail", "/dev/zero"]):  # takes all there is, and is killed next
                assert engine.exit_code() == -signal.SIGKILL
        wait_until(lambda: net.client.snapshot() == before, 2, what="the network as it was before")
        assert cgroup.oom_kills() >= 1
