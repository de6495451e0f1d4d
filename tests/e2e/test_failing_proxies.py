"""Proxies that restart, swallow everything, slow down, or vanish while the engine runs."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.requests import OutboundHealth
from tests.support.engine import Engine, running_engine
from tests.support.netns import OTHER_TARGET_V4, PROXY_V4, TARGET_V4, Topology, wait_until
from tests.support.sockets import flow, listening, pseudo_random, reaches, receive
from tests.support.upstreams import embedded, targets

pytestmark = pytest.mark.e2e

TIMEOUT = 60.0  # seconds
FIRST, SECOND = PROXY_V4, OTHER_TARGET_V4


def socks(tag: str, host: str, **dial: Any) -> dict[str, Any]:
    return {"type": "socks", "tag": tag, "server": host, "server_port": 1080, "connect_timeout": "2s", **dial}


def group(**changed: Any) -> dict[str, Any]:
    return {"type": "fallback", "tag": "group", "outbounds": ["first", "second"], "retry": "1h"} | changed


@contextmanager
def engine_with(
    net: Topology, run_dir: Path, path: Path, *outbounds: dict[str, Any], workers: int = 2
) -> Iterator[Engine]:
    path.write_text(json.dumps({"outbounds": list(outbounds)}))
    with running_engine(net.client, run_dir, "-c", str(path), workers=workers) as engine:
        net.refuse_direct()  # but what goes to the first proxy
        net.internet.run(
            "nft", "insert", "rule", "inet", "tunloom_test", "from_client", "ip", "daddr", SECOND, "accept"
        )
        yield engine
        assert net.direct_packets() == 0


def health(engine: Engine, tag: str) -> OutboundHealth:
    return next(outbound for outbound in engine.status().outbounds if outbound.tag == tag)


def swallow(net: Topology, host: str) -> None:
    """From now on nothing that is sent to `host`, or comes from it, arrives: no reset, no ICMP."""
    rules = "".join(
        f"add rule inet hole {chain} ip {end} {host} drop\n"
        for chain in ("input", "output")
        for end in ("saddr", "daddr")
    )
    chains = "".join(
        f"add chain inet hole {chain} {{ type filter hook {chain} priority -10; }}\n" for chain in ("input", "output")
    )
    net.internet.run("nft", "-f", "-", input=f"add table inet hole\n{chains}{rules}")


@pytest.mark.parametrize("way", ["refuses", "swallows"])
def test_what_one_worker_finds_dead_all_pass_over_and_take_again(
    net: Topology, tmp_path: Path, run_dir: Path, way: str
) -> None:
    with (
        ExitStack() as first,
        embedded(net.internet, host=SECOND),
        listening(net, TARGET_V4) as server,
    ):
        first.enter_context(embedded(net.internet, host=FIRST))
        outbounds = (group(), socks("first", FIRST), socks("second", SECOND))
        with engine_with(net, run_dir, tmp_path / "c.json", *outbounds, workers=4) as engine:
            assert reaches(net, server)
            assert health(engine, "group").used == "first"
            assert health(engine, "first").works is True
            if way == "refuses":
                first.close()
            else:
                swallow(net, FIRST)
            assert reaches(net, server), "the first flow finds out, and takes the next member"
            wait_until(lambda: health(engine, "group").used == "second", TIMEOUT, what="the other member")
            failed = health(engine, "group").passed_over
            assert failed.keys() == {"first"}
            for _ in range(24):  # of all four workers
                assert reaches(net, server)
            carrying = sum(worker.tcp_opened > 0 for worker in engine.status().workers)
            assert engine.log.count("group passes over first") < carrying, "the others were told"
            assert health(engine, "first").works is False
            assert health(engine, "second").works is True


def test_dead_member_is_taken_again_when_it_is_back(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    with embedded(net.internet, host=SECOND), listening(net, TARGET_V4) as server:
        outbounds = (group(retry="1s"), socks("first", FIRST), socks("second", SECOND))
        with engine_with(net, run_dir, tmp_path / "c.json", *outbounds, workers=3) as engine:
            assert reaches(net, server)
            wait_until(lambda: health(engine, "group").used == "second", TIMEOUT, what="the other member")
            with embedded(net.internet, host=FIRST):
                wait_until(
                    lambda: reaches(net, server) and health(engine, "group").used == "first",
                    TIMEOUT,
                    what="the first again",
                )
                assert health(engine, "group").passed_over == {}
                assert health(engine, "first").works is True


def test_urltest_group_leaves_a_member_that_dies_long_before_its_next_test(
    net: Topology, tmp_path: Path, run_dir: Path
) -> None:
    fastest = {
        "type": "urltest",
        "tag": "group",
        "outbounds": ["first", "second"],
        "interval": "1h",
        "idle_timeout": "2h",
    }
    fastest["url"] = f"http://{TARGET_V4}/page"
    with (
        ExitStack() as first,
        embedded(net.internet, host=SECOND),
        targets(net.internet),
        listening(net, TARGET_V4) as server,
    ):
        first.enter_context(embedded(net.internet, host=FIRST))
        # So much faster must the other be that the first is kept while it works.
        outbounds = (fastest | {"tolerance": 60000}, socks("first", FIRST), socks("second", SECOND))
        with engine_with(net, run_dir, tmp_path / "c.json", *outbounds, workers=3) as engine:
            assert reaches(net, server)
            assert health(engine, "group").used == "first"
            first.close()
            wait_until(
                lambda: reaches(net, server) and health(engine, "group").used == "second",
                TIMEOUT,
                what="the other member",
            )
            for _ in range(12):  # of all workers
                assert reaches(net, server)


def test_proxy_that_restarts_under_load(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    """Flows of before end cleanly, none hangs; all new ones work."""
    with ExitStack() as proxy, listening(net, TARGET_V4) as server:
        proxy.enter_context(embedded(net.internet, host=FIRST))
        with engine_with(net, run_dir, tmp_path / "c.json", socks("first", FIRST)) as engine:
            flows = [flow(net, server) for _ in range(40)]
            for app, _ in flows:
                app.sendall(b"before")
            for _, peer in flows:
                assert receive(peer, 6) == b"before"
            proxy.close()
            for app, peer in flows:
                app.settimeout(TIMEOUT)
                assert ended(app), "told of the end"
                app.close()
                peer.close()
            with embedded(net.internet, host=FIRST):
                wait_until(lambda: reaches(net, server), TIMEOUT, what="the proxy")
                for _ in range(40):
                    assert reaches(net, server)
            wait_until(
                lambda: sum(worker.tcp_active for worker in engine.status().workers) == 0,
                TIMEOUT,
                what="the end of all flows",
            )


def ended(app: socket.socket) -> bool:
    try:
        return app.recv(1) == b""
    except ConnectionResetError:
        return True


def test_proxy_that_vanishes_ends_its_flows_within_the_keep_alive(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    """As a machine without power: nothing comes any more, no FIN and no RST. One flow is idle, one has data on its way."""
    quick = socks("first", FIRST, tcp_keep_alive="2s", tcp_keep_alive_interval="1s")
    with (
        embedded(net.internet, host=FIRST),
        listening(net, TARGET_V4) as server,
        engine_with(net, run_dir, tmp_path / "c.json", quick) as engine,
    ):
        flows = [flow(net, server) for _ in range(2)]
        for app, peer in flows:
            app.sendall(b"before")
            assert receive(peer, 6) == b"before"
        swallow(net, FIRST)
        flows[1][0].sendall(b"nobody takes this")
        for app, peer in flows:
            app.settimeout(TIMEOUT)
            assert ended(app)
            app.close()
            peer.close()
        wait_until(lambda: sum(worker.tcp_active for worker in engine.status().workers) == 0, TIMEOUT, what="their end")
        assert not reaches(net, server), "a connect comes to an end, too"
        assert health(engine, "first").works is False


def test_every_byte_comes_from_a_proxy_that_slows_down(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    """What exceeds 2 MB/s on the link is dropped."""
    slow = (
        "add table inet slow\n"
        "add chain inet slow prerouting { type filter hook prerouting priority -20; }\n"
        "add rule inet slow prerouting iifname downlink meta l4proto tcp limit rate over 2 mbytes/second burst 256 kbytes drop\n"
    )
    with (
        embedded(net.internet, host=FIRST),
        listening(net, TARGET_V4) as server,
        engine_with(net, run_dir, tmp_path / "c.json", socks("first", FIRST)),
    ):
        app, peer = flow(net, server)
        data = pseudo_random(4 << 20)
        with app, peer, ThreadPoolExecutor() as threads:
            for sender, receiver in ((app, peer), (peer, app)):
                for sock in (sender, receiver):
                    sock.settimeout(TIMEOUT)
                sent = threads.submit(sender.sendall, data)
                start = receive(receiver, 1 << 20)
                if sender is app:
                    net.internet.run("nft", "-f", "-", input=slow)
                assert start + receive(receiver, len(data) - len(start)) == data
                sent.result(TIMEOUT)
