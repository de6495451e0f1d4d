"""A running engine with rules: each flow takes the outbound that the file says, and another one when a proxy dies."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import Engine, running_engine
from tests.support.netns import (
    CLIENT_V4,
    CLIENT_V6,
    OTHER_TARGET_V4,
    PROXY_V4,
    TARGET_V4,
    TARGET_V6,
    Topology,
    wait_until,
)
from tests.support.sockets import Endpoint, connect, tcp_server, udp_socket
from tests.support.upstreams import embedded, targets

pytestmark = pytest.mark.e2e

ONE, TWO = 1080, 1081
PORTS = {"one": ONE, "two": TWO}
PROXIES = [
    {"type": "socks", "tag": tag, "server": PROXY_V4, "server_port": port} for tag, port in (("one", ONE), ("two", TWO))
]
TUN = {"type": "tun", "address": ["172.18.0.1/30", "fdfe:dcba:9876::1/126"], "auto_route": True}


@contextmanager
def engine(
    net: Topology, run_dir: Path, tmp_path: Path, outbounds: list[dict[str, Any]], rules: list[dict[str, Any]]
) -> Iterator[Engine]:
    """An engine with the two proxies, and these outbounds before them."""
    config = {
        "inbounds": [TUN],
        "outbounds": [*outbounds, *PROXIES, {"type": "direct", "tag": "direct"}, {"type": "block", "tag": "block"}],
        "route": {"rules": rules, "auto_detect_interface": True},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with running_engine(net.client, run_dir, "-c", str(path), "--metrics", "off") as running:
        yield running


def way_of(net: Topology, target: Endpoint, first: bytes = b"hello") -> str:
    """Connect to a server of ours, send `first`, and tell by which way it came."""
    with tcp_server(net.internet, *target) as server, connect(net.client, server.getsockname()[:2]) as client:
        client.sendall(first)
        accepted, peer = server.accept()
        with accepted:
            assert accepted.recv(len(first)) == first
            accepted.sendall(b"world")
            assert client.recv(5) == b"world"
            return holder(net, peer)


def holder(net: Topology, peer: Endpoint) -> str:
    """Whose socket `peer`, the other end of a connection to a target, is: a proxy's, or the client's own."""
    host, port = peer[:2]
    if host in (CLIENT_V4, CLIENT_V6):
        return "direct"
    literal = f"[{host}]" if ":" in host else host
    owner = _pid(net.internet.run("ss", "-Htnp", "state", "established", f"src {literal}:{port}"))
    listeners = {_pid(net.internet.run("ss", "-Hltnp", f"sport = :{at}")): tag for tag, at in PORTS.items()}
    return listeners[owner]


def _pid(listing: str) -> str:
    found = re.search(r"pid=(\d+)", listing)
    return found[1] if found else ""


def answered(net: Topology, target: Endpoint, data: bytes = b"datagram") -> bool:
    """Send a datagram to an echo server; False: port unreachable came back."""
    with udp_socket(net.client, "::" if ":" in target[0] else "0.0.0.0") as sock:
        sock.connect(target)
        sock.send(data)
        try:
            return sock.recv(65536) == data
        except ConnectionRefusedError:
            return False


def datagram_by(net: Topology, host: str) -> str:
    """Send a datagram to a socket of ours and tell by which way it came."""
    with udp_socket(net.internet, host) as server, udp_socket(net.client, "::" if ":" in host else "0.0.0.0") as client:
        client.sendto(b"datagram", server.getsockname()[:2])
        data, peer = server.recvfrom(100)
        assert data == b"datagram"
        if peer[0] in (CLIENT_V4, CLIENT_V6):
            return "direct"
        owner = _pid(net.internet.run("ss", "-Hunap", f"sport = :{peer[1]}"))
        return {_pid(net.internet.run("ss", "-Hltnp", f"sport = :{at}")): tag for tag, at in PORTS.items()}[owner]


def test_each_flow_takes_the_outbound_of_its_rule(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    rules = [
        {"ip_cidr": f"{TARGET_V4}/32", "port": 2001, "outbound": "two"},
        {"ip_cidr": f"{TARGET_V4}/32", "port_range": "2002:2003", "outbound": "direct"},
        {"network": "udp", "ip_version": 6, "outbound": "two"},
        {"network": "udp", "ip_cidr": TARGET_V4, "outbound": "direct"},
        {"ip_cidr": OTHER_TARGET_V4, "outbound": "block"},
        {"port": 2004, "action": "reject"},
    ]
    with (
        targets(net.internet),
        embedded(net.internet, port=ONE),
        embedded(net.internet, port=TWO),
        engine(net, run_dir, tmp_path, [], rules),
    ):
        assert way_of(net, (TARGET_V4, 2000)) == "one"
        assert way_of(net, (TARGET_V4, 2001)) == "two"
        assert way_of(net, (TARGET_V4, 2002)) == "direct"
        assert way_of(net, (TARGET_V6, 2003)) == "one"
        for target in ((OTHER_TARGET_V4, 2000), (TARGET_V4, 2004)):
            with tcp_server(net.internet, *target), pytest.raises(ConnectionRefusedError):
                connect(net.client, target)
        with pytest.raises(ConnectionRefusedError):
            connect(net.client, (TARGET_V4, 2002))  # nobody listens there, and the direct way says so
        assert datagram_by(net, TARGET_V4) == "direct"
        assert datagram_by(net, TARGET_V6) == "two"
        assert not answered(net, (OTHER_TARGET_V4, 7))


def test_largest_datagrams_go_directly(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    with (
        targets(net.internet),
        embedded(net.internet, port=ONE),
        engine(net, run_dir, tmp_path, [], [{"network": "udp", "outbound": "direct"}]),
    ):
        for host in TARGET_V4, TARGET_V6:
            assert answered(net, (host, 7), bytes(range(256)) * 255 + bytes(227))


def test_sniffed_name_decides(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    rules = [{"action": "sniff"}, {"domain_suffix": "example.com", "outbound": "two"}]
    with (
        embedded(net.internet, port=ONE),
        embedded(net.internet, port=TWO),
        engine(net, run_dir, tmp_path, [], rules),
    ):
        for host, expected in (("www.example.com", "two"), ("example.org", "one")):
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            assert way_of(net, (TARGET_V4, 80), request) == expected


def test_fallback_carries_on_when_a_proxy_dies(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    group = {"type": "fallback", "tag": "group", "outbounds": ["one", "two"]}
    with ExitStack() as stack, targets(net.internet):
        first = stack.enter_context(ExitStack())
        first.enter_context(embedded(net.internet, port=ONE))
        stack.enter_context(embedded(net.internet, port=TWO))
        running = stack.enter_context(engine(net, run_dir, tmp_path, [group], []))
        assert way_of(net, (TARGET_V4, 2000)) == "one"
        assert answered(net, (TARGET_V4, 7))
        first.close()
        # One connect of the application each: the flow itself is carried by the next member.
        assert way_of(net, (TARGET_V4, 2000)) == "two"
        assert answered(net, (TARGET_V4, 7))
        assert "group passes over one for 30 s" in running.log


def test_urltest_leaves_a_proxy_that_dies(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    group = {
        "type": "urltest",
        "tag": "auto",
        "outbounds": ["one", "two"],
        "url": f"http://{TARGET_V4}/page",
        "interval": "300ms",
        "tolerance": 0,
    }
    with ExitStack() as stack, targets(net.internet):
        proxies = {tag: stack.enter_context(ExitStack()) for tag in ("one", "two")}
        proxies["one"].enter_context(embedded(net.internet, port=ONE))
        proxies["two"].enter_context(embedded(net.internet, port=TWO))
        running = stack.enter_context(engine(net, run_dir, tmp_path, [group], []))
        before = way_of(net, (TARGET_V4, 2000))
        proxies[before].close()
        other = "two" if before == "one" else "one"

        def is_left() -> bool:
            """All workers use the other one."""
            try:
                return [way_of(net, (TARGET_V4, 3000 + n)) for n in range(8)] == [other] * 8
            except OSError:
                return False

        wait_until(is_left, timeout=20, what=f"the group to leave {before}:\n{running.log}")
