"""DNS servers and rules of a configuration, fake addresses, and proxies without UDP."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.support.certificates import make_certificate
from tests.support.dns_servers import (
    LAN_SERVER,
    PUBLIC_SERVER,
    lan,
    names_at_the_proxy,
    public_servers,
    unbound,
    with_resolver,
)
from tests.support.engine import Engine, running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, TARGET_V6, Topology, wait_until
from tests.support.sockets import udp_socket
from tests.support.upstreams import embedded, needs, targets
from tests.workers.dns.messages import ask

pytestmark = pytest.mark.e2e

TCP_ONLY, TLS, HTTPS = "9.9.9.1", "9.9.9.2", "9.9.9.3"
SOCKS = {"type": "socks", "tag": "proxy", "server": PROXY_V4, "server_port": 1080}


def config(
    directory: Path, dns: dict[str, Any], *rules: dict[str, Any], outbounds: Sequence[dict[str, Any]] = ()
) -> str:
    """Write a configuration whose DNS is `dns`; returns its path."""
    path = directory / "config.json"
    made = {
        "dns": dns,
        "outbounds": [SOCKS, {"type": "direct", "tag": "direct"}, {"type": "block", "tag": "block"}, *outbounds],
        "route": {"rules": [{"port": 53, "action": "hijack-dns"}, *rules], "final": "proxy"},
    }
    path.write_text(json.dumps(made))
    return str(path)


def dig(net: Topology, *question: str, server: str = LAN_SERVER) -> str:
    """What dig prints."""
    return net.client.run(needs("dig", "dnsutils"), "+tries=2", "+time=15", f"@{server}", *question)


def curl(net: Topology, work: Path, url: str, *options: str) -> str:
    """Fetch by name, with a resolver on the LAN; return the status."""
    command = (needs("curl", "curl"), "-sS", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}", *options, url)
    return with_resolver(net.client, work, LAN_SERVER, *command)


def test_each_kind_of_server_is_asked_as_rules_say(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    certificate = make_certificate(tmp_path, "DNS:dns.example", f"IP:{HTTPS}")
    servers = [
        {"type": "udp", "tag": "udp", "server": PUBLIC_SERVER, "detour": "proxy"},
        {"type": "tcp", "tag": "tcp", "server": TCP_ONLY, "detour": "proxy"},
        {
            "type": "tls", "tag": "tls", "server": TLS, "detour": "proxy",
            "tls": {"server_name": "dns.example", "certificate_path": "certificate.pem"},
        },
        {"type": "https", "tag": "https", "server": HTTPS, "detour": "proxy", "tls": {"certificate_path": "certificate.pem"}},
        {"type": "hosts", "tag": "hosts", "predefined": {"router.lan": ["192.168.77.1"]}},
        {"type": "fakeip", "tag": "fake", "inet4_range": "198.19.0.0/16", "inet6_range": "fc00::/18"},
    ]  # fmt: skip
    rules = [
        {"query_type": ["TXT"], "domain_keyword": ["tcp"], "server": "tcp"},
        {"domain_suffix": [".lan"], "server": "hosts"},
        {"domain": ["refused.example"], "action": "reject"},
        {"domain": ["fixed.example"], "action": "predefined", "answer": ["fixed.example. IN A 192.0.2.77"]},
        {"domain_suffix": ["fake.example"], "query_type": ["A", "AAAA"], "server": "fake"},
        {"domain_regex": ["^tls[.]who"], "server": "tls"},
        {"domain": ["https.who.example"], "server": "https"},
    ]
    path = config(tmp_path, {"servers": servers, "rules": rules, "final": "udp", "strategy": "ipv4_only"})
    with ExitStack() as stack:
        for closed in (lan(net), embedded(net.internet), public_servers(net.internet, tmp_path)):
            stack.enter_context(closed)
        stack.enter_context(unbound(net.internet, tmp_path, TCP_ONLY, name="tcp", options=["do-udp: no"]))
        stack.enter_context(unbound(net.internet, tmp_path, TLS, name="tls", port=853, certificate=certificate))
        stack.enter_context(unbound(net.internet, tmp_path, HTTPS, name="https", port=443, certificate=certificate))
        stack.enter_context(running_engine(net.client, run_dir, "-c", path))
        net.refuse_direct()
        for name, server in (("", "public"), ("tcp.", "tcp"), ("tls.", "tls"), ("https.", "https")):
            for transport in "+notcp", "+tcp":
                assert dig(net, transport, "+short", f"{name}who.example", "TXT").strip() == f'"{server}"'
        assert dig(net, "+short", "router.lan").strip() == LAN_SERVER
        assert "status: NXDOMAIN" in dig(net, "other.lan")
        assert "status: REFUSED" in dig(net, "refused.example")
        assert dig(net, "+short", "fixed.example").strip() == "192.0.2.77"
        assert dig(net, "+short", "a.fake.example").startswith("198.19.")
        for question in ("a.fake.example", "AAAA"), ("web.example", "AAAA"):
            answer = dig(net, *question)
            assert "status: NOERROR" in answer and "ANSWER: 0" in answer, "ipv4_only"
        bindings = dig(net, "+short", "quic.example", "HTTPS")
        assert "h3,h2" in bindings and TARGET_V4 in bindings and TARGET_V6 not in bindings
        assert net.direct_packets() == 0


def test_fake_address_is_connected_by_name_and_survives_a_restart(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    servers = [
        {"type": "udp", "tag": "udp", "server": PUBLIC_SERVER, "detour": "proxy"},
        {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15", "inet6_range": "fc00::/18"},
    ]
    dns = {"servers": servers, "rules": [{"query_type": ["A", "AAAA"], "server": "fake"}]}
    path = config(tmp_path, dns, {"domain": ["blocked.test"], "outbound": "block"})
    shown: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(lan(net))
        stack.enter_context(targets(net.internet))
        wrapper = stack.enter_context(
            names_at_the_proxy(tmp_path, f"{TARGET_V4} only-the-proxy-knows.test", f"{TARGET_V4} blocked.test")
        )
        stack.enter_context(embedded(net.internet, wrapper=wrapper))
        for _ in range(2):
            with running_engine(net.client, run_dir, "-c", path, workers=4):
                shown += [dig(net, "+short", f"name{n}.test").strip() for n in (0, 1, 2) if not shown or n < 2]
                for version in "-4", "-6":
                    assert curl(net, tmp_path, "http://only-the-proxy-knows.test/page", version) == "200"
                with pytest.raises(AssertionError, match="exit 7"):
                    curl(net, tmp_path, "http://blocked.test/page")
                with pytest.raises(AssertionError, match="exit 7"):
                    net.client.run("curl", "-sS", "--max-time", "30", "http://198.19.255.1/")
    assert shown[:2] == shown[3:]
    assert len(set(shown)) == 3


def test_rules_about_names_hold_for_addresses_that_were_answered(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    server = {"type": "udp", "tag": "udp", "server": PUBLIC_SERVER, "detour": "proxy"}
    path = config(
        tmp_path, {"servers": [server], "reverse_mapping": True}, {"domain": ["web.example"], "outbound": "block"}
    )
    with ExitStack() as stack:
        for entered in (
            lan(net),
            targets(net.internet),
            embedded(net.internet),
            public_servers(net.internet, tmp_path),
        ):
            stack.enter_context(entered)
        stack.enter_context(running_engine(net.client, run_dir, "-c", path, workers=4))
        assert curl(net, tmp_path, f"http://{TARGET_V4}/page") == "200"
        for _ in range(8):  # whichever workers have question and connection
            with pytest.raises(AssertionError, match="exit 7"):
                curl(net, tmp_path, "http://web.example/page", "-4")


def offers_h2_alone(net: Topology) -> bool:
    bindings = dig(net, "+short", "quic.example", "HTTPS")
    return 'alpn="h2"' in bindings and "h3" not in bindings


def refused_at_once(net: Topology, host: str) -> bool:
    with udp_socket(net.client, "0.0.0.0") as app:
        app.connect((host, 443))
        app.send(b"not QUIC")
        try:
            app.recv(100)
        except ConnectionRefusedError:
            return True
        return False


_SILENCE = f"""
table inet silence {{
    chain out {{
        type filter hook output priority filter; policy accept;
        ip daddr {{ {PUBLIC_SERVER}, {TARGET_V4} }} meta l4proto udp drop
    }}
}}
"""


@contextmanager
def nothing_comes_over_udp(net: Topology) -> Iterator[None]:
    """The internet swallows the datagrams that the proxy sends on."""
    net.internet.run("nft", "-f", "-", input=_SILENCE)
    yield
    net.internet.run("nft", "delete", "table", "inet", "silence")


@pytest.mark.parametrize("why", ["refused", "swallowed"])
def test_proxy_without_udp(net: Topology, tmp_path: Path, run_dir: Path, why: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(lan(net))
        stack.enter_context(public_servers(net.internet, tmp_path))
        options = ("--no-udp",) if why == "refused" else ()
        url = stack.enter_context(embedded(net.internet, *options))
        if why == "swallowed":
            stack.enter_context(nothing_comes_over_udp(net))
        engine: Engine = stack.enter_context(running_engine(net.client, run_dir, proxy=url))
        net.refuse_direct()
        wait_until(lambda: engine.status().udp.startswith("no: "), timeout=60, what="the verdict about UDP")
        wait_until(lambda: "does not relay UDP" in engine.log, timeout=60, what="the line about UDP")
        for server, name in ((LAN_SERVER, "public"), (TARGET_V4, "target")):
            assert dig(net, "+short", "who.example", "TXT", server=server).strip() == f'"{name}"'
        # Each worker finds out by itself, and any of them may be asked.
        wait_until(lambda: all(offers_h2_alone(net) for _ in range(4)), timeout=60, what="HTTPS records without HTTP/3")
        wait_until(lambda: refused_at_once(net, TARGET_V4), timeout=60, what="a refusal")
        assert net.direct_packets() == 0


def test_proxy_with_udp_is_verified(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    with ExitStack() as stack:
        for entered in (lan(net), public_servers(net.internet, tmp_path)):
            stack.enter_context(entered)
        url = stack.enter_context(embedded(net.internet))
        with running_engine(net.client, run_dir, proxy=url) as engine:
            wait_until(lambda: engine.status().udp == "yes", timeout=60, what="the verdict about UDP")
            assert 'alpn="h3,h2"' in dig(net, "+short", "quic.example", "HTTPS")


def test_ten_thousand_broken_messages_do_no_harm(net: Topology, tmp_path: Path, run_dir: Path) -> None:
    random = Random(53)
    seed = ask("web.example", payload=1232)
    with ExitStack() as stack:
        for entered in (lan(net), public_servers(net.internet, tmp_path)):
            stack.enter_context(entered)
        url = stack.enter_context(embedded(net.internet))
        with running_engine(net.client, run_dir, proxy=url) as engine:
            before = [worker.pid for worker in engine.status().workers]
            memory = sum(worker.memory or 0 for worker in engine.status().workers)
            with udp_socket(net.client, "0.0.0.0") as app:
                for number in range(10_000):
                    data = bytearray(seed if number % 2 else random.randbytes(random.randrange(600)))
                    for _ in range(random.randrange(1, 5)):
                        if data:
                            data[random.randrange(len(data))] = random.randrange(256)
                    app.sendto(data[: random.randrange(len(data) + 1)] if number % 3 == 0 else data, (LAN_SERVER, 53))
                    if number % 100 == 0:
                        time.sleep(0.005)  # the tun's queue is no subject here
            assert dig(net, "+short", "who.example", "TXT").strip() == '"public"'
            assert [worker.pid for worker in engine.status().workers] == before
            assert re.search("Traceback|defect", engine.log) is None
            wait_until(
                lambda: sum(worker.memory or 0 for worker in engine.status().workers) < memory + 32 * 1024 * 1024,
                timeout=30,
                what="memory as before",
            )
