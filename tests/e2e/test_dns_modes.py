"""In every mode of DNS, and at every moment: no question and no packet of a program leaves past the proxy.

The promise: from the line `ready` until the engine is told to stop; with a kill switch from then on until somebody opens it, also
while the master is dead. Before, and after the guardian has put the network back, the machine is as it was without an
engine. Programs ask all the time; the outer interface is watched. A connection or a question that has left before `ready` is none
of the engine's, and may go on.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_TCP, IPPROTO_UDP
from typing import Any

import pytest

from engine.demo.service import Service
from tests.support.asking import asking
from tests.support.capture import Capture, Packet, capture
from tests.support.certificates import make_certificate
from tests.support.dns_servers import (
    LAN_SERVER,
    OTHER_SERVER,
    PUBLIC_SERVER,
    lan,
    names_at_the_proxy,
    public_servers,
    unbound,
)
from tests.support.engine import ENGINE, Engine, running_engine
from tests.support.netns import (
    CLIENT_V4,
    CLIENT_V6,
    PROXY_V4,
    PROXY_V6,
    TARGET_V4,
    TARGET_V6,
    Topology,
    topology,
    wait_until,
)
from tests.support.upstreams import embedded, targets

pytestmark = pytest.mark.e2e

TCP_ONLY, TLS, HTTPS = "9.9.9.1", "9.9.9.2", "9.9.9.3"
ASKED = (LAN_SERVER, TARGET_V4, OTHER_SERVER, TARGET_V6)
PROXY_PORT, NO_UDP_PORT = 1080, 1081


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Client and internet, with all servers and proxies that the modes need."""
    work = tmp_path_factory.mktemp("servers")
    certificate = make_certificate(work, "DNS:dns.example", f"IP:{HTTPS}")
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        stack.enter_context(lan(net))
        stack.enter_context(targets(net.internet))
        stack.enter_context(public_servers(net.internet, work))
        stack.enter_context(unbound(net.internet, work, TCP_ONLY, name="tcp", options=["do-udp: no"]))
        stack.enter_context(unbound(net.internet, work, TLS, name="tls", port=853, certificate=certificate))
        stack.enter_context(unbound(net.internet, work, HTTPS, name="https", port=443, certificate=certificate))
        hosts = stack.enter_context(names_at_the_proxy(work, f"{TARGET_V4} web.example", f"{TARGET_V6} web.example"))
        stack.enter_context(embedded(net.internet, wrapper=hosts))
        stack.enter_context(embedded(net.internet, host=PROXY_V6, wrapper=hosts))
        stack.enter_context(embedded(net.internet, "--no-udp", port=NO_UDP_PORT, wrapper=hosts))
        (work / "dns.pem").write_text(certificate.pem)
        Mode.certificate = str(work / "dns.pem")
        yield net


@dataclass(frozen=True)
class Mode:
    """What is written into a configuration. `dns` None: no such section."""

    dns: dict[str, Any] | None = None
    rules: tuple[dict[str, Any], ...] = ()
    server: str = PROXY_V4
    port: int = PROXY_PORT

    certificate = ""
    """Of the servers that speak TLS: for all modes."""

    def write(self, path: Path, *more: dict[str, Any]) -> None:
        """Write it to a file, with `more` rules."""
        proxy = {"type": "socks", "tag": "proxy", "server": self.server, "server_port": self.port}
        made: dict[str, Any] = {
            "outbounds": [proxy, {"type": "block", "tag": "block"}],
            "route": {"rules": [{"port": 53, "action": "hijack-dns"}, *self.rules, *more], "final": "proxy"},
        }
        if self.dns is not None:
            made["dns"] = self.dns
        path.write_text(json.dumps(made).replace("CERTIFICATE", self.certificate))


def through_the_proxy(kind: str, server: str, **more: Any) -> dict[str, Any]:
    """A configuration's DNS with one server."""
    return {"servers": [{"type": kind, "tag": "dns", "server": server, "detour": "proxy", **more}]}


FAKE = {
    "servers": [
        {"type": "tcp", "tag": "tcp", "server": PUBLIC_SERVER, "detour": "proxy"},
        {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15", "inet6_range": "fc00::/18"},
    ],
    "rules": [{"query_type": ["A", "AAAA"], "server": "fake"}],
}
TRUSTED = {"certificate_path": "CERTIFICATE"}
MODES = {
    "rule-alone": Mode(),
    "udp": Mode(through_the_proxy("udp", PUBLIC_SERVER)),
    "tcp": Mode(through_the_proxy("tcp", TCP_ONLY)),
    "tls": Mode(through_the_proxy("tls", TLS, tls={"server_name": "dns.example", **TRUSTED})),
    "https": Mode(through_the_proxy("https", HTTPS, tls=TRUSTED)),
    "fakeip": Mode(FAKE),
    "reverse-mapping": Mode(through_the_proxy("udp", PUBLIC_SERVER) | {"reverse_mapping": True}),
    "sniffed-name": Mode(
        through_the_proxy("udp", PUBLIC_SERVER), rules=({"action": "sniff", "override_destination": True},)
    ),
    "no-udp": Mode(through_the_proxy("udp", PUBLIC_SERVER), port=NO_UDP_PORT),
    "ipv6-proxy": Mode(server=PROXY_V6),
}


class Watch:
    """The outer interface from `ready` on."""

    def __init__(self, seen: Capture) -> None:
        self._seen = seen
        self._before = len(seen.read())

    def leaks(self) -> list[Packet]:
        """Return what the client has sent past the proxy since."""
        return [packet for packet in self._seen.read()[self._before :] if packet.leaves and _is_leak(packet)]


def _is_leak(packet: Packet) -> bool:
    """Connections from before go on, with an address of the link; and the kernel says it to servers, the LAN's among them,
    when an answer comes too late (ICMP port unreachable)."""
    if packet.destination in (PROXY_V4, PROXY_V6) or packet.destination.startswith(("fe80:", "ff0", "224.", "239.")):
        return False
    if packet.protocol == IPPROTO_TCP:
        return packet.opens or packet.source not in (CLIENT_V4, CLIENT_V6)
    return packet.protocol == IPPROTO_UDP or packet.destination not in ASKED


def kill_a_worker(engine: Engine) -> None:
    """And wait for its successor."""
    worker = engine.status().workers[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(
        lambda: (now := engine.status().workers[0]).restarts == worker.restarts + 1 and now.state == "running",
        timeout=60,
        what="the successor",
    )


@pytest.mark.parametrize("mode", [None, *MODES])
def test_nothing_leaves_from_ready_until_stop(world: Topology, tmp_path: Path, run_dir: Path, mode: str | None) -> None:
    path = tmp_path / "config.json"
    options: tuple[str, ...] = ()
    if mode is not None:
        MODES[mode].write(path)
        options = ("-c", str(path))
    with capture(world.client, "uplink") as seen, asking(world.client, ASKED, "web.example") as programs:
        wait_until(lambda: len(seen.to_port(53)) > 10, timeout=60, what="questions before the start")
        url = f"socks5://{PROXY_V4}:{PROXY_PORT}" if mode is None else None
        with running_engine(world.client, run_dir, *options, proxy=url) as engine:
            watch = Watch(seen)
            programs.wait_for_more()
            kill_a_worker(engine)
            programs.wait_for_more()
            if mode is not None:
                MODES[mode].write(path, {"domain": ["blocked.example"], "outbound": "block"})
            world.client.run(*ENGINE, "reload", "--run-dir", str(run_dir))
            programs.wait_for_more()
            assert watch.leaks() == []
        before = len(seen.read())
        wait_until(lambda: len(seen.to_port(53)) > before, timeout=60, what="questions after the stop")
        programs.stop()


@pytest.mark.parametrize("mode", ["udp", "fakeip"])
def test_behind_a_kill_switch_nothing_leaves_at_any_moment(
    world: Topology, tmp_path: Path, run_dir: Path, mode: str
) -> None:
    """A worker and the master are killed, and another is started; until that one is told to stop nothing leaves."""
    path = tmp_path / "config.json"
    MODES[mode].write(path)
    options = ("-c", str(path), "--kill-switch")
    with capture(world.client, "uplink") as seen, asking(world.client, ASKED, "web.example") as programs:
        with running_engine(world.client, run_dir, *options) as engine:
            watch = Watch(seen)
            programs.wait_for_more()
            kill_a_worker(engine)
            programs.wait_for_more()
            engine.signal(signal.SIGKILL)
            assert engine.exit_code() == -signal.SIGKILL
            wait_until(lambda: "the kill switch lets nothing out" in engine.log, timeout=60, what="the guardian")
            assert watch.leaks() == []
            again = [*ENGINE, "start", *options, "--workers", "2", "--run-dir", str(run_dir)]
            with Service("engine", world.client.command(*again)) as successor:
                successor.wait_for("ready", 60)
                programs.wait_for_more()
                assert watch.leaks() == []
            assert successor.process.returncode == 0
        programs.stop()


def test_a_killed_master_leaves_the_machine_as_it_was(world: Topology, tmp_path: Path, run_dir: Path) -> None:
    """Without a kill switch questions go directly again, once the guardian has done its work: names are found without us."""
    with capture(world.client, "uplink") as seen, asking(world.client, (OTHER_SERVER,), "web.example") as programs:
        with running_engine(world.client, run_dir, proxy=f"socks5://{PROXY_V4}:{PROXY_PORT}") as engine:
            watch = Watch(seen)
            programs.wait_for_more()
            assert watch.leaks() == []
            engine.signal(signal.SIGKILL)
            assert engine.exit_code() == -signal.SIGKILL
            programs.wait_for_more()
            assert {packet.destination for packet in watch.leaks()} >= {OTHER_SERVER, TARGET_V4, TARGET_V6}
        programs.stop()
