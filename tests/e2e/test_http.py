"""The HTTP endpoints of a running engine: /metrics, /healthz, who may ask, and that the process behind them may die."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.engine import ENGINE, Bed, running_engine
from tests.support.http import metrics, request
from tests.support.netns import CLIENT_V4, PROXY_V4, TARGET_V4, TARGET_V6, Topology, wait_until
from tests.support.sockets import flow, listening, pseudo_random, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

NO_PROXY_NEEDED = f"socks5://{PROXY_V4}:1080"  # nothing listens there, and no flow is opened
SIZE = 300_000


def status_of(bed: Bed) -> int:
    return request(bed.net.client, "/healthz").status


def test_metrics_tell_what_flows_carry(bed: Bed) -> None:
    before = metrics(bed.net.client)
    for host in (TARGET_V4, TARGET_V6):
        with listening(bed.net, host) as server:
            app, peer = flow(bed.net, server)
            with app, peer:
                app.sendall(pseudo_random(SIZE))
                assert receive(peer, SIZE) == pseudo_random(SIZE)
                during = metrics(bed.net.client)
                assert sum(during[f'tunloom_flows_active{{protocol="tcp",worker="{n}"}}'] for n in (0, 1)) >= 1

    def grown(name: str) -> float:
        after = metrics(bed.net.client)
        return sum(value - before[key] for key, value in after.items() if key.partition("{")[0] == name)

    assert grown("tunloom_flows_opened_total") == 2
    wait_until(lambda: grown("tunloom_flows_closed_total") == 2, what="the end of both flows")
    after = metrics(bed.net.client)
    assert (
        after['tunloom_tun_bytes_total{direction="in"}'] - before['tunloom_tun_bytes_total{direction="in"}'] > 2 * SIZE
    )
    assert after['tunloom_memory_bytes{process="master"}'] > 1e6
    assert after['tunloom_memory_bytes{process="http"}'] > 1e6
    assert after['tunloom_event_loop_lag_seconds_count{worker="0"}'] > 0
    assert after['tunloom_event_loop_lag_seconds_count{worker="master"}'] > 0
    assert after["tunloom_healthy"] == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_has_nothing_to_object_to_a_live_engine(bed: Bed) -> None:
    body = request(bed.net.client, "/metrics").body
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_healthz_while_a_worker_hangs(bed: Bed) -> None:
    wait_until(lambda: status_of(bed) == 200, what="health")
    pid = bed.engine.status().workers[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: status_of(bed) == 503, what="the answer that a worker hangs")
        assert "worker 1 hangs" in request(bed.net.client, "/healthz").json["reasons"][0]
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: status_of(bed) == 200, what="health")


def test_healthz_while_the_interface_is_down(bed: Bed) -> None:
    wait_until(lambda: status_of(bed) == 200, what="health")
    interface = bed.engine.status().interface
    bed.net.client.run("ip", "link", "set", interface, "down")
    wait_until(lambda: status_of(bed) == 503, what="the answer that the interface is down")
    assert metrics(bed.net.client)["tunloom_interface_up"] == 0
    bed.net.client.run("ip", "link", "set", interface, "up")
    wait_until(lambda: status_of(bed) == 200, what="health")
    # The routes come back a moment later: flows of the next test are not to go past the tun.
    for target in (TARGET_V4, TARGET_V6):
        route = ("ip", "route", "get", target)
        wait_until(lambda: interface in bed.net.client.run(*route), timeout=30, what="the route")  # noqa: B023


def test_foreign_pages_get_nothing(bed: Bed) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = request(bed.net.client, "/metrics", **headers)
        assert answer.status == 403
        assert b"tunloom_" not in answer.body
    assert request(bed.net.client, "/metrics", Origin="http://localhost:5173").status == 200


def test_process_that_is_killed_is_replaced(bed: Bed) -> None:
    assert status_of(bed) == 200
    pid = bed.engine.status().http_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert status_of(bed) == 200
    status = bed.engine.status()
    assert status.http_pid not in (None, pid)
    assert status.http_restarts == 1
    assert [worker.restarts for worker in status.workers] == [0, 0]


def test_outside_loopback_the_secret_is_asked_for(
    net: Topology, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNLOOM_SECRET", "s3cret")
    with running_engine(net.client, run_dir, "--metrics", "0.0.0.0:9999", proxy=NO_PROXY_NEEDED) as engine:
        assert request(net.internet, "/metrics", host=CLIENT_V4, port=9999).status == 401
        answer = request(net.internet, "/metrics", host=CLIENT_V4, port=9999, Authorization="Bearer s3cret")
        assert answer.status == 200
        for pid in (*engine.processes()[1:], engine.status().http_pid):
            assert b"s3cret" not in Path(f"/proc/{pid}/environ").read_bytes()
        with pytest.raises(ConnectionRefusedError):
            request(net.client, "/metrics")  # the default's port is not used as well


def start(net: Topology, run_dir: Path, *options: str) -> tuple[int, str]:
    """Run an engine that must fail; return its exit code and what it said."""
    command = [*ENGINE, "start", "--proxy", NO_PROXY_NEEDED, "--run-dir", str(run_dir), *options]
    done = subprocess.run(net.client.command(*command), capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr


def test_outside_loopback_without_a_secret_is_an_error(net: Topology, run_dir: Path) -> None:
    code, text = start(net, run_dir, "--metrics", "0.0.0.0:9999")
    assert code == 2
    assert "only with a secret: set TUNLOOM_SECRET" in text


def test_port_that_is_taken(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir / "first", proxy=NO_PROXY_NEEDED):
        code, text = start(net, run_dir / "second", "--metrics", "127.0.0.1:9464")
        assert code == 2
        assert text.strip() == "engine: metrics and API: another program listens at 127.0.0.1:9464"


def test_port_of_the_default_that_is_taken_is_a_warning(net: Topology, run_dir: Path) -> None:
    with (
        embedded(net.client, host="127.0.0.1", port=9464),
        running_engine(net.client, run_dir, proxy=NO_PROXY_NEEDED) as engine,
    ):
        assert "another program listens at 127.0.0.1:9464: there are none; name an address with --metrics" in engine.log
        assert engine.status().http_pid is None


def test_off_serves_nothing(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, "--metrics", "off", proxy=NO_PROXY_NEEDED) as engine:
        with pytest.raises(ConnectionRefusedError):
            request(net.client, "/metrics")
        assert engine.status().http_pid is None
