"""The machine moves to another network while the engine runs: new flows go on by the new way, without a restart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.demo.service import Service
from tests.support.engine import ENGINE
from tests.support.netns import OTHER_TARGET_V4, TARGET_V4, Topology, ip
from tests.support.sockets import flow, listening, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

HERE, THERE = "192.0.3.2", "192.0.3.1"


def second_link(net: Topology) -> None:
    """Another network to the same internet, as Wi-Fi is beside a cable."""
    ip(*f"link add wifi netns {net.client.name} type veth peer name hotspot netns {net.internet.name}".split())
    net.internet.run("ip", "addr", "add", f"{THERE}/24", "dev", "hotspot")
    net.internet.run("ip", "link", "set", "hotspot", "up")
    net.client.run("ip", "addr", "add", f"{HERE}/24", "dev", "wifi")
    net.client.run("ip", "link", "set", "wifi", "up")


@contextmanager
def started(net: Topology, run_dir: Path, proxy: str, *options: str) -> Iterator[None]:
    """An engine; the network changes under it, and is not compared afterwards."""
    command = (*ENGINE, "start", "--proxy", proxy, "--run-dir", str(run_dir), *options)
    with Service("engine", net.client.command(*command)) as engine:
        engine.wait_for("ready", 30)
        yield
    assert engine.process.returncode == 0
    assert "Traceback" not in engine.output


@pytest.mark.parametrize("options", [(), ("--kill-switch",)], ids=["", "kill switch"])
def test_default_route_moves_to_another_interface(net: Topology, run_dir: Path, options: tuple[str, ...]) -> None:
    second_link(net)
    with (
        embedded(net.internet, host=OTHER_TARGET_V4) as url,
        started(net, run_dir, url, *options),
        listening(net, TARGET_V4) as server,
    ):
        app, peer = flow(net, server)
        net.client.run("ip", "route", "replace", "default", "via", THERE, "dev", "wifi")
        net.client.run("ip", "link", "set", "uplink", "down")
        newcomer, its_peer = flow(net, server)
        newcomer.sendall(b"by the new way")
        assert receive(its_peer, 14) == b"by the new way"
        assert f"src {HERE}" in net.client.run("ip", "route", "get", OTHER_TARGET_V4)
        # And back: the connection of before has outlived it.
        net.client.run("ip", "link", "set", "uplink", "up")
        net.client.run("ip", "route", "replace", "default", "via", "192.0.2.1", "dev", "uplink")
        app.sendall(b"still here")
        assert receive(peer, 10) == b"still here"
        for sock in (app, peer, newcomer, its_peer):
            sock.close()
