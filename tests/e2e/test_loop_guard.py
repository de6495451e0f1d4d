"""A proxy on the machine itself, with no rule that lets it out: its own traffic must not be carried to itself.

client: application ── tun ── engine ── 127.0.0.1:1080 v2ray ── vmess ──► internet: v2ray server at SERVER ── target
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.demo.service import Service
from tests.support.dns_servers import OTHER_SERVER, unbound
from tests.support.engine import Engine, running_engine
from tests.support.netns import (
    CLIENT_V4,
    CLIENT_V6,
    OTHER_TARGET_V4,
    TARGET_V4,
    TARGET_V6,
    Namespace,
    Topology,
    ip,
    namespace,
    wait_until,
)
from tests.support.sockets import connect, flow, listening, udp_socket
from tests.support.upstreams import (
    needs,
    targets,
    tinyproxy_process,
    v2ray_process,
    vmess_client,
    vmess_server,
)

pytestmark = pytest.mark.e2e

SERVER = OTHER_TARGET_V4
SECOND_SERVER = "198.51.100.20"
PROXY = "socks5://127.0.0.1:1080"


@pytest.fixture
def servers(net: Topology, tmp_path: Path) -> Iterator[None]:
    """The vmess server, and targets for UDP."""
    with vmess_server(net.internet, tmp_path, host=SERVER), targets(net.internet):
        yield


def assert_carried(net: Topology) -> None:
    """TCP and UDP reach the target through the vmess server: the target sees it, and not the client."""
    for host in TARGET_V4, TARGET_V6:
        with listening(net, host) as server:
            app, peer = flow(net, server)
            with app, peer:
                assert peer.getpeername()[0] not in (CLIENT_V4, CLIENT_V6)
                app.sendall(b"hello")
                assert peer.recv(100) == b"hello"
                peer.sendall(b"back")
                assert app.recv(100) == b"back"
    # A proxy that has just started may have been asked for UDP just before: that counts for a second.
    wait_until(lambda: datagram_comes_back(net), what="an answer by UDP")


def datagram_comes_back(net: Topology) -> bool:
    with udp_socket(net.client, "0.0.0.0") as sock:
        sock.connect((TARGET_V4, 7))
        try:
            sock.send(b"datagram")
            return sock.recv(100) == b"datagram"
        except ConnectionRefusedError:
            return False


def device(net: Topology, host: str) -> str:
    return str(net.client.route_to(host)["dev"])


def carried(engine: Engine) -> int:
    return sum(worker.tcp_opened for worker in engine.status().workers)


@pytest.mark.usefixtures("servers")
def test_proxy_of_the_machine_is_let_out_and_its_server_routed_around_the_tun(
    net: Topology, tmp_path: Path, run_dir: Path
) -> None:
    with vmess_client(net.client, tmp_path, server=SERVER), running_engine(net.client, run_dir, proxy=PROXY) as engine:
        wait_until(lambda: "the proxy at 127.0.0.1 port 1080 is v2ray (pid " in engine.log)
        assert device(net, SERVER) == "tun0"
        assert_carried(net)
        wait_until(lambda: device(net, SERVER) == "uplink", what="the route around the tun")
        assert device(net, TARGET_V4) == "tun0"
        assert f"{SERVER} is a server of the proxy on this machine" in engine.log
        before = carried(engine)
        assert_carried(net)
        assert carried(engine) - before == 2, "the proxy's own connections come to us no more"


@pytest.mark.usefixtures("servers")
def test_proxy_may_start_later_restart_and_change_its_server(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    net.internet.run("ip", "addr", "add", f"{SECOND_SERVER}/32", "dev", "lo")
    with running_engine(net.client, run_dir, proxy=PROXY) as engine:
        wait_until(lambda: "the proxy on this machine is not running (yet)" in engine.log)
        with listening(net, TARGET_V4) as server, pytest.raises(OSError, match="unreachable"):
            flow(net, server)
        for _ in range(2):
            with vmess_client(net.client, tmp_path, server=SERVER):
                assert_carried(net)
        wait_until(lambda: device(net, SERVER) == "uplink", what="the route around the tun")
        with (
            vmess_server(net.internet, tmp_path, host=SECOND_SERVER),
            vmess_client(net.client, tmp_path, server=SECOND_SERVER),
        ):
            assert device(net, SECOND_SERVER) == "tun0"
            assert_carried(net)
            wait_until(lambda: device(net, SECOND_SERVER) == "uplink", what="the route around the tun")


def test_what_the_proxy_sends_out_directly_is_let_out_for_this_flow_alone(
    net: Topology, tmp_path: Path, run_dir: Path
) -> None:
    """V2Ray's own rules may say `direct`: then it opens the application's connection itself, to the same address."""
    inbound = {"listen": "127.0.0.1", "port": 1080, "protocol": "socks", "settings": {"udp": True, "ip": "127.0.0.1"}}
    with (
        targets(net.internet),
        v2ray_process(net.client, tmp_path, inbound, {"protocol": "freedom"}, host="127.0.0.1", port=1080),
        running_engine(net.client, run_dir, proxy=PROXY) as engine,
    ):
        for host in TARGET_V4, TARGET_V6, TARGET_V4:
            with listening(net, host) as server:
                app, peer = flow(net, server)
                with app, peer:
                    assert peer.getpeername()[0] in (CLIENT_V4, CLIENT_V6)
                    app.sendall(b"hello")
                    assert peer.recv(100) == b"hello"
        for _ in range(3):
            with udp_socket(net.client, "0.0.0.0") as sock:
                sock.connect((TARGET_V4, 7))
                sock.send(b"datagram")
                assert sock.recv(100) == b"datagram"
        assert device(net, TARGET_V4) == "tun0" and device(net, TARGET_V6) == "tun0"
        assert "is a server of the proxy" not in engine.log
        assert carried(engine) == 6, "each once from the application, and once from the proxy"


@pytest.mark.usefixtures("servers")
def test_others_of_the_proxys_user_are_not_let_out(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    """Proxy and applications run as the same user here, as on every desktop."""
    with vmess_client(net.client, tmp_path, server=SERVER), running_engine(net.client, run_dir, proxy=PROXY):
        for _ in range(5):
            with listening(net, TARGET_V4) as server:
                app, peer = flow(net, server)
                with app, peer:
                    assert peer.getpeername()[0] != CLIENT_V4


@pytest.mark.usefixtures("servers")
def test_chain_of_proxies_on_the_machine_is_followed(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    """The proxy that the engine knows is not the one whose connections leave."""
    config = tmp_path / "tinyproxy.conf"
    config.write_text("Port 8888\nListen 127.0.0.1\nTimeout 60\nLogLevel Warning\nupstream socks5 127.0.0.1:1081\n")
    with (
        vmess_client(net.client, tmp_path, server=SERVER, port=1081),
        tinyproxy_process(net.client, config),
        running_engine(net.client, run_dir, proxy="http://127.0.0.1:8888") as engine,
        listening(net, TARGET_V4) as server,
    ):
        for _ in range(2):
            app, peer = flow(net, server)
            with app, peer:
                assert peer.getpeername()[0] != CLIENT_V4
                app.sendall(b"hello")
                assert peer.recv(100) == b"hello"
            wait_until(lambda: "the proxy at 127.0.0.1 port 1081 is v2ray (pid " in engine.log)
        wait_until(lambda: device(net, SERVER) == "uplink", what="the route around the tun")


CONTAINER, CLIENT_IN_CONTAINER_NET = "10.9.0.2", "10.9.0.1"


@pytest.fixture
def container(net: Topology) -> Iterator[Namespace]:
    """A namespace behind the client, as a container is: what it sends is forwarded, and has no socket on the client."""
    with namespace("container") as made:
        with net.client.entered():
            ip("link", "add", "bridge0", "type", "veth", "peer", "name", "eth0", "netns", made.name)
            ip("addr", "add", f"{CLIENT_IN_CONTAINER_NET}/24", "dev", "bridge0")
            ip("link", "set", "bridge0", "addrgenmode", "none", "up")
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with made.entered():
            ip("addr", "add", f"{CONTAINER}/24", "dev", "eth0")
            ip("link", "set", "eth0", "addrgenmode", "none", "up")
            ip("route", "add", "default", "via", CLIENT_IN_CONTAINER_NET)
        yield made


@pytest.mark.usefixtures("servers")
def test_circle_that_nobody_can_see_is_cut_and_named_and_the_named_rule_opens_it(
    net: Topology, container: Namespace, tmp_path: Path, run_dir: Path
) -> None:
    rule = f'{{"source_ip_cidr":"{CONTAINER}/32","outbound":"direct"}}'
    with (
        vmess_client(container, tmp_path, server=SERVER, host=CONTAINER),
        running_engine(net.client, run_dir, proxy=f"socks5://{CONTAINER}:1080") as engine,
        listening(net, TARGET_V4) as server,
        connect(net.client, server.getsockname()) as app,
    ):
        # V2Ray says that it is connected before it has tried, and connects when there is something to send.
        app.send(b"hello")
        wait_until(lambda: "a circle was cut" in engine.log, 30)
        assert f"what {CONTAINER} sends to {SERVER}:8443 goes to the proxy" in engine.log
        assert rule in engine.log
        assert sum(worker.drops.get("loop", 0) for worker in engine.status().workers) > 0
    config = tmp_path / "config.json"
    config.write_text(
        f"""{{
            "inbounds": [{{"type": "tun", "address": ["172.19.0.1/30", "fdfe::1/126"], "auto_route": true}}],
            "outbounds": [
                {{"type": "socks", "tag": "proxy", "server": "{CONTAINER}", "server_port": 1080}},
                {{"type": "direct", "tag": "direct"}},
            ],
            "route": {{"rules": [{rule}], "final": "proxy"}},
        }}"""
    )
    with (
        vmess_client(container, tmp_path, server=SERVER, host=CONTAINER),
        running_engine(net.client, run_dir, "-c", str(config), proxy=None),
    ):
        assert_carried(net)


STUB = "127.0.0.53"
STUB_CONFIG = f"""
server:
    chroot: ""
    username: ""
    directory: "{{work}}"
    pidfile: ""
    use-syslog: no
    interface: {STUB}
    do-not-query-localhost: no
    module-config: "iterator"
    cache-max-ttl: 0
forward-zone:
    name: "."
    forward-addr: {OTHER_SERVER}
"""


@pytest.fixture
def stub_resolver(net: Topology, tmp_path: Path) -> Iterator[list[str]]:
    """A resolver on the client's loopback, as systemd-resolved is one; yields what lets a command use it."""
    config, resolv_conf = tmp_path / "stub.conf", tmp_path / "stub-resolv.conf"
    config.write_text(STUB_CONFIG.format(work=tmp_path))
    resolv_conf.write_text(f"nameserver {STUB}\n")
    with net.client.entered():
        service = Service("stub", [needs("unbound", "unbound"), "-d", "-c", str(config)])
    with service:
        service.wait_for("start of service", 20)
        yield ["unshare", "--mount", "sh", "-c", f"mount --bind '{resolv_conf}' /etc/resolv.conf && exec \"$@\"", "sh"]


def test_resolver_of_the_machine_may_answer_the_proxy(
    net: Topology, tmp_path: Path, run_dir: Path, stub_resolver: list[str]
) -> None:
    """V2Ray asks 127.0.0.53 for its server, and that one asks the internet: through the proxy, it would wait for itself."""
    local_data = f'local-data: "vmess.example. 0 IN A {SERVER}"'
    with (
        unbound(net.internet, tmp_path, OTHER_SERVER, name="other", options=[local_data]),
        vmess_server(net.internet, tmp_path, host=SERVER),
        targets(net.internet),
        vmess_client(net.client, tmp_path, server="vmess.example", wrapper=stub_resolver),
        running_engine(net.client, run_dir, proxy=PROXY),
    ):
        assert_carried(net)
        dig = needs("dig", "bind9-dnsutils")
        answer = net.client.run(*stub_resolver, dig, "+short", "+tries=2", "web.example")
        assert answer.split() == [TARGET_V4], "applications are answered too"
