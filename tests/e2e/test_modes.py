"""Mode, log level and choices, changed while the engine runs: new flows, DNS and every process follow; and what is kept."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import ENGINE, Engine, running_engine
from tests.support.http import request
from tests.support.netns import PROXY_V4, TARGET_V4, Topology, topology, wait_until
from tests.support.sockets import flow, listening
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

CONFIG: dict[str, Any] = {
    "experimental": {"cache_file": {"enabled": True}},
    "dns": {
        "servers": [
            {"type": "hosts", "tag": "usual", "predefined": {"a.example": "203.0.113.1"}},
            {"type": "hosts", "tag": "away", "predefined": {"a.example": "203.0.113.2"}},
            {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15"},
        ],
        "rules": [
            {"domain": ["fake.example"], "query_type": ["A"], "server": "fake"},
            {"clash_mode": "Away", "server": "away"},
        ],
    },
    "inbounds": [{"type": "tun", "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True}],
    "outbounds": [
        {"type": "selector", "tag": "choice", "outbounds": ["one", "two"]},
        {"type": "socks", "tag": "one", "server": PROXY_V4, "server_port": 1080},
        {"type": "socks", "tag": "two", "server": PROXY_V4, "server_port": 1080},
        {"type": "direct", "tag": "direct"},
    ],
    "route": {
        "rules": [{"clash_mode": "away", "outbound": "two"}, {"ip_cidr": TARGET_V4, "outbound": "one"}],
        "final": "choice",
    },
}
MODES = ["rule", "away", "global", "direct"]
CHAINS = {"rule": ["one"], "Away": ["two"], "global": ["one", "choice"], "direct": ["direct"]}
Bed = tuple[Topology, Engine]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("modes")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        stack.enter_context(embedded(net.internet))
        options = ("-c", str(folder / "config.json"))
        yield net, stack.enter_context(running_engine(net.client, folder / "run", *options))


def get(net: Topology, path: str) -> Any:
    answer = request(net.client, path)
    assert answer.status == 200, answer
    return answer.json


def change(net: Topology, **values: str) -> None:
    body = {name.replace("_", "-"): value for name, value in values.items()}
    answer = request(net.client, "/configs", method="PATCH", body=body)
    assert answer.status == 204, answer


def chain(net: Topology) -> list[str]:
    """Of a new flow."""
    with listening(net, TARGET_V4) as server:
        app, peer = flow(net, server)
        with app, peer:
            port = str(app.getsockname()[1])
            (found,) = (c for c in get(net, "/connections")["connections"] if c["metadata"]["sourcePort"] == port)
            chains: list[str] = found["chains"]
            return chains


def address(net: Topology, name: str) -> str:
    data: str = get(net, f"/dns/query?name={name}&type=A")["Answer"][0]["data"]
    return data


def test_new_flows_and_dns_follow_the_mode(bed: Bed) -> None:
    net, _ = bed
    assert get(net, "/configs")["mode-list"] == MODES
    # As many flows as make sure of both workers.
    for mode in ("Away", "direct", "global", "rule"):
        change(net, mode=mode)
        assert get(net, "/configs")["mode"].lower() == mode.lower()
        assert [chain(net) for _ in range(6)] == [CHAINS[mode]] * 6
        assert address(net, "a.example") == ("203.0.113.2" if mode == "Away" else "203.0.113.1")
    wrong = request(net.client, "/configs", method="PATCH", body={"mode": "nowhere"})
    assert (wrong.status, wrong.json["message"]) == (400, f"there is no mode nowhere, but {', '.join(MODES)}")


def test_a_reload_and_a_new_worker_keep_the_mode(bed: Bed) -> None:
    net, engine = bed
    change(net, mode="direct")
    net.client.run(*ENGINE, "reload", "--run-dir", str(engine.run_dir))
    assert get(net, "/configs")["mode"] == "direct"
    assert chain(net) == ["direct"]
    assert engine.status().proxy == "direct"
    pids = [worker.pid for worker in engine.status().workers]
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: all(worker.state == "running" and worker.pid not in pids for worker in engine.status().workers),
        timeout=60,
        what="new workers",
    )
    assert [chain(net) for _ in range(6)] == [["direct"]] * 6
    change(net, mode="rule")
    assert chain(net) == ["one"]


def test_mode_and_choices_outlive_the_engine(tmp_path: Path) -> None:
    """In namespaces of its own: the engine is started twice."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options = ("-c", str(tmp_path / "config.json"))
    with topology() as net, embedded(net.internet):
        with running_engine(net.client, tmp_path / "run", *options):
            change(net, mode="global")
            assert request(net.client, "/proxies/choice", method="PUT", body={"name": "two"}).status == 204
            assert chain(net) == ["two", "choice"]
        with running_engine(net.client, tmp_path / "run", *options):
            assert get(net, "/configs")["mode"] == "global"
            assert "mode global" in net.client.run(*ENGINE, "status", "--run-dir", str(tmp_path / "run"))
            assert get(net, "/proxies/choice")["now"] == "two"
            assert [chain(net) for _ in range(6)] == [["two", "choice"]] * 6


def test_every_process_follows_the_log_level(bed: Bed) -> None:
    net, engine = bed

    def port_of_a_flow() -> str:
        with listening(net, TARGET_V4) as server:
            app, peer = flow(net, server)
            with app, peer:
                return f":{app.getsockname()[1]}"

    change(net, log_level="warn")
    assert get(net, "/configs")["log-level"] == "warning"
    unsaid = [port_of_a_flow() for _ in range(6)]
    change(net, log_level="debug")
    said = [port_of_a_flow() for _ in range(6)]
    wait_until(lambda: all(port in engine.log for port in said), timeout=30, what="the flows in the log")
    assert not [port for port in set(unsaid) - set(said) if port in engine.log]
    change(net, log_level="info")
    wrong = request(net.client, "/configs", method="PATCH", body={"log-level": "loud"})
    assert (wrong.status, "no log level loud" in wrong.json["message"]) == (400, True)
    for body in ({"mode": 1}, {"log-level": []}, {"allow-lan": True}):
        assert request(net.client, "/configs", method="PATCH", body=body).status == 400


def test_fake_addresses_are_forgotten(bed: Bed) -> None:
    net, _ = bed
    first = address(net, "fake.example")
    assert address(net, "fake.example") == first
    assert request(net.client, "/cache/fakeip/flush", method="POST").status == 204
    assert address(net, "fake.example") != first
