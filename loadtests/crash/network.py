"""Interfaces go down and up, and the default route moves to another one."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from loadtests.crash.report import Finding, Row
from loadtests.crash.traffic import FLOWS, WAIT, Stage, close, patient, stage, surviving, under_flows
from tests.support.engine import running_engine
from tests.support.netns import (
    CLIENT_V6,
    OTHER_TARGET_V4,
    PROXY_V4,
    PROXY_V6,
    TARGET_V4,
    Topology,
    ip,
    topology,
    wait_until,
)
from tests.support.sockets import flow, listening, receive
from tests.support.upstreams import embedded

__all__ = ["ROWS"]

HERE, THERE = "192.0.3.2", "192.0.3.1"


def _tun_down_and_up(made: Stage) -> None:
    interface = made.engine.status().interface
    routes = made.net.client.run("ip", "route", "show", "table", "2022")
    for state in "down", "up":
        made.net.client.run("ip", "link", "set", interface, state)
    wait_until(
        lambda: made.net.client.run("ip", "route", "show", "table", "2022") == routes,
        WAIT,
        what="the routes made again",
    )


def _uplink_up(net: Topology) -> None:
    """Set the uplink up, and give it back what the kernel has taken, as a network manager does."""
    net.client.run("ip", "link", "set", "uplink", "up")
    for address in f"{CLIENT_V6}/64", "fe80::2/64":
        net.client.run("ip", "addr", "add", address, "dev", "uplink", "nodad")
    net.client.run("ip", "-4", "route", "replace", "default", "via", PROXY_V4)
    net.client.run("ip", "-6", "route", "replace", "default", "via", PROXY_V6)


def _uplink_down_and_up(finding: Finding, quick: bool) -> None:
    with stage() as made:
        for _ in range(3 if quick else 10):
            pairs = made.flows(FLOWS)
            with surviving(finding, made.pool, pairs) as arrived:
                made.net.client.run("ip", "link", "set", "uplink", "down")
                with finding.recovering():
                    _uplink_up(made.net)
                    arrived()
            close(pairs)
            finding.times += 1


def _default_route_moves(finding: Finding, quick: bool) -> None:
    """To another interface, while the first is down, and back; new flows take the new way, those of before wait."""
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        ip(*f"link add wifi netns {net.client.name} type veth peer name hotspot netns {net.internet.name}".split())
        for namespace, address, name in (net.internet, THERE, "hotspot"), (net.client, HERE, "wifi"):
            namespace.run("ip", "addr", "add", f"{address}/24", "dev", name)
            namespace.run("ip", "link", "set", name, "addrgenmode", "none", "up")
        wait_until(
            lambda: (
                "multicast ff00::/8" in net.client.run("ip", "-6", "route", "show", "table", "local", "dev", "wifi")
            ),
            what="the kernel's own routes of the link",
        )
        # The kernel lists the routes of interfaces in the order in which they came up.
        net.client.run("ip", "link", "set", "uplink", "down")
        _uplink_up(net)
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()), "run")
        url = stack.enter_context(embedded(net.internet, host=OTHER_TARGET_V4))
        stack.enter_context(running_engine(net.client, run_dir, proxy=url))
        server = stack.enter_context(listening(net, TARGET_V4))
        pool = stack.enter_context(ThreadPoolExecutor(4 * FLOWS))
        for _ in range(3 if quick else 10):
            pairs = [patient(flow(net, server)) for _ in range(FLOWS)]
            with surviving(finding, pool, pairs) as arrived:
                with finding.recovering():
                    net.client.run("ip", "route", "replace", "default", "via", THERE, "dev", "wifi")
                    net.client.run("ip", "link", "set", "uplink", "down")
                    app, peer = flow(net, server)
                    app.sendall(b"by the new way")
                    if receive(peer, 14) != b"by the new way":
                        finding.problems.append("a new flow did not carry what it was given")
                net.client.run("ip", "route", "del", "default")
                _uplink_up(net)
                arrived()
            close([*pairs, (app, peer)])
            finding.times += 1


ROWS = [
    Row(
        "tun-down-up",
        "tun set down and up (kill switch), all flows",
        under_flows(_tun_down_and_up, "--kill-switch"),
    ),
    Row("uplink-down-up", "the machine's interface set down and up, all flows", _uplink_down_and_up),
    Row("default-route", "default route moved to another interface and back, all flows", _default_route_moves),
]
