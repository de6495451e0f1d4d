"""A real dnsmasq behind the proxy: answers of another make than unbound's, over UDP and TCP, also to what it does not have."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.demo.service import Service
from tests.support.dns_servers import LAN_SERVER, PUBLIC_SERVER, lan
from tests.support.engine import running_engine
from tests.support.netns import TARGET_V4, TARGET_V6, Topology, ip, wait_until
from tests.support.upstreams import embedded, needs

pytestmark = pytest.mark.e2e


@pytest.fixture
def dnsmasq(net: Topology, tmp_path: Path) -> Iterator[None]:
    """At PUBLIC_SERVER, for the zone `example`; what it does not know it does not forward."""
    records = [
        f"--host-record=web.example,{TARGET_V4},{TARGET_V6}",
        "--cname=www.example,web.example",
        "--txt-record=who.example,dnsmasq",
        "--local=/example/",
        *(f"--txt-record=long.example,{n:0>200}" for n in range(20)),
    ]
    options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--pid-file=",
        "--user=root",
    ]
    options += ["--bind-interfaces", f"--listen-address={PUBLIC_SERVER}", "--local-ttl=300", "--log-facility=-"]
    program = needs("dnsmasq", "dnsmasq-base")
    with net.internet.entered():
        ip("addr", "add", PUBLIC_SERVER, "dev", "lo")
        service = Service("dnsmasq", [program, *options, *records])
    with service:
        listens = ("ss", "-Hlun", f"src {PUBLIC_SERVER}:53")
        wait_until(
            lambda: service.process.poll() is not None or PUBLIC_SERVER in net.internet.run(*listens),
            timeout=30,
            what="dnsmasq",
        )
        assert service.process.poll() is None, service.output
        yield


@pytest.mark.usefixtures("dnsmasq")
@pytest.mark.parametrize("udp", [True, False], ids=["udp", "no-udp"])
def test_its_answers_come_through(net: Topology, run_dir: Path, udp: bool) -> None:
    def dig(*question: str, server: str = PUBLIC_SERVER) -> str:
        return net.client.run(needs("dig", "dnsutils"), "+tries=3", "+time=20", f"@{server}", *question)

    with (
        lan(net),
        embedded(net.internet, *(() if udp else ("--no-udp",))) as url,
        running_engine(net.client, run_dir, proxy=url),
    ):
        net.refuse_direct()
        for transport in "+notcp", "+tcp":
            assert dig(transport, "+short", "who.example", "TXT").strip() == '"dnsmasq"'
            assert dig(transport, "+short", "who.example", "TXT", server=LAN_SERVER).strip() == '"dnsmasq"'
            assert dig(transport, "+short", "www.example", "A").split() == ["web.example.", TARGET_V4]
            assert dig(transport, "+short", "web.example", "AAAA").strip() == TARGET_V6
            assert "status: NXDOMAIN" in dig(transport, "nothing.example", "A")
            nodata = dig(transport, "web.example", "TXT")
            assert "status: NOERROR" in nodata and "ANSWER: 0" in nodata
        assert "ANSWER: 20" in dig("+bufsize=1232", "long.example", "TXT"), "truncated over UDP, whole over TCP"
        assert net.direct_packets() == 0
