"""`engine start -c FILE`: the article's configuration, and one of each era of sing-box, drive a running engine."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.demo.service import Service
from tests.engine.config.test_legacy import ONE_EIGHT, ONE_FOURTEEN
from tests.support.engine import ENGINE, running_engine
from tests.support.netns import CLIENT_V4, OTHER_TARGET_V4, PROXY_V4, TARGET_V4, Namespace, Topology, wait_until
from tests.support.sockets import connect, flow, tcp_server
from tests.support.upstreams import embedded, needs, targets

pytestmark = pytest.mark.e2e

ARTICLE = Path(__file__).parents[1] / "engine" / "config" / "article.json"


def page(net: Topology, host: str = TARGET_V4) -> str:
    """Fetch the page that every target serves, with no proxy setting anywhere."""
    return net.client.run(needs("curl", "curl"), "-sS", "--max-time", "20", f"http://{host}/page")


PAGE = hashlib.sha256(b"/page").hexdigest()


@contextmanager
def local_v2ray(client: Namespace, work: Path) -> Iterator[None]:
    """V2Ray as on a user's own machine: SOCKS at 127.0.0.1:1080, its server elsewhere."""
    config = {
        "log": {"loglevel": "warning"},
        "inbounds": [{"listen": "127.0.0.1", "port": "1080", "protocol": "socks", "settings": {"auth": "noauth"}}],
        "outbounds": [{"protocol": "socks", "settings": {"servers": [{"address": PROXY_V4, "port": 1080}]}}],
    }
    path = work / "v2ray.json"
    path.write_bytes(msgspec.json.encode(config))
    with client.entered():
        service = Service("local v2ray", [needs("v2ray", "v2ray"), "-config", str(path)])
    with service:
        wait_until(lambda: "127.0.0.1" in client.run("ss", "-Hltn", "sport = :1080"), what="the local proxy")
        yield


def test_the_articles_configuration_runs_as_its_author_meant_it(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(ARTICLE.read_text().replace("3.xxx.xx.82", PROXY_V4))
    with (
        targets(net.internet),
        embedded(net.internet),
        local_v2ray(net.client, tmp_path),
        running_engine(net.client, run_dir, "-c", str(config)) as engine,
    ):
        net.refuse_direct()
        assert page(net) == PAGE
        assert engine.status().interface == "utun8"
        assert "198.18.0.1/16" in net.client.run("ip", "-4", "addr", "show", "dev", "utun8")
        assert 'this machine has no interface "en0"' in engine.log
        assert net.direct_packets() == 0


def test_as_it_was_printed_it_does_not_start_and_says_what_to_write(net: Topology, run_dir: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        net.client.run(*ENGINE, "start", "-c", str(ARTICLE), "--run-dir", str(run_dir))
    told = str(caught.value)
    assert (
        ": exit 2: " in told
        and "article.json:69:1: route.rules[3].ip_cidr[0]: '3.xxx.xx.82/32' is a placeholder" in told
    )
    assert not run_dir.exists()


def written(path: Path, config: dict[str, Any]) -> str:
    """Write a configuration whose proxy is the embedded one."""
    outbounds = [dict(outbound) for outbound in config["outbounds"]]
    for outbound in outbounds:
        if outbound["type"] == "socks":
            outbound["server"] = PROXY_V4
    path.write_text(json.dumps({**config, "outbounds": outbounds}))
    return str(path)


@pytest.mark.parametrize("config", [ONE_EIGHT, ONE_FOURTEEN], ids=["1.8", "1.14"])
def test_each_era_runs(net: Topology, tmp_path: Path, run_dir: Path, config: dict[str, Any]) -> None:
    with ExitStack() as stack:
        stack.enter_context(targets(net.internet))
        stack.enter_context(embedded(net.internet))
        path = written(tmp_path / "config.json", config)
        stack.enter_context(running_engine(net.client, run_dir, "-c", path))
        net.refuse_direct()
        assert page(net) == PAGE
        assert net.direct_packets() == 0


def test_the_proxy_option_comes_before_the_file(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ONE_FOURTEEN))  # with a proxy at 127.0.0.1, where none is
    with (
        targets(net.internet),
        embedded(net.internet, port=1099),
        running_engine(
            net.client, run_dir, "-c", str(path), "--interface", "tun9", proxy=f"socks5://{PROXY_V4}:1099"
        ) as engine,
    ):
        net.refuse_direct()
        assert page(net) == PAGE
        assert (engine.status().interface, engine.status().proxy) == ("tun9", f"socks5://{PROXY_V4}:1099")


def test_log_goes_to_the_file_of_the_configuration(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    config, output = tmp_path / "config.json", tmp_path / "engine.log"
    config.write_text(json.dumps({**ONE_FOURTEEN, "log": {"level": "error", "output": str(output)}}))
    service = Service(
        "engine", net.client.command(*ENGINE, "start", "-c", str(config), "--run-dir", str(run_dir), "--metrics", "off")
    )
    with service:
        wait_until(
            lambda: output.exists() and "ready" in output.read_text(), timeout=30, what="an engine that is ready"
        )
    assert service.output == ""
    assert output.read_text().count("\n") == 1  # whatever the level, this one line is there


RULES = [
    {"ip_cidr": f"{OTHER_TARGET_V4}/32", "network": "tcp,udp", "outbound": "direct"},
    {"port": 2525, "action": "reject"},
    {"type": "logical", "mode": "and", "rules": [{"port_range": "3000:3999"}, {"ip_is_private": True, "invert": True}],
     "outbound": "block"},
]  # fmt: skip


def test_rules_lead_flows_where_the_file_says(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    """Whoever comes through the proxy comes from its machine; who comes directly, from the client's."""
    outbounds = [*ONE_FOURTEEN["outbounds"], {"type": "block", "tag": "block"}]
    config = {**ONE_FOURTEEN, "outbounds": outbounds, "route": {"rules": RULES}}
    with ExitStack() as stack:
        stack.enter_context(embedded(net.internet))
        stack.enter_context(running_engine(net.client, run_dir, "-c", written(tmp_path / "config.json", config)))
        for host, source in (TARGET_V4, TARGET_V4), (OTHER_TARGET_V4, CLIENT_V4):
            with tcp_server(net.internet, host, 7000) as server:
                app, peer = flow(net, server)
                with app, peer:
                    assert peer.getpeername()[0] == source
        for port in 2525, 3500:
            with pytest.raises(ConnectionRefusedError):
                connect(net.client, (TARGET_V4, port))


def test_explain_says_what_the_engine_does(net: Topology, tmp_path: Path) -> None:
    config = {**ONE_FOURTEEN, "route": {"rules": RULES[:2]}}
    path = written(tmp_path / "config.json", config)
    direct = net.client.run(*ENGINE, "explain", f"{OTHER_TARGET_V4}:7000", "-c", path)
    assert direct.splitlines()[-1].startswith("outbound direct, by ")
    assert (
        net.client.run(*ENGINE, "explain", f"{TARGET_V4}:2525", "-c", path).splitlines()[-1].startswith("reject, by ")
    )


def test_an_imported_v2ray_configuration_runs(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    """The file of the proxy that runs on this machine is all that the user has."""
    with ExitStack() as stack:
        stack.enter_context(targets(net.internet))
        stack.enter_context(embedded(net.internet))
        stack.enter_context(local_v2ray(net.client, tmp_path))
        config = tmp_path / "imported.json"
        config.write_text(net.client.run(*ENGINE, "import", "v2ray", str(tmp_path / "v2ray.json")))
        stack.enter_context(running_engine(net.client, run_dir, "-c", str(config)))
        net.refuse_direct()
        assert page(net) == PAGE
        assert net.direct_packets() == 0
