"""--kill-switch: nothing leaves but through the tun, to the LAN, and by the engine; neither while it runs nor after a crash."""

import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.demo.service import Service
from tests.support.engine import ENGINE, Engine, running_engine
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
from tests.support.sockets import connect, flow, listening, tcp_server, udp_socket
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

LAN_V4, LAN_V6 = "192.0.2.50", "2001:db8:1::50"  # another machine on the client's link
TARGETS = [TARGET_V4, TARGET_V6]
BEHIND_THE_TUN = ["198.18.0.2", "fdfe:dcba:9876::2"]  # its own networks, such as its name server
REFUSED = {errno.EHOSTUNREACH, errno.EACCES, errno.ECONNREFUSED}  # how ICMP "administratively prohibited" reads
PROXY = f"socks5://{PROXY_V4}:1080"


@pytest.fixture
def neighbours(net: Topology) -> Iterator[list[socket.socket]]:
    """Servers on the LAN."""
    net.internet.run("ip", "addr", "add", f"{LAN_V4}/24", "dev", "downlink")
    net.internet.run("ip", "addr", "add", f"{LAN_V6}/64", "dev", "downlink", "nodad")
    with listening(net, LAN_V4) as v4, listening(net, LAN_V6) as v6:
        yield [v4, v6]


@contextmanager
def crashed(net: Topology, run_dir: Path) -> Iterator[None]:
    """An engine with a kill switch has been killed, and its guardian has done its work."""
    with killable(net, run_dir) as engine:
        engine.signal(signal.SIGKILL)
        assert engine.exit_code() == -signal.SIGKILL
        wait_until(lambda: "the kill switch lets nothing out" in engine.log, what="the guardian")
        yield


@contextmanager
def killable(net: Topology, run_dir: Path, *options: str, proxy: str = PROXY) -> Iterator[Engine]:
    with running_engine(net.client, run_dir, "--kill-switch", *options, proxy=proxy) as engine:
        yield engine


def leaves(net: Topology, host: str) -> bool:
    """Whether the client reaches a server on the internet."""
    with listening(net, host) as server:
        try:
            app, peer = flow(net, server)
        except OSError as error:
            assert error.errno in REFUSED, error
            return False
        app.close()
        peer.close()
        return True


def datagram_leaves(net: Topology, host: str, port: int = 53) -> bool:
    with udp_socket(net.client, "::" if ":" in host else "0.0.0.0") as sender:
        sender.connect((host, port))
        try:
            sender.send(b"a question")
        except OSError as error:
            assert error.errno in REFUSED | {errno.EPERM}, error
            return False
        return True


def test_while_it_runs_only_what_is_proxied_or_local_passes(
    net: Topology, run_dir: Path, neighbours: list[socket.socket]
) -> None:
    with embedded(net.internet) as url, killable(net, run_dir, proxy=url) as engine:
        assert engine.status().kill_switch
        for host in TARGETS:
            assert leaves(net, host), "through the proxy"
        for server in neighbours:
            app, peer = flow(net, server)
            app.close()
            peer.close()
        net.refuse_direct()
        for host, family in (TARGET_V4, socket.AF_INET), (TARGET_V6, socket.AF_INET6):
            with net.client.entered(), socket.socket(family, socket.SOCK_STREAM) as evader:
                evader.settimeout(1)
                evader.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"uplink")
                with pytest.raises(OSError):  # a time-out: the refusal comes by lo, to which it is not bound
                    evader.connect((host, 80))
        assert net.direct_packets() == 0


@pytest.mark.parametrize("how_it_opens", ["repair", "stop"])
def test_crash_lets_nothing_out_until_it_is_opened(
    net: Topology, run_dir: Path, neighbours: list[socket.socket], how_it_opens: str
) -> None:
    before = net.client.snapshot()
    with crashed(net, run_dir):
        assert net.client.snapshot()["rules v4"] == before["rules v4"]
        for server in neighbours:
            app, peer = flow(net, server)
            app.close()
            peer.close()
        with tcp_server(net.internet, PROXY_V4, 1080):
            connect(net.client, (PROXY_V4, 1080)).close()
        for server in neighbours:
            assert not datagram_leaves(net, server.getsockname()[0]), "a question of DNS to the router"
        net.refuse_direct()
        for host in TARGETS:
            assert not leaves(net, host)
            assert not datagram_leaves(net, host)
        for host in BEHIND_THE_TUN:
            assert not datagram_leaves(net, host, 5353)
        assert net.direct_packets() == 0
        assert "undone" in net.client.run(*ENGINE, how_it_opens, "--run-dir", str(run_dir))
        assert datagram_leaves(net, TARGET_V4)
        assert net.client.snapshot() == before


def test_next_start_goes_on_and_its_stop_opens(net: Topology, run_dir: Path) -> None:
    before = net.client.snapshot()
    with crashed(net, run_dir):
        net.refuse_direct()
        with embedded(net.internet) as url, started_again(net, run_dir, url, "--kill-switch"):
            assert leaves(net, TARGET_V4)
        assert net.direct_packets() == 0
        assert net.client.snapshot() == before


def test_next_start_without_it_opens(net: Topology, run_dir: Path) -> None:
    before = net.client.snapshot()
    with crashed(net, run_dir):
        with started_again(net, run_dir, PROXY):
            assert "tunloom" not in net.client.snapshot()["nft"]
        assert net.client.snapshot() == before


@contextmanager
def started_again(net: Topology, run_dir: Path, proxy: str, *options: str) -> Iterator[None]:
    start = ("start", "--proxy", proxy, "--run-dir", str(run_dir), "--workers", "1")
    with Service("engine", net.client.command(*ENGINE, *start, *options)) as engine:
        engine.wait_for("ready", 30)
        yield
    assert engine.process.returncode == 0


def test_start_that_fails_after_a_crash_stays_closed(net: Topology, run_dir: Path) -> None:
    with crashed(net, run_dir):
        net.client.run("ip", "rule", "add", "priority", "9003", "lookup", "100")
        with pytest.raises(AssertionError, match=r"(?s)routing rule of another program.*"):
            net.client.run(*ENGINE, "start", "--proxy", PROXY, "--kill-switch", "--run-dir", str(run_dir))
        net.client.run("ip", "rule", "del", "priority", "9003")
        assert not leaves(net, TARGET_V4)
        net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))


def test_start_that_fails_opens_what_it_has_closed(net: Topology, run_dir: Path) -> None:
    """Nothing was promised yet."""
    before = net.client.snapshot()
    net.client.run("ip", "rule", "add", "priority", "9003", "lookup", "100")
    with pytest.raises(AssertionError, match="routing rule of another program"):
        net.client.run(*ENGINE, "start", "--proxy", PROXY, "--kill-switch", "--run-dir", str(run_dir))
    net.client.run("ip", "rule", "del", "priority", "9003")
    assert net.client.snapshot() == before


def test_engine_that_fails_stays_closed(net: Topology, run_dir: Path) -> None:
    with killable(net, run_dir, "--interface", "tl0") as engine:
        net.client.run("ip", "link", "del", "tl0")
        assert engine.exit_code() == 1
        assert "the kill switch lets nothing out" in engine.log
        assert not leaves(net, TARGET_V4)
        net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))
        assert leaves(net, TARGET_V4)


def test_inbound_connections_live_on(net: Topology, run_dir: Path) -> None:
    """The ssh session from afar in which somebody types `engine start --kill-switch`, and the next one."""
    with tcp_server(net.client, CLIENT_V4, 22) as v4, tcp_server(net.client, CLIENT_V6, 22) as v6:
        sources = [(v4, OTHER_TARGET_V4), (v6, TARGET_V6)]
        sessions = [call(net, server, source) for server, source in sources]
        with killable(net, run_dir) as engine:
            for session, _ in sessions:
                session.sendall(b"the server speaks first")
            sessions += [call(net, server, source) for server, source in sources]
            check(sessions)
            engine.signal(signal.SIGKILL)
            engine.exit_code()
            wait_until(lambda: "the kill switch lets nothing out" in engine.log, what="the guardian")
            check(sessions)
            for session, caller in sessions:
                session.close()
                caller.close()
            net.client.run(*ENGINE, "repair", "--run-dir", str(run_dir))


def call(net: Topology, server: socket.socket, source: str) -> tuple[socket.socket, socket.socket]:
    with net.internet.entered():
        caller = socket.create_connection(server.getsockname()[:2], timeout=10, source_address=(source, 0))
    return server.accept()[0], caller


def check(sessions: list[tuple[socket.socket, socket.socket]]) -> None:
    for session, caller in sessions:
        session.sendall(b"$ ")
        while not caller.recv(100).endswith(b"$ "):
            pass
        caller.sendall(b"ls")
        assert session.recv(2) == b"ls"


def test_needs_the_routes(net: Topology, run_dir: Path) -> None:
    with pytest.raises(AssertionError, match="exit 2: engine: the kill switch needs the routes"):
        net.client.run(
            *ENGINE, "start", "--proxy", PROXY, "--kill-switch", "--no-auto-route", "--run-dir", str(run_dir)
        )


def test_needs_nft(net: Topology, run_dir: Path) -> None:
    without = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    with pytest.raises(AssertionError, match=r"(?s)exit 1:.*install the package nftables"):
        net.client.run(
            *("unshare", "--mount", "sh", "-c", without, "sh"),
            *(*ENGINE, "start", "--proxy", PROXY, "--kill-switch", "--run-dir", str(run_dir)),
        )
