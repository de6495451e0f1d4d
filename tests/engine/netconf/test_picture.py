"""How the machine is connected, read from a real kernel, and what is different."""

import socket
import struct

import pytest

from engine.netconf.picture import Interface, Picture, WayOut, differences, read_picture
from engine.netconf.rtnetlink import (
    GROUPS,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    RouteMessage,
    RuleMessage,
    dump,
    parse,
    read_waiting,
)
from engine.netconf.throw import RTN_THROW
from tests.support.netns import CLIENT_V4, CLIENT_V6, PROXY_V4, PROXY_V6, Namespace, Topology, ip


@pytest.fixture
def client(net: Topology) -> Namespace:
    return net.client


@pytest.mark.e2e
def test_picture_of_a_namespace(client: Namespace) -> None:
    with client.entered():
        ip("link", "add", "bridge0", "type", "bridge")  # down, without an address
        tun = socket.if_nametoindex("bridge0")
        assert set(read_picture(0).interfaces) == {"bridge0", "uplink"}
        picture = read_picture(tun)
        ip("link", "del", "bridge0")
    assert picture.interfaces == {"uplink": Interface(True, frozenset((f"{CLIENT_V4}/24", f"{CLIENT_V6}/64")))}
    assert picture.ways_out == {4: WayOut("uplink", PROXY_V4), 6: WayOut("uplink", PROXY_V6)}
    assert picture.local == {"192.0.2.0/24", "2001:db8:1::/64", "fe80::/64"}
    assert picture.addresses("uplink", 4) == [f"{CLIENT_V4}/24"]
    assert picture.addresses("uplink", 6) == [f"{CLIENT_V6}/64"]
    assert picture.addresses("wifi", 4) == []


@pytest.mark.e2e
def test_best_default_route_is_the_way_out(client: Namespace) -> None:
    with client.entered():
        ip("route", "add", "default", "dev", "uplink", "metric", "50")  # that of the topology has 0
        assert read_picture(0).ways_out[4] == WayOut("uplink", PROXY_V4)
        ip("route", "del", "default", "metric", "0")
        assert read_picture(0).ways_out[4] == WayOut("uplink", "")
        ip("route", "add", "default", "metric", "1", "nexthop", "via", PROXY_V4, "nexthop", "via", "192.0.2.9")
        assert read_picture(0).ways_out[4] == WayOut("uplink", PROXY_V4)
        ip("-6", "route", "flush", "default")
        assert 6 not in read_picture(0).ways_out


@pytest.mark.e2e
def test_dump_of_one_table_and_of_rules(client: Namespace) -> None:
    with client.entered():
        assert dump(RTM_GETROUTE, socket.AF_INET, table=2022) == []
        ip("route", "add", "throw", "203.0.113.7", "table", "2022", "metric", "9", "proto", "77")
        ip("-6", "rule", "add", "priority", "9003", "lookup", "2022")
        (route,) = dump(RTM_GETROUTE, socket.AF_INET, table=2022)
        assert route == RouteMessage(4, 2022, RTN_THROW, 77, "203.0.113.7/32", 0, "", 9, False)
        rules = dump(RTM_GETRULE)
    assert [rule for rule in rules if isinstance(rule, RuleMessage) and rule.priority == 9003] == [RuleMessage(6, 9003)]
    assert RuleMessage(4, 0) in rules


@pytest.mark.e2e
def test_messages_that_the_kernel_had_to_drop_are_told(client: Namespace) -> None:
    with (
        client.entered(),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as watching,
    ):
        watching.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
        watching.bind((0, GROUPS))
        for last in range(1, 60):
            ip("addr", "add", f"10.1.1.{last}/32", "dev", "uplink")
        found = list(read_waiting(watching))
        assert None in found
        assert any(kind == RTM_NEWADDR for data in found if data is not None for kind, _ in parse(data))
        assert list(read_waiting(watching)) == [], "and once"


def test_router_of_the_other_family() -> None:
    """`ip route add default via inet6 fe80::1`: struct rtvia."""
    via = struct.pack("=HHH16s2x", 22, 18, socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "fe80::1"))
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0) + via + struct.pack("=HHI", 8, 4, 7)
    message = struct.pack("=IHHII", 16 + len(body), RTM_NEWROUTE, 0, 0, 0) + body
    assert list(parse(message)) == [(RTM_NEWROUTE, RouteMessage(4, 254, 1, 3, "default", 7, "fe80::1", 0, False))]


@pytest.mark.parametrize("length", range(60))
def test_message_that_is_cut_short_is_no_message(length: int) -> None:
    """The kernel sends none; but whatever comes, nothing is raised."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, 254, 3, 0, 1, 0) + struct.pack("=HHI", 8, 1, 0x0A)
    message = struct.pack("=IHHII", 16 + len(body), RTM_NEWROUTE, 0, 0, 0) + body
    assert len(list(parse((message + message)[:length]))) <= 2


def picture(**changed: object) -> Picture:
    lan = Interface(True, frozenset(("192.0.2.2/24",)))
    usual = Picture(
        {"eth0": lan, "veth1": Interface(True, frozenset())}, {4: WayOut("eth0", "192.0.2.1")}, frozenset(), 9000
    )
    return usual._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (picture(), []),
        (
            picture(interfaces={"eth0": Interface(False, frozenset(("192.0.2.2/24",)))}),
            [("interface_down", "eth0 is down")],
        ),
        (picture(interfaces={}, ways_out={}), [
            ("interface_down", "eth0 is gone"),
            ("default_route_moved", "the default route of IPv4 moved from eth0 (192.0.2.1) to nowhere"),
        ]),
        (
            picture(interfaces={"eth0": Interface(True, frozenset(("192.0.2.9/24",)))}),
            [("address_changed", "eth0: 192.0.2.9/24 added, 192.0.2.2/24 removed")],
        ),
        (
            picture(
                interfaces=picture().interfaces | {"wlan0": Interface(True, frozenset(("192.0.3.2/24",)))},
                ways_out={4: WayOut("wlan0", "192.0.3.1"), 6: WayOut("ppp0", "")},
            ),
            [
                ("interface_up", "wlan0 is up"),
                ("address_changed", "wlan0: 192.0.3.2/24 added"),
                ("default_route_moved", "the default route of IPv4 moved from eth0 (192.0.2.1) to wlan0 (192.0.3.1)"),
                ("default_route_moved", "the default route of IPv6 moved from nowhere to ppp0"),
            ],
        ),
        (
            picture(local=frozenset(f"10.{n}.0.0/16" for n in range(5))),
            [("local_networks_changed", "local networks: 10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16 and 2 more added")],
        ),
        (
            picture(mtu=1400),
            [("conflict", "another program has set the tun's MTU to 1400 (it was 9000); it is left so")],
        ),
        (picture(mtu=0), []),  # the tun is gone, which others tell
    ],
)  # fmt: skip
def test_differences(after: Picture, told: list[tuple[str, str]]) -> None:
    assert list(differences(picture(), after)) == told


def test_interface_without_an_address_counts_for_nothing() -> None:
    containers = {f"veth{n}": Interface(True, frozenset()) for n in range(200)}
    assert list(differences(picture(), picture(interfaces=picture().interfaces | containers))) == []
