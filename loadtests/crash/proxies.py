"""The proxy dies and comes back, hangs and goes on, or is slow."""

import json
import os
import signal
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import sleep

from loadtests.crash.report import Finding, Row
from loadtests.crash.traffic import FLOWS, WAIT, Pair, Stage, close, patient, stage, surviving
from tests.support.netns import OTHER_TARGET_V4, PROXY_V4, Topology, wait_until
from tests.support.sockets import flow, listening
from tests.support.upstreams import embedded

__all__ = ["ROWS", "proxy_pid"]

STOPPED_FOR, RUNNING_FOR = 0.2, 0.05  # seconds: a slow proxy
SLOW_TURNS = 40


def proxy_pid(net: Topology, port: int = 1080) -> int:
    """Process id of the SOCKS server that listens at this port."""
    line = net.internet.run("ss", "-Hltnp", f"sport = :{port}")
    return int(line.split("pid=")[1].split(",")[0])


def _carries(made: Stage) -> bool:
    """Whether a new flow carries a byte; it is closed again."""
    try:
        ((app, peer),) = made.flows(1)
    except OSError:
        return False
    with app, peer:
        try:
            app.sendall(b"x")
            return peer.recv(1) == b"x"
        except OSError:
            return False


def _dies(finding: Finding, quick: bool) -> None:
    """Of two proxies one dies; the other's flows go on, and new ones once it is back."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as proxies:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(_two_proxies()))
        with stage("-c", str(config), proxy=None) as made, listening(made.net, OTHER_TARGET_V4) as other:
            proxies.enter_context(embedded(made.net.internet, port=1081))
            for _ in range(3 if quick else 20):
                with ExitStack() as proxy:
                    proxy.enter_context(embedded(made.net.internet))
                    doomed = made.flows(FLOWS // 2)
                    kept = [patient(flow(made.net, other)) for _ in range(FLOWS // 2)]
                    with surviving(finding, made.pool, kept):
                        os.kill(proxy_pid(made.net), signal.SIGKILL)
                        for app, _ in doomed:
                            if not _ends(app):
                                finding.problems.append("a flow through the dead proxy was not ended")
                        with finding.recovering(), embedded(made.net.internet):
                            wait_until(lambda: _carries(made), WAIT, what="a flow through the proxy that is back")
                    close(kept + doomed)
                finding.times += 1


def _ends(app: socket.socket) -> bool:
    """Whether a connection is ended by the other side."""
    try:
        return app.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def _two_proxies() -> object:
    return {
        "inbounds": [{"type": "tun", "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True}],
        "outbounds": [
            {"type": "socks", "tag": "first", "server": PROXY_V4, "server_port": 1080},
            {"type": "socks", "tag": "second", "server": PROXY_V4, "server_port": 1081},
        ],
        "route": {"final": "first", "rules": [{"ip_cidr": [f"{OTHER_TARGET_V4}/32"], "outbound": "second"}]},
    }


def _hangs(finding: Finding, quick: bool) -> None:
    """Nothing gets through for three seconds; then everything that was under way arrives."""
    with stage() as made:
        for _ in range(3 if quick else 10):
            pairs: list[Pair] = made.flows(FLOWS)
            proxy = proxy_pid(made.net)
            with surviving(finding, made.pool, pairs) as arrived:
                os.kill(proxy, signal.SIGSTOP)
                sleep(3.0)  # the fault itself
                with finding.recovering():
                    os.kill(proxy, signal.SIGCONT)
                    arrived()
            close(pairs)
            finding.times += 1


def _slow(finding: Finding, quick: bool) -> None:
    """The proxy runs for a fifth of the time."""
    with stage() as made:
        for _ in range(1 if quick else 5):
            pairs: list[Pair] = made.flows(FLOWS)
            proxy = proxy_pid(made.net)
            with surviving(finding, made.pool, pairs) as arrived:
                for _ in range(SLOW_TURNS):
                    os.kill(proxy, signal.SIGSTOP)
                    sleep(STOPPED_FOR)  # the fault itself
                    os.kill(proxy, signal.SIGCONT)
                    sleep(RUNNING_FOR)
                with finding.recovering():
                    arrived()
            close(pairs)
            finding.times += 1


ROWS = [
    Row("proxy-killed", "proxy killed and started again, flows of another proxy", _dies),
    Row("proxy-hangs", "proxy hangs for 3 s (SIGSTOP) and goes on, all flows", _hangs),
    Row("proxy-slow", "proxy runs for a fifth of the time, all flows", _slow),
]
