"""UDP through the engine: sizes, fragments, mapping, filtering, DNS, and ICMP echo."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.demo.service import Service
from tests.support.engine import Bed
from tests.support.engine import bed as make_bed
from tests.support.netns import OTHER_TARGET_V4, TARGET_V4, TARGET_V6
from tests.support.sockets import pseudo_random, udp_socket
from tests.support.upstreams import needs, targets

pytestmark = pytest.mark.e2e

SIZES = (0, 1, 1200, 1472, 1473, 4000, 9000, 65507)  # bytes of payload; 1472 is the most that 1500 hold in IPv4
FAMILIES = {"ipv4": ("0.0.0.0", TARGET_V4), "ipv6": ("::", TARGET_V6)}


@pytest.fixture(scope="module")
def narrow_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """With the MTU of Ethernet on the tun: larger datagrams are fragments there."""
    with make_bed(tmp_path_factory.mktemp("narrow") / "run", "--mtu", "1500") as made:
        yield made


@pytest.mark.parametrize("mtu", ["65535", "1500"])
@pytest.mark.parametrize("family", FAMILIES)
def test_datagram_of_any_size_is_echoed_whole(bed: Bed, narrow_bed: Bed, mtu: str, family: str) -> None:
    net = bed.net if mtu == "65535" else narrow_bed.net
    wildcard, host = FAMILIES[family]
    with targets(net.internet), udp_socket(net.client, wildcard) as app:
        for size in SIZES:
            payload = pseudo_random(size)
            app.sendto(payload, (host, 7))
            answer, peer = app.recvfrom(65536)
            assert (len(answer), answer == payload, peer[:2]) == (size, True, (host, 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_socket_keeps_one_mapping_to_all_peers(bed: Bed, family: str) -> None:
    wildcard, host = FAMILIES[family]
    internet = bed.net.internet
    others = [host, host, OTHER_TARGET_V4 if family == "ipv4" else host]
    with udp_socket(bed.net.client, wildcard) as app:
        mappings = set()
        for other in others:
            with udp_socket(internet, other) as peer:
                app.sendto(b"who am I", peer.getsockname()[:2])
                mapping = peer.recvfrom(100)[1][:2]
                mappings.add(mapping[1])  # the proxy stands on the targets' machine: its address there is the target's
        assert len(mappings) == 1, "endpoint-independent mapping (RFC 4787, REQ-1)"
        with udp_socket(internet, host) as stranger:
            stranger.sendto(b"unasked", mapping)
            data, source = app.recvfrom(100)
            assert (data, source[:2]) == (b"unasked", stranger.getsockname()[:2]), "filtering (RFC 4787, REQ-8)"


def test_datagram_to_a_peer_that_is_not_there_does_no_harm(bed: Bed) -> None:
    with udp_socket(bed.net.client, "0.0.0.0") as app, udp_socket(bed.net.internet, TARGET_V4) as peer:
        app.sendto(b"nobody", (TARGET_V4, 9))
        app.sendto(b"somebody", peer.getsockname())
        assert peer.recv(100) == b"somebody"


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("server", [TARGET_V4, TARGET_V6], ids=["ipv4", "ipv6"])
def test_dig(bed: Bed, transport: str, server: str) -> None:
    dig = needs("dig", "dnsutils")
    with name_server(bed):
        answer = bed.net.client.run(dig, transport, "+short", "+time=5", f"@{server}", "host.example")
    assert answer.strip() == "192.0.2.99"


@contextmanager
def name_server(bed: Bed) -> Iterator[None]:
    """Answers for every name below `example` on both target addresses."""
    program = needs("dnsmasq", "dnsmasq-base")
    options = ["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file="]
    addresses = [f"--listen-address={address}" for address in (TARGET_V4, TARGET_V6)]
    with bed.net.internet.entered():
        service = Service("dnsmasq", [program, *options, *addresses, "--address=/example/192.0.2.99", "--user=root"])
    with service:
        service.wait_for("started", 10)
        yield


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("size", ["56", "3000"])
def test_ping_is_answered(bed: Bed, host: str, size: str) -> None:
    ping = needs("ping", "iputils-ping")
    out = bed.net.client.run(ping, "-c", "3", "-i", "0.01", "-W", "5", "-s", size, host)
    assert "3 received" in out
