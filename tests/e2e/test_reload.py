"""`engine reload` and SIGHUP: new flows follow the new configuration, flows that are there live on."""

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import ENGINE, running_engine
from tests.support.netns import OTHER_TARGET_V4, PROXY_V4, TARGET_V4, Topology, wait_until
from tests.support.sockets import connect, flow, listening, pseudo_random, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
FLOWS, RELOADS = 1000, 20


class ConfigFile:
    """A configuration with two proxies, at ports 1080 and 1081; `write` says which one takes the flows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("first")

    def write(self, final: str, **more: Any) -> None:
        outbounds = [
            {"type": "socks", "tag": "first", "server": PROXY_V4, "server_port": 1080},
            {"type": "socks", "tag": "second", "server": PROXY_V4, "server_port": 1081},
            *more.pop("outbounds", []),
        ]
        tun = {
            "type": "tun",
            "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"],
            "auto_route": True,
            **more.pop("tun", {}),
        }
        self.path.write_text(json.dumps({"inbounds": [tun], "outbounds": outbounds, "route": {"final": final, **more}}))


@pytest.fixture
def config(tmp_path: Path) -> ConfigFile:
    return ConfigFile(tmp_path / "config.json")


def reload(net: Topology, run_dir: Path) -> str:
    return net.client.run(*ENGINE, "reload", "--run-dir", str(run_dir))


def carrier(net: Topology, peer: socket.socket) -> int:
    """The port of the proxy through which a flow came to its peer."""
    (owner,) = pids(net, f"sport = :{peer.getpeername()[1]}", "-Htnp")
    (port,) = (port for port in (1080, 1081) if owner in pids(net, f"sport = :{port}", "-Hltnp"))
    return port


def pids(net: Topology, sockets: str, options: str) -> set[int]:
    lines = net.internet.run("ss", options, sockets)
    return {int(part.split(",")[0]) for part in lines.split("pid=")[1:]}


@pytest.mark.timeout(300)  # twenty starts of the command, and ss among a thousand flows
def test_thousand_flows_and_a_download_outlive_twenty_reloads(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    with (
        embedded(net.internet),
        embedded(net.internet, port=1081),
        running_engine(net.client, run_dir, "-c", str(config.path)) as engine,
        listening(net, TARGET_V4) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        flows = [flow(net, server) for _ in range(FLOWS)]
        app, peer = flow(net, server)
        app.settimeout(120)
        peer.settimeout(120)
        text = pseudo_random(200 * MIB)
        arrived = pool.submit(receive, app, len(text))
        piece, reloads = len(text) // RELOADS, 0
        for reloads in range(RELOADS):
            sending = pool.submit(peer.sendall, text[reloads * piece : (reloads + 1) * piece])
            config.write("second" if reloads % 2 == 0 else "first")
            assert reload(net, run_dir) == "reloaded\n"
            sending.result()
            flows.append(flow(net, server))
            assert carrier(net, flows[-1][1]) == (1081 if reloads % 2 == 0 else 1080)
        assert arrived.result() == text
        flows.append((app, peer))
        for number, (app, peer) in enumerate(flows):
            app.sendall(b"%d" % number)
            assert receive(peer, len(b"%d" % number)) == b"%d" % number
            app.close()
            peer.close()
        status = engine.status()
        assert [worker.restarts for worker in status.workers] == [0, 0]
        assert status.proxy == f"socks5://{PROXY_V4}:1080"


def test_signal_reloads_as_the_command_does(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    with (
        embedded(net.internet),
        embedded(net.internet, port=1081),
        running_engine(net.client, run_dir, "-c", str(config.path)) as engine,
        listening(net, TARGET_V4) as server,
    ):
        config.write("second")
        engine.signal(signal.SIGHUP)
        wait_until(lambda: "reloaded: new flows" in engine.log, what="the reload")
        app, peer = flow(net, server)
        assert carrier(net, peer) == 1081
        app.close()
        peer.close()


@pytest.mark.parametrize("how", ["command", "signal"])
def test_configuration_with_an_error_changes_nothing_and_says_why(
    net: Topology, run_dir: Path, config: ConfigFile, how: str
) -> None:
    with (
        embedded(net.internet),
        running_engine(net.client, run_dir, "-c", str(config.path)) as engine,
        listening(net, TARGET_V4) as server,
    ):
        config.write("nobody")
        place = f"{config.path}:1:"
        if how == "command":
            with pytest.raises(AssertionError, match="exit 2: ") as caught:
                reload(net, run_dir)
            told = str(caught.value)
            assert "engine: not reloaded: the engine goes on with what it had" in told
        else:
            engine.signal(signal.SIGHUP)
            wait_until(lambda: "not reloaded" in engine.log, what="the error")
            told = engine.log
        assert place in told and "nobody" in told
        app, peer = flow(net, server)
        app.close()
        peer.close()


def test_file_that_is_gone(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    with running_engine(net.client, run_dir, "-c", str(config.path)):
        config.path.unlink()
        with pytest.raises(AssertionError, match=r"(?s)exit 2: .*No such file.*not reloaded"):
            reload(net, run_dir)


def test_what_has_to_wait_is_named(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    with running_engine(net.client, run_dir, "-c", str(config.path)) as engine:
        config.write("second", tun={"mtu": 1400})
        reload(net, run_dir)
        assert "tun.mtu: takes effect at the next start" in engine.log
        status = engine.status()
        assert (status.mtu, status.proxy) == (65535, f"socks5://{PROXY_V4}:1081")


def test_new_proxy_is_let_out_beside_the_tun(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    distant = {"type": "socks", "tag": "distant", "server": OTHER_TARGET_V4, "server_port": 1080}
    with running_engine(net.client, run_dir, "-c", str(config.path)) as engine:
        tun = engine.status().interface
        assert net.client.route_to(OTHER_TARGET_V4)["dev"] == tun
        config.write("distant", outbounds=[distant])
        reload(net, run_dir)
        assert net.client.route_to(OTHER_TARGET_V4)["dev"] == "uplink"


def test_rules_are_swapped_too(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    with (
        embedded(net.internet),
        running_engine(net.client, run_dir, "-c", str(config.path)),
        listening(net, TARGET_V4) as server,
        listening(net, OTHER_TARGET_V4) as other,
    ):
        app, peer = flow(net, server)
        config.write("first", rules=[{"ip_cidr": [f"{TARGET_V4}/32"], "action": "reject"}])
        reload(net, run_dir)
        with pytest.raises(OSError):
            connect(net.client, server.getsockname())
        newcomer = flow(net, other)
        app.sendall(b"lives on")
        assert receive(peer, 8) == b"lives on"
        for sock in (app, peer, *newcomer):
            sock.close()


def test_worker_that_is_started_later_follows_it(net: Topology, run_dir: Path, config: ConfigFile) -> None:
    with (
        embedded(net.internet),
        embedded(net.internet, port=1081),
        running_engine(net.client, run_dir, "-c", str(config.path), workers=1) as engine,
        listening(net, TARGET_V4) as server,
    ):
        config.write("second")
        reload(net, run_dir)
        (worker,) = engine.status().workers
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: engine.status().workers[0].restarts == 1, what="the successor")
        wait_until(lambda: engine.status().workers[0].state == "running", what="the successor")
        app, peer = flow(net, server)
        assert carrier(net, peer) == 1081
        app.close()
        peer.close()


def test_engine_without_a_file_has_its_proxy_looked_up_again(net: Topology, run_dir: Path) -> None:
    with running_engine(net.client, run_dir, proxy=f"socks5://{PROXY_V4}:1080"):
        assert reload(net, run_dir) == "reloaded\n"


def test_no_engine(net: Topology, run_dir: Path) -> None:
    with pytest.raises(AssertionError, match="exit 1: engine: no engine is running"):
        reload(net, run_dir)
