"""engine/netconf on a Mac's kernel (tests/support/darwin): every call and its bytes, what is left, what a crash leaves."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engine.darwin import system
from engine.darwin.interface import SIOCAIFADDR, SIOCAIFADDR_IN6, SIOCSIFMTU, encode_inet6_alias, encode_inet_alias
from engine.darwin.route import RTM_ADD, RTM_DELETE, encode_route
from engine.netconf import NetworkError, darwin
from engine.netconf.darwin_bypass import add_bypass, remove_bypass
from engine.netconf.darwin_plan import build_darwin_plan, name_servers, plan_tun_routes
from engine.netconf.darwin_watch import RouteWatch, egress
from engine.netconf.journal import has_journal
from engine.netconf.plan import NetworkPlan
from engine.tun.darwin import Utun, open_utun
from tests.support.darwin.kernel import Kernel
from tests.support.darwin.stand_in import stand_in
from tests.support.loop import on_loop

EIGHT = ["1.0.0.0/8", "2.0.0.0/7", "4.0.0.0/6", "8.0.0.0/5", "16.0.0.0/4", "32.0.0.0/3", "64.0.0.0/2", "128.0.0.0/1"]
EIGHT6 = ["100::/8", "200::/7", "400::/6", "800::/5", "1000::/4", "2000::/3", "4000::/2", "8000::/1"]
ADDRESSES = ("198.18.0.1/16", "fd00::1/126")
FLUSH = [("run", "/usr/bin/dscacheutil", "-flushcache"), ("run", "/usr/bin/killall", "-HUP", "mDNSResponder")]


class Mac:
    """A kernel with an open utun, whose calls so far are not in the log."""

    def __init__(self, run_dir: Path) -> None:
        self.kernel = Kernel()
        self.run_dir = run_dir

    def open(self) -> None:
        self.before = self.kernel.leftovers()
        self.tun: Utun = open_utun("utun8", mtu=9000)
        self.kernel.log.clear()

    def plan(self, **changes: object) -> NetworkPlan:
        wanted = {"interface": "utun8", "mtu": 9000, "addresses": ADDRESSES, "upstreams": ["203.0.113.9"], **changes}
        return build_darwin_plan(**wanted)  # type: ignore[arg-type]

    def apply(self, **changes: object) -> list[str]:
        return darwin.apply(self.plan(**changes), self.run_dir)

    def crash(self) -> None:
        """Everybody is dead, and their descriptors are closed."""
        self.tun.close()
        self.kernel.reap()


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mac]:
    made = Mac(tmp_path)
    stand_in(lambda name, *arguments: getattr(made.kernel, name)(*arguments), monkeypatch.setattr)
    made.open()
    yield made
    made.tun.close()
    made.kernel.close()


def routes(log: list[tuple[str, ...]]) -> list[str]:
    """Messages to the routing socket, without their sequence numbers."""
    return [call[1][:40] + call[1][48:] for call in log if call[0] == "send_route"]


def sent(kind: int, destination: str, gateway: str) -> str:
    text = encode_route(kind, destination, gateway, sequence=0).hex()
    return text[:40] + text[48:]


# plan


def test_everything_is_eight_prefixes_of_each_family(mac: Mac) -> None:
    assert [(one.destination, one.gateway) for one in plan_tun_routes(mac.plan())] == [
        *((prefix, "198.18.0.1") for prefix in EIGHT),
        *((prefix, "fd00::1") for prefix in EIGHT6),
    ]


def test_excluded_prefixes_are_cut_out(mac: Mac) -> None:
    plan = mac.plan(exclude=["10.0.0.0/8", "8000::/1"])
    assert [one.destination for one in plan_tun_routes(plan)] == [
        *("1.0.0.0/8", "2.0.0.0/7", "4.0.0.0/6", "8.0.0.0/7", "11.0.0.0/8", "12.0.0.0/6", "16.0.0.0/4", "32.0.0.0/3"),
        *("64.0.0.0/2", "128.0.0.0/1"),
        *EIGHT6[:-1],
    ]


def test_partial_routes_take_the_prefix_of_the_tun_along(mac: Mac) -> None:
    plan = mac.plan(include=["203.0.113.0/24"], addresses=["198.18.0.1/16"])
    assert [one.destination for one in plan_tun_routes(plan)] == ["203.0.113.0/24", "198.18.0.0/16"]


def test_name_servers_are_the_next_addresses_of_the_tun() -> None:
    assert name_servers(ADDRESSES) == ("198.18.0.2", "fd00::2")
    assert name_servers(("198.18.0.1/32", "198.18.0.3/30")) == ()


@pytest.mark.parametrize("change", [{"kill_switch": True}, {"include_uid": [(1, 2)]}, {"exclude_interface": ["en1"]}])
def test_what_there_is_not_on_a_mac_is_refused(mac: Mac, change: dict[str, object]) -> None:
    with pytest.raises(NetworkError, match=r"On macOS the engine has no .*: leave it out"):
        mac.plan(**change)


# apply and undo


def test_apply_and_undo_are_exactly_these_calls(mac: Mac) -> None:
    mac.apply()
    made = mac.kernel.log[:]
    assert [call for call in made if call[0] != "send_route"] == [
        ("ioctl", f"{SIOCSIFMTU:#010x}", "7574756e38" + 22 * "0" + "28230000" + 24 * "0"),
        ("ioctl", f"{SIOCAIFADDR:#010x}", encode_inet_alias("utun8", ADDRESSES[0]).hex()),
        ("ioctl", f"{SIOCAIFADDR_IN6:#010x}", encode_inet6_alias("utun8", ADDRESSES[1]).hex()),
    ]
    assert routes(made) == [
        sent(RTM_ADD, "203.0.113.9/32", "192.168.1.1"),
        *(sent(RTM_ADD, prefix, "198.18.0.1") for prefix in EIGHT),
        *(sent(RTM_ADD, prefix, "fd00::1") for prefix in EIGHT6),
    ]
    mac.kernel.log.clear()
    assert darwin.undo(mac.run_dir) == 19
    assert routes(mac.kernel.log) == [
        *(sent(RTM_DELETE, prefix, "fd00::1") for prefix in reversed(EIGHT6)),
        *(sent(RTM_DELETE, prefix, "198.18.0.1") for prefix in reversed(EIGHT)),
        sent(RTM_DELETE, "203.0.113.9/32", "192.168.1.1"),
    ]
    assert [call[1] for call in mac.kernel.log if call[0] == "ioctl"] == ["0x81206919", "0x80206919"]
    assert not has_journal(mac.run_dir)
    mac.crash()
    assert mac.kernel.leftovers() == mac.before


def test_undo_is_harmless_when_repeated(mac: Mac) -> None:
    mac.apply()
    darwin.undo(mac.run_dir)
    assert darwin.undo(mac.run_dir) == 0


def test_upstream_on_the_lan_needs_no_route_of_its_own(mac: Mac) -> None:
    mac.apply(upstreams=["192.168.1.20", "127.0.0.1"])
    assert mac.kernel.route_to("192.168.1.20/32") is None
    assert len(routes(mac.kernel.log)) == 16


def test_upstream_of_ipv6_goes_by_the_link_local_router(mac: Mac) -> None:
    mac.apply(upstreams=["2001:db8:9::1"])
    route = mac.kernel.route_to("2001:db8:9::1/128")
    assert route is not None
    assert (route.gateway, route.interface) == ("fe80::1%4", "en0")


def test_route_that_a_crash_left_makes_room(mac: Mac) -> None:
    mac.kernel.log.clear()
    system.send_route(
        mac_socket := system.route_socket(), encode_route(RTM_ADD, "1.0.0.0/8", "192.168.1.1", sequence=1)
    )
    mac_socket.close()
    mac.kernel.log.clear()
    mac.apply()
    first = routes(mac.kernel.log)[1:4]
    assert first == [
        sent(RTM_ADD, "1.0.0.0/8", "198.18.0.1"),
        sent(RTM_DELETE, "1.0.0.0/8", "198.18.0.1"),
        sent(RTM_ADD, "1.0.0.0/8", "198.18.0.1"),
    ]


@pytest.mark.parametrize("call", ["ioctl", "send_route"])
@pytest.mark.parametrize(("code", "not_permitted"), [(errno.EPERM, True), (errno.ENOBUFS, False)])
def test_refusal_undoes_everything(mac: Mac, call: str, code: int, not_permitted: bool) -> None:
    mac.kernel.refuse[call] = code
    with pytest.raises(NetworkError) as caught:
        mac.apply()
    assert caught.value.not_permitted == not_permitted
    mac.kernel.refuse.clear()
    darwin.undo(mac.run_dir)
    mac.crash()
    assert mac.kernel.leftovers() == mac.before


def test_small_mtu_leaves_ipv6_out(mac: Mac) -> None:
    assert any("IPv6 is left out" in remark for remark in mac.apply(mtu=1000))
    assert mac.kernel.interfaces["utun8"].addresses == ["198.18.0.1/16"]


# name servers


def test_name_servers_are_set_on_every_service_and_restored(mac: Mac) -> None:
    mac.apply(captures_dns=True)
    assert mac.kernel.services == {
        "Wi-Fi": ("en0", ("198.18.0.2", "fd00::2")),
        "USB LAN": ("en7", ("198.18.0.2", "fd00::2")),
    }
    assert mac.kernel.log[-2:] == FLUSH
    darwin.undo(mac.run_dir)
    assert mac.kernel.services == {"Wi-Fi": ("en0", ()), "USB LAN": ("en7", ("192.0.2.53",))}
    runs = [call for call in mac.kernel.log if call[0] == "run"]
    assert runs[-4:] == [
        ("run", "/usr/sbin/networksetup", "-setdnsservers", "USB LAN", "192.0.2.53"),
        ("run", "/usr/sbin/networksetup", "-setdnsservers", "Wi-Fi", "Empty"),
        *FLUSH,
    ]


def test_servers_that_the_user_set_meanwhile_stay(mac: Mac) -> None:
    mac.apply(captures_dns=True)
    mac.kernel.services["Wi-Fi"] = ("en0", ("9.9.9.9",))
    darwin.undo(mac.run_dir)
    assert mac.kernel.services["Wi-Fi"] == ("en0", ("9.9.9.9",))


def test_resolver_that_is_asked_past_the_tun_is_told(mac: Mac) -> None:
    assert any("192.168.1.1" in remark for remark in mac.apply())
    darwin.undo(mac.run_dir)
    mac.kernel.resolver = "8.8.8.8"
    assert mac.apply() == []


# crash


def test_what_a_crash_leaves_is_undone_from_the_journal(mac: Mac) -> None:
    mac.apply(captures_dns=True)
    mac.crash()
    left = mac.kernel.leftovers()
    assert left["services"] != mac.before["services"]
    assert left["routes"] != mac.before["routes"], "the host route is not by way of the tun"
    mac.kernel.log.clear()
    darwin.undo(mac.run_dir)
    assert mac.kernel.leftovers() == mac.before
    assert routes(mac.kernel.log) == [sent(RTM_DELETE, "203.0.113.9/32", "192.168.1.1")], "the others went with the tun"


def test_name_servers_are_restored_after_a_reboot_and_routes_are_left_alone(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac.apply(captures_dns=True)
    mac.crash()
    monkeypatch.setattr("tests.support.darwin.kernel.BOOT_SESSION", "another")
    mac.kernel.log.clear()
    darwin.undo(mac.run_dir)
    assert mac.kernel.leftovers()["services"] == mac.before["services"]
    assert routes(mac.kernel.log) == []
    assert not has_journal(mac.run_dir)


def test_next_start_undoes_a_crash_first(mac: Mac) -> None:
    mac.apply(captures_dns=True)
    mac.crash()
    mac.open()
    mac.apply(captures_dns=True)
    darwin.undo(mac.run_dir)
    assert mac.kernel.services == {"Wi-Fi": ("en0", ()), "USB LAN": ("en7", ("192.0.2.53",))}


# another network


def test_renew_re_points_hosts_to_the_new_router(mac: Mac) -> None:
    mac.apply()
    mac.kernel.set_default("10.0.0.1", "en1")
    mac.kernel.log.clear()
    assert darwin.renew(mac.run_dir) == ["the route that lets 203.0.113.9 bypass the tun"]
    assert routes(mac.kernel.log)[:2] == [
        sent(RTM_DELETE, "203.0.113.9/32", "192.168.1.1"),
        sent(RTM_ADD, "203.0.113.9/32", "10.0.0.1"),
    ]
    darwin.undo(mac.run_dir)
    assert mac.kernel.route_to("203.0.113.9/32") is None


def test_without_a_network_hosts_lead_nowhere_rather_than_into_the_tun(mac: Mac) -> None:
    mac.apply()
    mac.kernel.remove_default(4)
    darwin.renew(mac.run_dir)
    route = mac.kernel.route_to("203.0.113.9/32")
    assert route is not None
    assert (route.interface, bool(route.flags & 0x1000)) == ("lo0", True)
    mac.kernel.set_default("192.168.1.1", "en0")
    darwin.renew(mac.run_dir)
    route = mac.kernel.route_to("203.0.113.9/32")
    assert route is not None
    assert (route.interface, bool(route.flags & 0x1000)) == ("en0", False)


def test_renew_makes_lost_routes_again_and_takes_new_services(mac: Mac) -> None:
    mac.apply(captures_dns=True)
    mac.kernel.routes.remove(mac.kernel.route_to("64.0.0.0/2"))  # type: ignore[arg-type]
    mac.kernel.services["iPhone USB"] = ("en9", ())
    assert darwin.renew(mac.run_dir) == ["the route to 64.0.0.0/2", "the name servers of a network service"]
    assert mac.kernel.route_to("64.0.0.0/2") is not None
    assert mac.kernel.services["iPhone USB"] == ("en9", ("198.18.0.2", "fd00::2"))
    darwin.undo(mac.run_dir)
    assert mac.kernel.services["iPhone USB"] == ("en9", ())


def test_renew_changes_nothing_when_nothing_has_changed(mac: Mac) -> None:
    mac.apply(captures_dns=True)
    before = mac.kernel.leftovers()
    assert darwin.renew(mac.run_dir) == []
    assert mac.kernel.leftovers() == before


# single hosts


def test_bypass_and_its_end(mac: Mac) -> None:
    mac.apply()
    assert add_bypass(mac.run_dir, ["198.51.100.7", "2001:db8:9::7", "192.168.1.33"]) == 0
    assert add_bypass(mac.run_dir, ["198.51.100.7"]) == 0
    made = {text: mac.kernel.route_to(text) for text in ("198.51.100.7/32", "2001:db8:9::7/128", "192.168.1.33/32")}
    assert [route.interface if route else None for route in made.values()] == ["en0", "en0", None]
    remove_bypass(mac.run_dir, ["198.51.100.7"])
    assert mac.kernel.route_to("198.51.100.7/32") is None
    darwin.undo(mac.run_dir)
    mac.crash()
    assert mac.kernel.leftovers() == mac.before


def test_bypass_without_routes_into_the_tun_is_nothing(mac: Mac) -> None:
    mac.apply(auto_route=False)
    add_bypass(mac.run_dir, ["198.51.100.7"])
    assert routes(mac.kernel.log) == []


def test_bypass_beyond_its_bound_makes_room(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.netconf.darwin_bypass.BYPASS_MAX", 2)
    mac.apply(upstreams=[])
    add_bypass(mac.run_dir, ["198.51.100.1", "198.51.100.2"])
    assert add_bypass(mac.run_dir, ["198.51.100.3"]) == 1
    assert mac.kernel.route_to("198.51.100.1/32") is None
    assert mac.kernel.route_to("198.51.100.3/32") is not None


# watch


def test_egress_is_where_the_machine_leaves_by_itself(mac: Mac) -> None:
    mac.apply()
    assert egress("utun8") == (4, 4)
    mac.kernel.set_default("10.0.0.1", "en1")
    mac.kernel.remove_default(6)
    assert egress("utun8") == (6, 0)


def watched(mac: Mac, *steps: Callable[[], object]) -> list[object]:
    """Do the steps, each followed by as many turns of the loop as the watch may need; return what it says."""
    said: list[object] = []

    async def watch() -> None:
        watch = RouteWatch(
            asyncio.get_running_loop(),
            "utun8",
            on_change=said.append,
            on_gone=lambda: said.append("gone"),
            on_moved=said.append,
        )
        try:
            for step in steps:
                step()
                for _ in range(20):
                    await asyncio.sleep(0)
        finally:
            watch.close()

    on_loop(watch)()
    return said


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.netconf.darwin_watch.DEBOUNCE", 0)


def test_watch_tells_of_another_network_once_for_all_messages(mac: Mac, fast: None) -> None:
    mac.apply()

    def roam() -> None:
        mac.kernel.remove_default(4)
        mac.kernel.remove_default(6)
        mac.kernel.set_default("10.0.0.1", "en1")

    assert watched(mac, roam) == [(6, 0)]


def test_watch_does_not_take_our_own_changes_for_another_network(mac: Mac, fast: None) -> None:
    assert watched(mac, mac.apply, lambda: darwin.renew(mac.run_dir)) == []


def test_watch_tells_when_a_route_into_the_tun_is_lost(mac: Mac, fast: None) -> None:
    mac.apply()

    def lose() -> None:
        with system.route_socket() as sock:
            system.send_route(sock, encode_route(RTM_DELETE, "64.0.0.0/2", "198.18.0.1", sequence=9))

    assert watched(mac, lose) == [(4, 4)]


def test_watch_tells_when_the_tun_is_gone(mac: Mac, fast: None) -> None:
    mac.apply()
    assert watched(mac, mac.crash)[-1] == "gone"


def test_plan_survives_its_way_to_the_helper(mac: Mac) -> None:
    plan = mac.plan(captures_dns=True)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=NetworkPlan) == plan
