"""Hosts that leave beside the tun while the plan is in force."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from engine.netconf import NetworkError, bypass
from engine.netconf.bypass import add_bypass, remove_bypass
from engine.netconf.network import Network
from tests.engine.netconf.machine import TUN_V4, UPSTREAM, Helper, plan, tun
from tests.support.netns import TARGET_V4, TARGET_V6, Namespace, Topology, ip, wait_until

pytestmark = pytest.mark.e2e

NEIGHBOUR_OF_UPSTREAM = "198.51.100.11"  # the plan has a route to this host alone, as 198.51.100.10 is excluded
Device = Callable[[str], str]


@pytest.fixture
def helper(net: Topology, tmp_path: Path) -> Iterator[Helper]:
    """The plan of an ordinary run is in force; afterwards it is undone, and all is as before."""
    helper = Helper(net.client, tmp_path)
    with tun(net.client):
        before = net.client.snapshot()
        assert helper.apply(plan()).returncode == 0
        yield helper
        assert helper.undo().returncode == 0
        wait_until(lambda: net.client.snapshot() == before, what="the network as it was before")
        assert helper.left_in_run_dir() == []


@pytest.fixture
def client(net: Topology) -> Namespace:
    return net.client


def device(client: Namespace, destination: str) -> str:
    return str(client.route_to(destination)["dev"])


@pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6, NEIGHBOUR_OF_UPSTREAM, "198.51.100.12"])
def test_host_leaves_beside_the_tun_and_goes_back(client: Namespace, helper: Helper, host: str) -> None:
    next_host = str(ip_address(host) + 16)
    assert device(client, host) == device(client, next_host) == "tun0"
    with client.entered():
        for _ in range(2):
            assert add_bypass(helper.run_dir, [host]) == 0
    assert (device(client, host), device(client, next_host)) == ("uplink", "tun0")
    with client.entered():
        for _ in range(2):
            remove_bypass(helper.run_dir, [host])
    assert device(client, host) == "tun0"


def test_what_is_not_taken_back_is_undone_with_all_else(client: Namespace, helper: Helper) -> None:
    with client.entered():
        add_bypass(helper.run_dir, [TARGET_V4, TARGET_V6])


def test_undone_though_the_tun_is_gone(net: Topology, tmp_path: Path) -> None:
    """Unlike routes into the tun these do not go with it."""
    before = net.client.snapshot()
    helper = Helper(net.client, tmp_path)
    with tun(net.client), net.client.entered():
        helper.apply(plan())
        add_bypass(tmp_path, [TARGET_V4, TARGET_V6])
    assert "throw" in net.client.run("ip", "route", "show", "table", "2022")
    assert helper.undo().returncode == 0
    assert net.client.snapshot() == before


def test_part_of_the_plan(net: Topology, tmp_path: Path) -> None:
    helper = Helper(net.client, tmp_path)
    with tun(net.client):
        before = net.client.snapshot()
        assert helper.apply(plan(bypass=[TARGET_V4, TARGET_V6])).returncode == 0
        assert [device(net.client, host) for host in (TARGET_V4, TARGET_V6)] == ["uplink", "uplink"]
        with net.client.entered():
            remove_bypass(tmp_path, [TARGET_V4])
        assert [device(net.client, host) for host in (TARGET_V4, TARGET_V6)] == ["tun0", "uplink"]
        helper.undo()
        assert net.client.snapshot() == before


def test_kill_switch_lets_them_pass(net: Topology, tmp_path: Path) -> None:
    """Also after it was loaded anew; and the proxy's address stays allowed when it is led into the tun again."""
    helper = Helper(net.client, tmp_path)
    with tun(net.client):
        before = net.client.snapshot()
        assert helper.apply(plan(kill_switch=True, bypass=[UPSTREAM])).returncode == 0
        with net.client.entered():
            add_bypass(tmp_path, [TARGET_V4, TARGET_V6, UPSTREAM])
            for _ in range(2):
                assert [passes(net.client, host) for host in (TARGET_V4, TARGET_V6, UPSTREAM)] == [True] * 3
                assert not passes(net.client, NEIGHBOUR_OF_UPSTREAM)
                assert helper.run("renew").stdout == ""
            remove_bypass(tmp_path, [TARGET_V4, TARGET_V6, UPSTREAM])
            assert [passes(net.client, host) for host in (TARGET_V4, TARGET_V6, UPSTREAM)] == [False, False, True]
        assert helper.undo().returncode == 0
        assert net.client.snapshot() == before


def passes(client: Namespace, host: str) -> bool:
    """Whether the kernel lets a datagram out by the uplink; nobody need be there."""
    family, device = socket.AF_INET6 if ":" in host else socket.AF_INET, b"uplink"
    with client.entered(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        try:
            sender.sendto(b"", (host, 9))
        except OSError:
            return False
        return True


def test_first_ones_make_room(client: Namespace, helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass, "BYPASS_MAX", 3)
    with client.entered():
        assert add_bypass(helper.run_dir, ["203.0.113.1", "203.0.113.2"]) == 0
        assert add_bypass(helper.run_dir, ["203.0.113.2", "203.0.113.3", "203.0.113.4"]) == 1
    assert [device(client, f"203.0.113.{n}") for n in range(1, 5)] == ["tun0", "uplink", "uplink", "uplink"]
    with client.entered():
        assert add_bypass(helper.run_dir, [f"203.0.113.{n}" for n in range(11, 20)]) == 3
    assert sum(device(client, f"203.0.113.{n}") == "uplink" for n in range(1, 20)) == 3


def test_somebody_else_has_removed_it(client: Namespace, helper: Helper) -> None:
    with client.entered():
        add_bypass(helper.run_dir, [TARGET_V4, TARGET_V6])
        ip("route", "del", "throw", TARGET_V4, "table", "2022", "metric", "1")
        remove_bypass(helper.run_dir, [TARGET_V4])


def test_like_routes_of_others_stay(client: Namespace, helper: Helper) -> None:
    with client.entered():
        others = ("throw", "203.0.113.77", "table", "2022", "metric", "7")
        ip("route", "add", *others)
        add_bypass(helper.run_dir, ["203.0.113.77"])
        remove_bypass(helper.run_dir, ["203.0.113.77"])
        assert "203.0.113.77" in ip("route", "show", "table", "2022")
        ip("route", "del", *others)


def test_nothing_is_done_while_nothing_leads_into_the_tun(client: Namespace, tmp_path: Path) -> None:
    helper = Helper(client, tmp_path)
    before = client.snapshot()
    with client.entered():
        add_bypass(tmp_path, [TARGET_V4])
        remove_bypass(tmp_path, [TARGET_V4])
    assert client.snapshot() == before
    with tun(client):
        helper.apply(plan(auto_route=False))
        with client.entered():
            add_bypass(tmp_path, [TARGET_V4, TARGET_V6])
        assert client.run("ip", "-4", "route", "show", "table", "all", "type", "throw") == ""
        helper.undo()


def test_family_that_is_not_routed_is_left_alone(client: Namespace, tmp_path: Path) -> None:
    helper = Helper(client, tmp_path)
    with tun(client):
        assert helper.apply(plan(addresses=[f"{TUN_V4}/30"])).returncode == 0
        before = client.snapshot()["routes v6"]
        with client.entered():
            add_bypass(tmp_path, [TARGET_V6, TARGET_V4])
        assert client.snapshot()["routes v6"] == before
        assert device(client, TARGET_V4) == "uplink"
        helper.undo()


def test_what_is_no_address(client: Namespace, helper: Helper) -> None:
    with client.entered(), pytest.raises(NetworkError, match=r"'example\.org' is neither"):
        add_bypass(helper.run_dir, [TARGET_V4, "example.org"])
    assert device(client, TARGET_V4) == "tun0"


def test_thousands_come_and_go(client: Namespace, helper: Helper) -> None:
    """The journal stays readable and short."""
    hosts = [str(ip_address("203.0.0.0") + n) for n in range(2000)]
    with client.entered():
        for first in range(0, 2000, 100):
            add_bypass(helper.run_dir, hosts[first : first + 100])
        assert client.run("ip", "route", "show", "table", "2022", "type", "throw").count("throw") == 2000
        remove_bypass(helper.run_dir, hosts[1:])
    assert client.run("ip", "route", "show", "table", "2022", "type", "throw").count("throw") == 1
    assert (helper.run_dir / "network.journal").read_bytes().count(b"\n") < 600


def test_of_the_master(client: Namespace, helper: Helper) -> None:
    """As many calls at once as one likes; threads do it, so that the loop goes on."""

    async def calls() -> int:
        network = Network(helper.run_dir)
        await asyncio.gather(*[network.bypass([f"203.0.113.{n}", TARGET_V6]) for n in range(1, 21)])
        await network.end_bypass(["203.0.113.20"])
        return network.bypass_evictions

    # The threads of the loop's own executor are begun inside, and belong to this namespace.
    with client.entered():
        assert asyncio.run(calls()) == 0
    assert [device(client, f"203.0.113.{n}") for n in (1, 19, 20)] == ["uplink", "uplink", "tun0"]
