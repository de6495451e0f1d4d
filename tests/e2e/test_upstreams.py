"""Every kind of proxy: an application that knows nothing of it reaches TCP and UDP servers, or is refused honestly."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import upstreams
from tests.support.engine import running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, TARGET_V6, Topology, wait_until
from tests.support.sockets import listening, reaches, udp_socket
from tests.support.upstreams import Upstream, needs, targets

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Case:
    """A proxy and what it can do."""

    start: Upstream
    ipv6: bool = True
    """It reaches IPv6 targets."""
    udp: bool = False


CASES = {
    "embedded": Case(lambda internet, _: upstreams.embedded(internet), udp=True),
    "embedded-at-ipv6": Case(upstreams.over_ipv6, udp=True),
    "embedded-without-udp": Case(lambda internet, _: upstreams.embedded(internet, "--no-udp")),
    "dante": Case(upstreams.dante, udp=True),
    "dante-password": Case(upstreams.dante_with_password, udp=True),
    "dante-socks4": Case(upstreams.dante_socks4, ipv6=False),
    "microsocks-password": Case(upstreams.microsocks),
    "ssh-D": Case(upstreams.openssh),
    "v2ray": Case(upstreams.v2ray, udp=True),
    "v2ray-without-udp": Case(upstreams.v2ray_without_udp),
    "tinyproxy-http-password": Case(upstreams.tinyproxy),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_application_without_proxy_setting_reaches_tcp_and_udp(
    net: Topology, tmp_path: Path, run_dir: Path, case: Case
) -> None:
    curl = needs("curl", "curl")
    with (
        targets(net.internet),
        case.start(net.internet, tmp_path) as url,
        running_engine(net.client, run_dir, proxy=url) as engine,
    ):
        net.refuse_direct()
        expected = hashlib.sha256(b"/page").hexdigest()
        for host in (TARGET_V4, f"[{TARGET_V6}]") if case.ipv6 else (TARGET_V4,):
            assert net.client.run(curl, "-sS", "--max-time", "20", f"http://{host}/page") == expected
        for wildcard, host in ("0.0.0.0", TARGET_V4), ("::", TARGET_V6):
            if not case.udp:
                with pytest.raises(ConnectionRefusedError):  # ICMP port unreachable, at once
                    udp_echo(net, wildcard, host)
            elif case.ipv6:
                assert udp_echo(net, wildcard, host) == b"hello"
        assert engine.status().udp.startswith("yes" if case.udp else "no: ")
        assert net.direct_packets() == 0


@pytest.mark.parametrize("said", ["0.0.0.0", "127.0.0.1"])
def test_address_for_datagrams_that_leads_nowhere_is_mended(
    net: Topology, run_dir: Path, tmp_path: Path, said: str
) -> None:
    """V2Ray says in its reply whatever stands in its configuration, as proxies behind NAT do; the proxy's own is taken."""
    settings = {"auth": "noauth", "udp": True, "ip": said}
    inbound = {"listen": PROXY_V4, "port": 1080, "protocol": "socks", "settings": settings}
    with (
        targets(net.internet),
        upstreams.v2ray_process(net.internet, tmp_path, inbound, {"protocol": "freedom"}, host=PROXY_V4, port=1080),
        running_engine(net.client, run_dir, proxy=f"socks5://{PROXY_V4}:1080") as engine,
    ):
        net.refuse_direct()
        assert udp_echo(net, "0.0.0.0", TARGET_V4) == b"hello"
        wait_until(lambda: engine.status().udp.startswith("yes"), timeout=60, what="the verdict about UDP")
        assert net.direct_packets() == 0


def udp_echo(net: Topology, wildcard: str, host: str) -> bytes:
    """Send a datagram to the echo server, return its answer. Raises OSError as the application sees it."""
    with udp_socket(net.client, wildcard) as sock:
        sock.connect((host, 7))
        sock.send(b"hello")
        return sock.recv(100)


def test_proxy_whose_name_has_moved_is_followed_and_let_out_beside_the_tun(
    net: Topology, tmp_path: Path, run_dir: Path
) -> None:
    hosts, elsewhere = tmp_path / "hosts", "198.51.100.77"
    net.internet.run("ip", "addr", "add", f"{elsewhere}/32", "dev", "lo")
    private = ("unshare", "--mount", "sh", "-c", f"mount --bind '{hosts}' /etc/hosts && exec \"$@\"", "sh")
    hosts.write_text(f"{PROXY_V4} proxy.example\n")
    with ExitStack() as first, listening(net, TARGET_V4) as server:
        first.enter_context(upstreams.embedded(net.internet))
        with (
            running_engine(net.client, run_dir, proxy="socks5://proxy.example:1080", wrapper=private) as engine,
            upstreams.embedded(net.internet, host=elsewhere),
        ):
            assert reaches(net, server)
            first.close()
            assert not reaches(net, server)
            assert net.client.route_to(elsewhere)["dev"] == "tun0"
            hosts.write_text(f"{elsewhere} proxy.example\n")
            wait_until(lambda: reaches(net, server), 30, what="the proxy at its new address")
            assert net.client.route_to(elsewhere)["dev"] == "uplink"
            assert f"the proxy proxy.example has moved to {elsewhere}: new flows go there" in engine.log
