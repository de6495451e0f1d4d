"""The machine's network changes while the engine runs: it is noticed and shown, and new flows go on without a restart."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.netconf.bypass import add_bypass, remove_bypass
from engine.netconf.upkeep import RENEWALS_AT_ONCE
from tests.support.engine import Engine, running_engine
from tests.support.netns import (
    CLIENT_V4,
    OTHER_TARGET_V4,
    PROXY_V4,
    PROXY_V6,
    TARGET_V4,
    TARGET_V6,
    Topology,
    ip,
    wait_until,
)
from tests.support.sockets import flow, listening, receive
from tests.support.upstreams import embedded

pytestmark = pytest.mark.e2e

HERE, THERE = "192.0.3.2", "192.0.3.1"
TIMEOUT = 60.0  # seconds
DISTANT_LAN = "10.77.0.1"
TUN_NETWORK = "198.18.0.0/30"


@contextmanager
def second_link(net: Topology) -> Iterator[None]:
    """Another network to the same internet, as Wi-Fi is beside a cable."""
    ip(*f"link add wifi netns {net.client.name} type veth peer name hotspot netns {net.internet.name}".split())
    net.internet.run("ip", "addr", "add", f"{THERE}/24", "dev", "hotspot")
    net.internet.run("ip", "link", "set", "hotspot", "up")
    net.client.run("ip", "addr", "add", f"{HERE}/24", "dev", "wifi")
    net.client.run("ip", "link", "set", "wifi", "up")
    try:
        yield
    finally:
        net.client.run("ip", "link", "del", "wifi")


def told(engine: Engine, kind: str, text: str) -> bool:
    """Whether `engine status` shows such an event, and the metrics' source counts it."""
    network = engine.status().network
    found = [event for event in network.events if event.kind == kind and text in event.text]
    assert len(found) <= network.counts[kind]
    return bool(found)


def wait_for(engine: Engine, kind: str, text: str) -> None:
    wait_until(lambda: told(engine, kind, text), TIMEOUT, what=f"{kind}: {text}")


def carries(net: Topology, *hosts: str) -> None:
    """New flows go through the engine."""
    for host in hosts:
        with listening(net, host) as server:
            app, peer = flow(net, server)
            with app, peer:
                app.sendall(b"through the tun")
                assert receive(peer, 15) == b"through the tun"
                assert peer.getpeername()[0] != CLIENT_V4, "past the proxy"


def ways_out(engine: Engine) -> dict[int, tuple[str, str]]:
    return {way.family: (way.interface, way.gateway) for way in engine.status().network.ways_out}


@pytest.mark.parametrize("options", [(), ("--kill-switch",)], ids=["", "kill switch"])
def test_default_route_moves_to_another_interface(net: Topology, run_dir: Path, options: tuple[str, ...]) -> None:
    with (
        embedded(net.internet, host=OTHER_TARGET_V4) as url,
        running_engine(net.client, run_dir, *options, proxy=url) as engine,
        listening(net, TARGET_V4) as server,
    ):
        assert ways_out(engine) == {4: ("uplink", PROXY_V4), 6: ("uplink", PROXY_V6)}
        app, peer = flow(net, server)
        with second_link(net):
            wait_for(engine, "address_changed", f"wifi: {HERE}/24 added")
            net.client.run("ip", "route", "replace", "default", "via", THERE, "dev", "wifi")
            wait_for(engine, "default_route_moved", f"IPv4 moved from uplink ({PROXY_V4}) to wifi ({THERE})")
            assert ways_out(engine)[4] == ("wifi", THERE)
            newcomer, its_peer = flow(net, server)
            newcomer.sendall(b"by the new way")
            assert receive(its_peer, 14) == b"by the new way"
            assert f"src {HERE}" in net.client.run("ip", "route", "get", OTHER_TARGET_V4)
            # And back: the connection of before has outlived it.
            net.client.run("ip", "route", "replace", "default", "via", PROXY_V4, "dev", "uplink")
            wait_for(engine, "default_route_moved", f"to uplink ({PROXY_V4})")
            app.sendall(b"still here")
            assert receive(peer, 10) == b"still here"
            for sock in (app, peer, newcomer, its_peer):
                sock.close()
        wait_for(engine, "interface_down", "wifi is gone")
        wait_until(lambda: "wifi is gone" in engine.log, TIMEOUT, what="the line in the log")


def test_interface_is_set_down_and_up(net: Topology, run_dir: Path) -> None:
    with embedded(net.internet) as url, running_engine(net.client, run_dir, proxy=url) as engine:
        net.client.run("ip", "link", "set", "uplink", "down")
        wait_for(engine, "interface_down", "uplink is down")
        wait_for(engine, "default_route_moved", "of IPv4 moved from uplink")
        assert ways_out(engine) == {}
        net.client.run("ip", "link", "set", "uplink", "up")
        wait_for(engine, "interface_up", "uplink is up")
        # The kernel has taken routes and IPv6 addresses; whoever has configured the machine gives them back.
        net.client.run("ip", "route", "add", "default", "via", PROXY_V4)
        for address in ("2001:db8:1::2/64", "fe80::2/64"):
            net.client.run("ip", "addr", "add", address, "dev", "uplink", "nodad")
        net.client.run("ip", "-6", "route", "add", "default", "via", PROXY_V6)
        wait_for(engine, "default_route_moved", f"of IPv4 moved from nowhere to uplink ({PROXY_V4})")
        carries(net, TARGET_V4, TARGET_V6)


def test_address_of_the_machine_changes(net: Topology, run_dir: Path) -> None:
    with embedded(net.internet) as url, running_engine(net.client, run_dir, proxy=url) as engine:
        net.client.run("ip", "addr", "add", "192.0.2.99/24", "dev", "uplink")
        wait_for(engine, "address_changed", "uplink: 192.0.2.99/24 added")
        net.client.run("ip", "addr", "del", "192.0.2.99/24", "dev", "uplink")
        wait_for(engine, "address_changed", "uplink: 192.0.2.99/24 removed")
        carries(net, TARGET_V4)


ALL_RULES = r"for p in $(ip {0} rule | sed -n 's/^\(90..\):.*/\1/p'); do ip {0} rule del priority $p; done"
REMOVALS = {
    "a rule": "ip rule del priority 9008",
    "the workers' exemption": "ip rule del priority 9000; ip -6 rule del priority 9000",
    "all rules": f"{ALL_RULES.format('-4')}; {ALL_RULES.format('-6')}",
    "the table": "ip route flush table 2022; ip -6 route flush table 2022",
    "both tables": "for t in 2022 2023; do ip route flush table $t; ip -6 route flush table $t; done",
    "the addresses": "ip addr flush dev tl0",
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_what_another_program_removes_is_made_again(net: Topology, run_dir: Path, removal: str) -> None:
    """And flows that have sent past the proxy meanwhile do so no more: the kernel remembers the way of each socket."""
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--interface", "tl0", proxy=url) as engine,
        listening(net, TARGET_V4) as server_v4,
        listening(net, TARGET_V6) as server_v6,
    ):
        flows = [flow(net, server) for server in (server_v4, server_v6)]
        before = network_of(net)
        net.refuse_direct()
        net.client.run("sh", "-ec", REMOVALS[removal])
        for app, _ in flows:
            app.sendall(b"meanwhile")
        wait_for(engine, "made_again", "another program had removed")
        wait_until(lambda: network_of(net) == before, TIMEOUT, what="the rules, routes and addresses of before")
        direct = net.direct_packets()
        for app, peer in flows:
            with app, peer:
                app.sendall(b" and after")
                assert receive(peer, 19) == b"meanwhile and after"
        assert net.direct_packets() == direct
        carries(net, TARGET_V4, TARGET_V6)
        assert engine.status().network.counts["conflict"] == 0


def network_of(net: Topology) -> list[list[str]]:
    """Addresses, rules and routes, in the kernel's own order but for those of one table."""
    queries = ("-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "addr show tl0 scope global")
    with net.client.entered():
        return [sorted(ip(*query.split()).splitlines()) for query in queries]


def test_host_beside_the_tun_is_let_out_again_unless_the_engine_itself_has_ended_that(
    net: Topology, run_dir: Path
) -> None:
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--interface", "tl0", proxy=url) as engine,
    ):
        with net.client.entered():
            add_bypass(run_dir, [OTHER_TARGET_V4])
            remove_bypass(run_dir, [OTHER_TARGET_V4])
            add_bypass(run_dir, [TARGET_V4])
        net.client.run("ip", "addr", "add", "192.0.2.99/24", "dev", "uplink")
        wait_for(engine, "address_changed", "192.0.2.99/24 added")  # and so all before it was seen
        assert engine.status().network.counts["made_again"] == 0
        net.client.run("ip", "route", "del", "throw", TARGET_V4, "table", "2022", "metric", "1")
        wait_for(engine, "made_again", f"the route that lets {TARGET_V4} bypass the tun")
        wait_until(lambda: net.client.route_to(TARGET_V4)["dev"] == "uplink", TIMEOUT, what="the way beside the tun")
        net.client.run("ip", "addr", "del", "192.0.2.99/24", "dev", "uplink")
        with net.client.entered():
            remove_bypass(run_dir, [TARGET_V4])
        carries(net, TARGET_V4)


def test_what_goes_badly_with_ours_is_told_and_left(net: Topology, run_dir: Path) -> None:
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--interface", "tl0", proxy=url) as engine,
    ):
        net.client.run("ip", "rule", "add", "priority", "9005", "to", "10.0.0.0/8", "lookup", "main")
        wait_for(engine, "conflict", "IPv4 routing rule at priority 9005, among ours")
        net.client.run("ip", "route", "add", "10.0.0.0/8", "via", PROXY_V4, "table", "2022")
        wait_for(engine, "conflict", "IPv4 route to 10.0.0.0/8 in our table 2022")
        net.client.run("ip", "link", "set", "tl0", "mtu", "1400")
        wait_for(engine, "conflict", "the tun's MTU to 1400")
        assert "lookup main" in net.client.run("ip", "rule", "show", "priority", "9005")
        assert "mtu 1400" in net.client.run("ip", "link", "show", "tl0")
        carries(net, TARGET_V4)
        net.client.run("ip", "rule", "del", "priority", "9005")
        net.client.run("ip", "route", "del", "10.0.0.0/8", "table", "2022")
        # A rule of ours is no loss while nothing of ours is gone.
        assert engine.status().network.counts["made_again"] == 0
        assert engine.status().network.counts["conflict"] == 3


def test_route_that_keeps_being_removed_is_made_again_at_times(net: Topology, run_dir: Path) -> None:
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--interface", "tl0", proxy=url) as engine,
    ):
        for count in range(1, RENEWALS_AT_ONCE + 1):
            net.client.run("ip", "rule", "del", "priority", "9008")
            wait_until(lambda n=count: engine.status().network.counts["made_again"] >= n, TIMEOUT, what="the rule")
        net.client.run("ip", "rule", "del", "priority", "9008")
        wait_for(engine, "conflict", "keeps removing")
        wait_until(lambda: "lookup 2022" in net.client.run("ip", "rule", "show", "priority", "9008"), TIMEOUT)


def test_kill_switch_learns_new_local_networks_at_once_and_forgets_old_ones(net: Topology, run_dir: Path) -> None:
    net.internet.run("ip", "addr", "add", f"{DISTANT_LAN}/32", "dev", "lo")
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--kill-switch", proxy=url) as engine,
        listening(net, DISTANT_LAN) as server,
    ):
        assert "192.0.2.0/24" in passed(net)
        assert "10.77.0.0/16" not in passed(net)
        net.client.run("ip", "route", "add", "10.77.0.0/16", "via", PROXY_V4)
        wait_for(engine, "local_networks_changed", "10.77.0.0/16 added")
        wait_until(lambda: "10.77.0.0/16" in passed(net), TIMEOUT, what="the network in the kill switch")
        app, peer = flow(net, server)
        assert peer.getpeername()[0] == CLIENT_V4, "straight, as before"
        for sock in (app, peer):
            sock.close()
        assert TUN_NETWORK not in passed(net), "when the tun is gone, it would leave"
        net.client.run("ip", "route", "del", "10.77.0.0/16")
        wait_for(engine, "local_networks_changed", "10.77.0.0/16 removed")
        wait_until(lambda: "10.77.0.0/16" not in passed(net), TIMEOUT, what="the network out of the kill switch")
        carries(net, TARGET_V4)


def passed(net: Topology) -> set[str]:
    """IPv4 prefixes that the kill switch takes for local."""
    answer = json.loads(net.client.run("nft", "-j", "list", "set", "inet", "tunloom", "lan_v4"))
    found = next(entry["set"] for entry in answer["nftables"] if "set" in entry).get("elem", [])
    return {f"{prefix['prefix']['addr']}/{prefix['prefix']['len']}" for prefix in found}


@pytest.mark.parametrize("how", ["nft flush ruleset", "nft delete table inet tunloom", "nft flush table inet tunloom"])
def test_kill_switch_that_another_program_removes_is_closed_again(net: Topology, run_dir: Path, how: str) -> None:
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, "--kill-switch", proxy=url) as engine,
    ):
        rules = table(net)
        assert "reject" in rules
        net.client.run(*how.split())
        wait_for(engine, "made_again", "removed the kill switch")
        wait_until(lambda: table(net) == rules, TIMEOUT, what="the kill switch")
        assert TUN_NETWORK not in passed(net)
        carries(net, TARGET_V4)
        assert engine.status().network.counts["made_again"] == 1, "and not again because of that"


def table(net: Topology) -> str:
    """The rules of the kill switch, without counts and sets."""
    listed = net.client.run("nft", "-s", "list", "ruleset")
    return listed[listed.find("chain") :] if "tunloom" in listed else ""


def test_outbound_bound_to_an_interface_that_appears_later(net: Topology, run_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"outbounds": [{"type": "direct", "bind_interface": "wifi"}]}))
    with running_engine(net.client, run_dir, "-c", str(config)) as engine, listening(net, TARGET_V4) as server:
        assert 'no interface "wifi" at present' in engine.log
        with pytest.raises(OSError):
            flow(net, server)
        with second_link(net):
            net.client.run("ip", "route", "add", "default", "via", THERE, "dev", "wifi", "metric", "100")
            app, peer = flow(net, server)
            with app, peer:
                assert peer.getpeername()[0] == HERE
