"""What goes into the tun and what does not."""

import socket
from pathlib import Path

import pytest

from engine.netconf.bypass import add_bypass
from tests.support.engine import Engine, running_engine
from tests.support.netns import CLIENT_V4, CLIENT_V6, OTHER_TARGET_V4, PROXY_V4, TARGET_V4, TARGET_V6, Topology
from tests.support.sockets import connect, flow, listening, tcp_server, udp_socket
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

LAN_V4, LAN_V6 = "192.0.2.50", "2001:db8:1::50"  # another machine on the client's link
DIRECT_PROXY = f"socks5://{PROXY_V4}:1080"


def opened(engine: Engine) -> int:
    """Return how many TCP flows the engine has carried so far."""
    return sum(worker.tcp_opened for worker in engine.status().workers)


@pytest.mark.parametrize(("own", "neighbour"), [(CLIENT_V4, LAN_V4), (CLIENT_V6, LAN_V6)], ids=["ipv4", "ipv6"])
def test_lan_stays_direct(net: Topology, run_dir: Path, own: str, neighbour: str) -> None:
    prefix, nodad = ("64", ["nodad"]) if ":" in neighbour else ("24", [])
    net.internet.run("ip", "addr", "add", f"{neighbour}/{prefix}", "dev", "downlink", *nodad)
    with running_engine(net.client, run_dir, proxy=DIRECT_PROXY) as engine, listening(net, neighbour) as server:
        app, peer = flow(net, server)
        with app, peer:
            assert peer.getpeername()[0] == own
        with (
            udp_socket(net.internet, neighbour) as printer,
            udp_socket(net.client, "::" if ":" in own else "0.0.0.0") as app,
        ):
            app.sendto(b"print", printer.getsockname()[:2])
            assert printer.recvfrom(100)[1][0] == own
        assert opened(engine) == 0


def test_address_of_a_distant_proxy_stays_direct(net: Topology, run_dir: Path) -> None:
    """It lies behind the default route, so that only the exclusion keeps it out of the tun."""
    with (
        embedded(net.internet, host=OTHER_TARGET_V4) as url,
        running_engine(net.client, run_dir, proxy=url) as engine,
        listening(net, OTHER_TARGET_V4) as at_the_proxy,
        listening(net, TARGET_V4) as elsewhere,
    ):
        app, peer = flow(net, at_the_proxy)
        with app, peer:
            assert peer.getpeername()[0] == CLIENT_V4
        assert opened(engine) == 0
        app, peer = flow(net, elsewhere)
        with app, peer:
            assert peer.getpeername()[0] != CLIENT_V4
        assert opened(engine) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", CLIENT_V4, "::", CLIENT_V6])
def test_server_of_this_machine_stays_reachable_from_afar(net: Topology, run_dir: Path, host: str) -> None:
    own, afar = (CLIENT_V6, TARGET_V6) if ":" in host else (CLIENT_V4, TARGET_V4)
    with (
        tcp_server(net.client, host) as server,
        running_engine(net.client, run_dir, proxy=DIRECT_PROXY) as engine,
        net.internet.entered(),
        socket.create_connection((own, server.getsockname()[1]), timeout=10, source_address=(afar, 0)) as visitor,
        server.accept()[0] as session,
    ):
        visitor.sendall(b"GET /")
        assert session.recv(100) == b"GET /"
        session.sendall(b"200")
        assert visitor.recv(100) == b"200"
        assert opened(engine) == 0


def test_nothing_goes_past_the_proxy(net: Topology, run_dir: Path) -> None:
    with embedded(net.internet, "--no-udp") as url, running_engine(net.client, run_dir, proxy=url):
        net.refuse_direct()
        for wildcard, host in ("0.0.0.0", TARGET_V4), ("::", TARGET_V6):
            with listening(net, host) as server:
                app, peer = flow(net, server)
                app.close()
                peer.close()
            with pytest.raises(ConnectionRefusedError):
                connect(net.client, (host, 9))
            with udp_socket(net.client, wildcard) as datagrams:
                datagrams.connect((host, 443))
                datagrams.send(b"no DNS")
                with pytest.raises(ConnectionRefusedError):
                    datagrams.recv(1)
        assert net.direct_packets() == 0


def test_without_auto_route_no_rule_and_no_route_changes(net: Topology, run_dir: Path) -> None:
    before = net.client.snapshot()
    options = ("--no-auto-route", "--interface", "tl0")
    with embedded(net.internet) as url, running_engine(net.client, run_dir, *options, proxy=url) as engine:
        during = net.client.snapshot()
        assert (during["rules v4"], during["rules v6"]) == (before["rules v4"], before["rules v6"])
        others = [route for route in during["routes v4"] + during["routes v6"] if route.get("dev") != "tl0"]
        assert others == before["routes v4"] + before["routes v6"]
        net.client.run("ip", "route", "add", TARGET_V4, "dev", "tl0")
        try:
            with listening(net, TARGET_V4) as server:
                app, peer = flow(net, server)
                with app, peer:
                    app.sendall(b"by a route of the user's own")
                    assert peer.recv(100) == b"by a route of the user's own"
        finally:
            net.client.run("ip", "route", "del", TARGET_V4, "dev", "tl0")
        assert opened(engine) == 1


def test_engine_enters_the_namespace_it_is_told(net: Topology, run_dir: Path) -> None:
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--interface", "tl0", proxy=url, netns_option=True) as engine,
        listening(net, TARGET_V4) as server,
    ):
        assert engine.status().interface == "tl0"
        assert "tl0" in net.client.run("ip", "link")
        app, peer = flow(net, server)
        app.close()
        peer.close()
        assert opened(engine) == 1


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6], ids=["ipv4", "ipv6"])
def test_flow_outlives_the_moment_in_which_its_destination_is_routed_around_the_tun(
    net: Topology, run_dir: Path, host: str
) -> None:
    """It has the tun's address, with which nothing would come back from elsewhere."""
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url),
        listening(net, host) as server,
    ):
        app, peer = flow(net, server)
        with app, peer:
            with net.client.entered():
                assert add_bypass(run_dir, [host]) == 0
            app.sendall(b"still here")
            assert peer.recv(100) == b"still here"
            peer.sendall(b"so am I")
            assert app.recv(100) == b"so am I"
            later, later_peer = flow(net, server)
            with later, later_peer:
                assert later_peer.getpeername()[0] in (CLIENT_V4, CLIENT_V6), "past the proxy"
