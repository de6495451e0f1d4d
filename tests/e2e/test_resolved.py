"""A real systemd-resolved on the client: it asks the tun while the engine runs, and what it asked before when it has ended.

Before, it sends to the server of the client's link, through that link, past all routes.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capture import capture
from tests.support.dns_servers import OTHER_SERVER, public_servers
from tests.support.engine import running_engine
from tests.support.netns import PROXY_V4, PROXY_V6, TARGET_V4, Topology, wait_until
from tests.support.resolved import STUB, Resolved, resolved
from tests.support.upstreams import embedded, needs, targets

pytestmark = pytest.mark.e2e


@pytest.fixture
def resolver(net: Topology, tmp_path: Path) -> Iterator[Resolved]:
    """One that asks OTHER_SERVER through the client's link."""
    with public_servers(net.internet, tmp_path), targets(net.internet), resolved(net.client, tmp_path) as made:
        made.ctl("dns", "uplink", OTHER_SERVER)
        wait_until(lambda: who(net) == '"other"', timeout=60, what="the first answer")
        yield made


def who(net: Topology) -> str:
    """Which server resolved has asked; empty: it has not answered."""
    dig = (needs("dig", "dnsutils"), "+short", "+tries=1", "+time=20", f"@{STUB}", "who.example", "TXT")
    return net.client.run("sh", "-c", '"$@" || true', "sh", *dig).strip()


def links(resolver: Resolved) -> str:
    """What resolved is told of all links; of the tun only what there is."""
    lines = "".join(resolver.ctl(what) for what in ("dns", "domain", "default-route")).splitlines()
    return "\n".join(line for line in lines if not line.endswith(("(tun0):", "(tun0): no")))


def test_it_asks_the_tun_while_the_engine_runs(net: Topology, run_dir: Path, resolver: Resolved) -> None:
    before = links(resolver)
    with embedded(net.internet) as url:
        with running_engine(net.client, run_dir, proxy=url, wrapper=resolver.wrapper) as engine:
            assert "systemd-resolved asks" in engine.log
            assert "tun0): ~." in resolver.ctl("domain")
            with capture(net.client, "uplink") as seen:
                assert who(net) == '"public"', "in place of an address of the tun a public server is asked"
                address = net.client.run(*resolver.wrapper, "resolvectl", "query", "-4", "--legend=no", "web.example")
                assert TARGET_V4 in address
                assert len(seen.read()) > 0
                assert seen.to_port(53) == [] and seen.beside(PROXY_V4, PROXY_V6) == []
        assert links(resolver) == before
        assert who(net) == '"other"'


def test_a_killed_master_leaves_it_as_it_was(net: Topology, run_dir: Path, resolver: Resolved) -> None:
    before = links(resolver)
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url, wrapper=resolver.wrapper) as engine,
    ):
        assert who(net) == '"public"'
        engine.signal(signal.SIGKILL)
        assert engine.exit_code() == -signal.SIGKILL
        wait_until(lambda: links(resolver) == before, timeout=60, what="resolved as it was")
        wait_until(lambda: who(net) == '"other"', timeout=60, what="an answer of its own server")


def test_beside_a_proxy_on_this_machine_it_is_left_alone(net: Topology, run_dir: Path, resolver: Resolved) -> None:
    before = links(resolver)
    with (
        embedded(net.client, host="127.0.0.1") as url,
        running_engine(net.client, run_dir, proxy=url, wrapper=resolver.wrapper) as engine,
    ):
        assert "may leave past the proxy" in engine.log
        assert links(resolver) == before
        assert who(net) == '"other"'
