"""The Clash API and `engine flows` of a running engine: what is shown is what flows, and what is asked is done."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.engine import ENGINE, Engine, running_engine
from tests.support.http import request
from tests.support.netns import PROXY_V4, TARGET_V4, Topology, topology, wait_until
from tests.support.sockets import flow, listening
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

CONFIG: dict[str, Any] = {
    "dns": {"servers": [{"type": "hosts", "tag": "names", "predefined": {"a.example": TARGET_V4}}]},
    "inbounds": [{"type": "tun", "address": ["198.18.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True}],
    "outbounds": [
        {"type": "selector", "tag": "choice", "outbounds": ["one", "two"]},
        {"type": "socks", "tag": "one", "server": PROXY_V4, "server_port": 1080},
        {"type": "socks", "tag": "two", "server": PROXY_V4, "server_port": 1080},
        {"type": "direct", "tag": "direct"},
    ],
    "route": {"rules": [{"port": [9999], "outbound": "two"}], "final": "choice"},
}
Bed = tuple[Topology, Engine]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("clash")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with ExitStack() as stack:
        net = stack.enter_context(topology())
        stack.enter_context(embedded(net.internet))
        options = ("-c", str(folder / "config.json"))
        yield net, stack.enter_context(running_engine(net.client, folder / "run", *options, proxy=None))


def get(api: Bed, path: str) -> Any:
    answer = request(api[0].client, path)
    assert answer.status == 200, answer
    return answer.json


def shown(api: Bed, port: int) -> list[dict[str, Any]]:
    """Connections from a local port."""
    return [c for c in get(api, "/connections")["connections"] if c["metadata"]["sourcePort"] == str(port)]


def engine_flows(api: Bed, *options: str) -> Any:
    command = [*ENGINE, "flows", "--json", "--run-dir", str(api[1].run_dir), *options]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)["flows"]


def test_what_stands_still(api: Bed) -> None:
    assert get(api, "/version")["version"].startswith("tunloom ")
    assert get(api, "/configs")["mode"] == "rule"
    proxies = get(api, "/proxies")["proxies"]
    assert proxies["one"]["type"] == "Socks5"
    assert proxies["choice"]["all"] == ["one", "two"]
    assert proxies["GLOBAL"]["now"] == "choice"
    assert [rule["proxy"] for rule in get(api, "/rules")["rules"]][-2:] == ["two", "choice"]
    answer = get(api, "/dns/query?name=a.example&type=A")
    assert (answer["Status"], answer["Answer"][0]["data"]) == (0, TARGET_V4)
    assert request(api[0].client, "/cache/dns/flush", method="POST").status == 204
    assert request(api[0].client, "/proxies/nobody").status == 404
    assert request(api[0].client, "/cache/fakeip/flush", method="POST").status == 400
    assert request(api[0].client, "/configs", method="PATCH", body={"mode": "rule"}).status == 204


def test_connection_is_shown_and_closed(api: Bed) -> None:
    with listening(api[0], TARGET_V4) as server:
        app, peer = flow(api[0], server)
        with app, peer:
            app.sendall(b"hello")
            assert peer.recv(10) == b"hello"
            (connection,) = shown(api, app.getsockname()[1])
            assert (connection["upload"], connection["chains"][-1]) == (5, "choice")
            assert connection["metadata"]["destinationIP"] == TARGET_V4
            (live,) = engine_flows(api, "--filter", f"id={connection['id']}")
            assert (live["up"], live["chain"][0], live["state"]) == (5, "choice", "established")
            assert live["process"]["name"].startswith("python")
            assert request(api[0].client, f"/connections/{connection['id']}", method="DELETE").status == 204
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            wait_until(lambda: not shown(api, app.getsockname()[1]), what="the end of the connection")


def test_selector_is_switched_for_new_flows(api: Bed) -> None:
    for member in ("two", "one"):
        assert request(api[0].client, "/proxies/choice", method="PUT", body={"name": member}).status == 204
        assert get(api, "/proxies/choice")["now"] == member
        with listening(api[0], TARGET_V4) as server:
            app, peer = flow(api[0], server)
            with app, peer:
                (connection,) = shown(api, app.getsockname()[1])
                assert connection["chains"] == [member, "choice"]
    wrong = request(api[0].client, "/proxies/choice", method="PUT", body={"name": "three"})
    assert (wrong.status, "no member three" in wrong.json["message"]) == (400, True)
    assert request(api[0].client, "/proxies/one", method="PUT", body={"name": "two"}).status == 400


def test_usage_outlives_the_flows(api: Bed) -> None:
    command = [*ENGINE, "usage", "--by", "domain", "--json", "--run-dir", str(api[1].run_dir)]

    def totals() -> dict[str, int]:
        told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        return {total["name"]: total["flows"] for total in told["totals"]}

    with listening(api[0], TARGET_V4) as server:
        app, peer = flow(api[0], server)
        with app, peer:
            app.sendall(b"x")
            peer.recv(1)
    wait_until(lambda: totals().get(TARGET_V4, 0) >= 1, timeout=30, what="the flow in the accounts")


def test_wrong_options_are_one_sentence(api: Bed) -> None:
    for options in (("--sort", "speed"), ("--filter", "speed=1"), ("--close", "nonsense")):
        command = [*ENGINE, "flows", "--run-dir", str(api[1].run_dir), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("engine: --") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [("flows",), ("flows", "--json"), ("usage",), ("usage", "--json"), ("status",)])
def test_a_pipe_that_nobody_reads_is_no_traceback(api: Bed, options: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*ENGINE, *options, "--run-dir", str(api[1].run_dir)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
