"""A plan applied to a real network, and what the kernel then does with packets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.netconf.machine import MARK, TUN_V4, TUN_V6, UID, UPSTREAM, Helper, plan, tun
from tests.support.netns import (
    CLIENT_V4,
    CLIENT_V6,
    PROXY_V4,
    PROXY_V6,
    TARGET_V4,
    TARGET_V6,
    Namespace,
    Topology,
    ip,
    namespace,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
def client(net: Topology) -> Namespace:
    return net.client


@pytest.fixture
def helper(client: Namespace, tmp_path: Path) -> Helper:
    return Helper(client, tmp_path)


@pytest.fixture
def applied(client: Namespace, helper: Helper) -> Iterator[None]:
    """The plan of an ordinary run is in force."""
    with tun(client):
        done = helper.apply(plan())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield


@pytest.mark.usefixtures("applied")
class TestApplied:
    @pytest.mark.parametrize(
        ("destination", "selectors", "device", "source"),
        [
            pytest.param(TARGET_V4, "", "tun0", TUN_V4, id="remote"),
            pytest.param(TARGET_V4, f"from {TUN_V4}", "tun0", TUN_V4, id="remote, from the tun's address"),
            pytest.param(TARGET_V4, f"uid {UID}", "uplink", CLIENT_V4, id="remote, from a worker"),
            pytest.param(TARGET_V4, f"mark {MARK:#x}", "uplink", CLIENT_V4, id="remote, marked"),
            pytest.param(TARGET_V4, f"from {CLIENT_V4}", "uplink", CLIENT_V4, id="reply to an inbound connection"),
            pytest.param(TARGET_V4, "oif uplink", "uplink", CLIENT_V4, id="remote, bound to an interface"),
            pytest.param("192.0.2.77", "", "uplink", CLIENT_V4, id="LAN"),
            pytest.param("127.0.0.1", "", "lo", "127.0.0.1", id="loopback"),
            pytest.param(UPSTREAM, "", "uplink", CLIENT_V4, id="upstream"),
            pytest.param("224.0.0.251", "", "uplink", CLIENT_V4, id="multicast"),
            pytest.param("255.255.255.255", "", "uplink", CLIENT_V4, id="limited broadcast"),
            pytest.param(TARGET_V6, "", "tun0", TUN_V6, id="remote v6"),
            pytest.param(TARGET_V6, f"from {TUN_V6}", "tun0", TUN_V6, id="remote v6, from the tun's address"),
            pytest.param(TARGET_V6, f"uid {UID}", "uplink", CLIENT_V6, id="remote v6, from a worker"),
            pytest.param(TARGET_V6, f"mark {MARK:#x}", "uplink", CLIENT_V6, id="remote v6, marked"),
            pytest.param(TARGET_V6, f"from {CLIENT_V6}", "uplink", CLIENT_V6, id="reply to an inbound connection v6"),
            pytest.param("2001:db8:1::77", "", "uplink", CLIENT_V6, id="LAN v6"),
            pytest.param("::1", "", "lo", "::1", id="loopback v6"),
        ],
    )
    def test_route_of(self, client: Namespace, destination: str, selectors: str, device: str, source: str) -> None:
        route = client.route_to(destination, *selectors.split())
        assert (route["dev"], route.get("prefsrc", route.get("from"))) == (device, source)

    @pytest.mark.parametrize(
        ("destination", "neighbour"), [(TARGET_V4, "192.0.2.99"), (TARGET_V6, "2001:db8:1::99")], ids=["v4", "v6"]
    )
    def test_forwarded_packets_go_into_the_tun_and_not_back(
        self, client: Namespace, destination: str, neighbour: str
    ) -> None:
        with client.entered():
            for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path("/proc/sys/net", path).write_text("1")
        assert client.route_to(destination, "from", neighbour, "iif", "uplink")["dev"] == "tun0"
        assert client.route_to(destination, "from", neighbour, "iif", "tun0")["dev"] == "uplink"

    def test_later_rules_of_the_user_still_apply_to_our_own_sockets(self, client: Namespace) -> None:
        with client.entered():
            ip("route", "add", "unreachable", TARGET_V4, "table", "77")
            ip("rule", "add", "priority", "20000", "lookup", "77")
        with pytest.raises(AssertionError, match=r"No route to host|unreachable"):
            client.route_to(TARGET_V4, "uid", str(UID))

    def test_tun_has_no_link_local_address(self, client: Namespace) -> None:
        with client.entered():
            addresses = ip("-br", "addr", "show", "dev", "tun0")
        assert addresses.split()[2:] == [f"{TUN_V4}/30", f"{TUN_V6}/126"]


@pytest.mark.parametrize(
    ("family", "here", "there"),
    [(socket.AF_INET, CLIENT_V4, TARGET_V4), (socket.AF_INET6, CLIENT_V6, TARGET_V6)],
    ids=["v4", "v6"],
)
def test_inbound_connections_from_afar_live_on(
    net: Topology, helper: Helper, family: socket.AddressFamily, here: str, there: str
) -> None:
    """What an ssh session needs: both the one that is open, and the next."""
    with net.client.entered():
        # The strictest setting: a packet must come in by the interface its source is routed to.
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")
        server = socket.create_server((here, 22), family=family)

    def call() -> tuple[socket.socket, socket.socket]:
        with net.internet.entered():
            caller = socket.create_connection((here, 22), source_address=(there, 0), timeout=5)
        session, _ = server.accept()
        session.settimeout(5)
        return caller, session

    with server, tun(net.client):
        pairs = [call()]
        assert helper.apply(plan()).returncode == 0
        pairs.append(call())
        for caller, session in pairs:
            with caller, session:
                caller.sendall(b"ping")
                assert session.recv(4) == b"ping"
                session.sendall(b"pong")
                assert caller.recv(4) == b"pong"


def test_undo_restores_everything(client: Namespace, helper: Helper) -> None:
    with tun(client):
        before = client.snapshot()
        assert helper.apply(plan()).returncode == 0
        assert client.snapshot() != before
        done = helper.undo()
        assert (done.returncode, done.stderr) == (0, "")
        assert int(done.stdout) > 20
        assert client.snapshot() == before
        assert helper.left_in_run_dir() == []


def test_undo_after_the_tun_is_gone(client: Namespace, helper: Helper) -> None:
    before = client.snapshot()
    with tun(client):
        assert helper.apply(plan()).returncode == 0
    assert client.snapshot() != before
    assert helper.undo().returncode == 0
    assert client.snapshot() == before
    assert helper.left_in_run_dir() == []


def test_undo_twice_leaves_alone_what_came_in_between(client: Namespace, helper: Helper) -> None:
    with tun(client):
        assert helper.apply(plan()).returncode == 0
        assert helper.undo().returncode == 0
        with client.entered():
            ip("rule", "add", "priority", "9012", "nop")  # equal to one that we had
        between = client.snapshot()
        done = helper.undo()
        assert (done.returncode, done.stdout) == (0, "0\n")
        assert client.snapshot() == between


def test_undo_leaves_alone_what_others_have_changed(client: Namespace, helper: Helper) -> None:
    with tun(client):
        before = client.snapshot()
        assert helper.apply(plan()).returncode == 0
        with client.entered():
            ip("rule", "del", "priority", "9001")
            ip("rule", "add", "priority", "9001", "from", "10.0.0.0/8", "fwmark", f"{MARK:#x}", "goto", "9012")
            ip("route", "del", "0.0.0.0/1", "table", "2022")
            ip("link", "set", "tun0", "mtu", "1400")
        assert helper.undo().returncode == 0
        after = client.snapshot()
        (link,) = (link for link in after["links"] if link["ifname"] == "tun0")
        assert link["mtu"] == 1400
        (rule,) = (rule for rule in after["rules v4"] if rule not in before["rules v4"])
        assert rule["src"] == "10.0.0.0"
        assert helper.left_in_run_dir() == []


def test_undo_leaves_alone_a_later_tun_of_the_same_name(client: Namespace, helper: Helper) -> None:
    with tun(client):
        assert helper.apply(plan()).returncode == 0
    with tun(client), client.entered():
        ip("addr", "add", f"{TUN_V4}/30", "dev", "tun0")
        ip("link", "set", "tun0", "up")
        links = client.snapshot()["addresses"]
        assert helper.undo().returncode == 0
        assert client.snapshot()["addresses"] == links


def test_apply_undoes_what_a_crash_has_left(client: Namespace, helper: Helper) -> None:
    before = client.snapshot()
    with tun(client):
        assert helper.apply(plan(own_uid=991)).returncode == 0
    with tun(client):
        done = helper.apply(plan())
        assert (done.returncode, done.stderr) == (0, "")
        assert client.route_to(TARGET_V4, "uid", "991")["dev"] == "tun0"
    assert helper.undo().returncode == 0
    assert client.snapshot() == before


def test_rules_of_another_program(client: Namespace, helper: Helper) -> None:
    with tun(client), client.entered():
        ip("-6", "rule", "add", "priority", "9003", "lookup", "100")
        before = client.snapshot()
        done = helper.apply(plan())
        assert done.returncode == 1
        assert "IPv6 routing rule of another program at priority 9003" in done.stderr
        assert done.stderr.count("\n") == 1
        assert client.snapshot() == before
        assert helper.left_in_run_dir() == []


@pytest.mark.parametrize(
    ("family", "destination"), [("4", "128.0.0.0/2"), ("6", "2001:db8::/32"), ("4", "default"), ("6", "default")]
)
def test_routes_of_another_program(client: Namespace, helper: Helper, family: str, destination: str) -> None:
    with tun(client), client.entered():
        ip(f"-{family}", "route", "add", destination, "dev", "lo", "table", "2022")
        before = client.snapshot()
        done = helper.apply(plan())
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"The IPv{family} route table 2022 holds a route to {destination} that is not ours"
        )
        assert client.snapshot() == before
        assert helper.left_in_run_dir() == []


def test_failure_halfway_undoes_all_and_nothing_else(client: Namespace, helper: Helper) -> None:
    with tun(client), client.entered():
        ip("addr", "add", f"{TUN_V4}/30", "dev", "tun0")  # comes after the link was changed
        before = client.snapshot()
        done = helper.apply(plan())
        assert done.returncode == 1
        assert done.stderr.startswith(f"The address {TUN_V4}/30 of the tun exists already and is not ours")
        assert client.snapshot() == before
        assert helper.left_in_run_dir() == []


def test_interface_that_is_not_there(helper: Helper) -> None:
    done = helper.apply(plan(addresses=[f"{TUN_V4}/30"]))
    assert (done.returncode, done.stderr) == (1, "There is no interface 'tun0' in this network namespace.\n")


def test_without_auto_route_only_the_interface_is_set_up(client: Namespace, helper: Helper) -> None:
    with tun(client):
        before = client.snapshot()
        assert helper.apply(plan(auto_route=False)).returncode == 0
        after = client.snapshot()
        assert after["rules v4"] == before["rules v4"]
        assert client.route_to(TARGET_V4)["dev"] == "uplink"
        assert client.route_to("172.19.0.2")["dev"] == "tun0"
        assert helper.undo().returncode == 0
        assert client.snapshot() == before


def test_ipv6_disabled_on_the_machine(client: Namespace, helper: Helper) -> None:
    with client.entered():
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    with tun(client):
        before = client.snapshot()
        done = helper.apply(plan())
        assert (done.returncode, done.stdout) == (0, "IPv6 is left out: it is disabled on this machine.\n")
        assert client.route_to(TARGET_V4)["dev"] == "tun0"
        assert client.snapshot()["rules v6"] == before["rules v6"]
        assert helper.undo().returncode == 0
        assert client.snapshot() == before


def test_mtu_too_small_for_ipv6(client: Namespace, helper: Helper) -> None:
    with tun(client):
        done = helper.apply(plan(mtu=1000))
        assert (done.returncode, done.stdout) == (
            0,
            "IPv6 is left out: it needs an MTU of 1280 bytes, and the tun has 1000.\n",
        )
        assert client.route_to(TARGET_V4)["dev"] == "tun0"


def test_journal_of_another_namespace(client: Namespace, helper: Helper) -> None:
    with tun(client):
        assert helper.apply(plan()).returncode == 0
        with namespace("elsewhere") as elsewhere:
            done = Helper(elsewhere, helper.run_dir).undo()
        assert done.returncode == 1
        assert "belongs to another network namespace" in done.stderr
        assert client.route_to(TARGET_V4)["dev"] == "tun0"


def test_journal_from_before_a_reboot(client: Namespace, helper: Helper) -> None:
    with tun(client):
        assert helper.apply(plan()).returncode == 0
        before = client.snapshot()
        journal = helper.run_dir / "network.journal"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        journal.write_text(journal.read_text().replace(boot, "0"))
        assert helper.undo().returncode == 0
        assert client.snapshot() == before
        assert helper.left_in_run_dir() == []


def test_not_permitted(client: Namespace, helper: Helper) -> None:
    with tun(client):
        before = client.snapshot()
        done = helper.apply(plan(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        assert done.returncode == 3
        assert "needs root or the capability CAP_NET_ADMIN" in done.stderr
        assert client.snapshot() == before
        assert helper.left_in_run_dir() == []


def test_packets_past_the_proxy_are_refused_and_counted(net: Topology) -> None:
    """The leak meter that other tests trust."""
    net.refuse_direct()
    with net.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"to the proxy", (PROXY_V4, 1080))
        assert net.direct_packets() == 0
        sender.sendto(b"past it", (TARGET_V4, 53))
    with net.client.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"to the proxy", (PROXY_V6, 1080))
        sender.sendto(b"past it", (TARGET_V6, 53))
    assert net.direct_packets() == 2


# who goes into the tun


def device_to(client: Namespace, destination: str, *selectors: str) -> str:
    device = client.route_to(destination, *selectors)["dev"]
    assert isinstance(device, str)
    return device


def test_excluded_users_and_interfaces_leave_and_everything_is_undone(client: Namespace, helper: Helper) -> None:
    before = client.snapshot()
    with tun(client):
        wanted = plan(exclude_uid=[(2000, 2999)], exclude_interface=["uplink"])
        assert helper.apply(wanted).returncode == 0
        for uid, device in (("1999", "tun0"), ("2000", "uplink"), ("2999", "uplink"), ("3000", "tun0")):
            assert device_to(client, TARGET_V4, "uid", uid) == device
            assert device_to(client, TARGET_V6, "uid", uid) == device
        with client.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        assert device_to(client, TARGET_V4, "from", "192.0.2.99", "iif", "uplink") == "uplink"
        with client.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        assert helper.undo().returncode == 0
    assert client.snapshot() == before


def test_included_users_alone_go_into_the_tun(client: Namespace, helper: Helper) -> None:
    with tun(client):
        assert helper.apply(plan(include_uid=[(1000, 1000)])).returncode == 0
        assert device_to(client, TARGET_V4, "uid", "1000") == "tun0"
        assert device_to(client, TARGET_V4, "uid", "1001") == "uplink"


def test_included_interfaces_alone_go_into_the_tun(client: Namespace, helper: Helper) -> None:
    with client.entered():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    with tun(client):
        assert helper.apply(plan(include_interface=["uplink"])).returncode == 0
        assert device_to(client, TARGET_V4) == "uplink"
        assert device_to(client, TARGET_V4, "from", "192.0.2.99", "iif", "uplink") == "tun0"
        assert helper.undo().returncode == 0
        assert helper.apply(plan(include_interface=["lo"])).returncode == 0
        assert device_to(client, TARGET_V4) == "tun0"
        assert device_to(client, TARGET_V4, "from", "192.0.2.99", "iif", "uplink") == "uplink"


def test_captured_dns_goes_into_the_tun_even_to_the_lan(client: Namespace, helper: Helper) -> None:
    before = client.snapshot()
    with tun(client):
        assert helper.apply(plan(captures_dns=True)).returncode == 0
        for protocol in "udp", "tcp":
            assert device_to(client, "192.0.2.77", "ipproto", protocol, "dport", "53") == "tun0"
            assert device_to(client, "192.0.2.77", "ipproto", protocol, "dport", "54") == "uplink"
        assert device_to(client, "127.0.0.53", "ipproto", "udp", "dport", "53") == "lo"
        assert device_to(client, "192.0.2.77", "ipproto", "udp", "dport", "53", "uid", str(UID)) == "uplink"
        assert helper.undo().returncode == 0
    assert client.snapshot() == before


def test_strict_leaves_no_way_out_for_the_family_without_address(client: Namespace, helper: Helper) -> None:
    before = client.snapshot()
    with tun(client):
        wanted = plan(addresses=(f"{TUN_V4}/30",), strict=True)
        assert helper.apply(wanted).returncode == 0
        assert device_to(client, TARGET_V4) == "tun0"
        for source in (), ("from", CLIENT_V6):  # a connect asks again with the source that it would have
            with pytest.raises(AssertionError, match="Network is unreachable"):
                client.route_to(TARGET_V6, *source)
        assert device_to(client, "2001:db8:1::77") == "uplink"
        assert device_to(client, "::1") == "lo"
        assert device_to(client, TARGET_V6, "uid", str(UID)) == "uplink"
        assert helper.undo().returncode == 0
    assert client.snapshot() == before
