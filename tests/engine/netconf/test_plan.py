"""Routes and rules as values."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.netconf import NetworkError
from engine.netconf.plan import (
    NetworkPlan,
    Route,
    Rule,
    build_plan,
    plan_addresses,
    plan_routes,
    plan_socket_routes,
)
from engine.netconf.rules import RULE_COUNT, plan_rules

Address = IPv4Address | IPv6Address

V4, V6 = "172.19.0.1/30", "fdfe:dcba:9876::1/126"


def plan(**changed: Any) -> NetworkPlan:
    settings: dict[str, Any] = {"interface": "tun0", "mtu": 1500, "addresses": (V4, V6)}
    return build_plan(**settings | changed)


def covers(made: NetworkPlan, address: str) -> bool:
    target = ip_address(address)
    networks = (ip_network(route) for route in made.routes)
    return any(target in network for network in networks if network.version == target.version)


def test_everything_but_multicast_and_broadcast_is_routed() -> None:
    made = plan()
    for address in ("0.0.0.1", "1.1.1.1", "223.255.255.255", "255.255.255.254", "::2", "2001:db8::1"):
        assert covers(made, address), address
    for address in ("224.0.0.251", "239.255.255.250", "255.255.255.255"):
        assert not covers(made, address), address
    assert [route.destination for route in plan_routes(made, 6)] == ["::/0"]


def test_included_ranges_alone_are_routed() -> None:
    assert plan(include=["10.0.0.0/8", "10.0.0.0/9", "fd00::/8"]).routes == ("10.0.0.0/8", "fd00::/8")


def test_upstream_is_taken_out_in_minimal_prefixes() -> None:
    made = plan(include=["198.51.100.8/30"], upstreams=["198.51.100.10"])
    assert made.routes == ("198.51.100.8/31", "198.51.100.11/32")


def test_loopback_upstream_needs_no_exclusion() -> None:
    assert plan(upstreams=["127.0.0.1", "::1"]).routes == plan().routes


@given(
    st.lists(st.ip_addresses(), max_size=8),
    st.lists(st.tuples(st.ip_addresses(v=4), st.integers(1, 32)), max_size=8),
    st.ip_addresses(),
)
def test_no_excluded_address_is_routed_and_every_other_is(
    upstreams: list[Address], excluded: list[tuple[Address, int]], other: Address
) -> None:
    prefixes = [ip_network(f"{address}/{length}", strict=False) for address, length in excluded]
    made = plan(upstreams=[str(address) for address in upstreams], exclude=[str(prefix) for prefix in prefixes])
    for address in (*upstreams, *(prefix[0] for prefix in prefixes), *(prefix[-1] for prefix in prefixes), other):
        by_us = address.version == 4 and (address.is_multicast or str(address) == "255.255.255.255")
        by_user = any(address in prefix for prefix in prefixes if prefix.version == address.version)
        by_upstream = address in upstreams and not address.is_loopback
        assert covers(made, str(address)) == (not (by_us or by_user or by_upstream))


def test_no_routes_and_rules_without_auto_route() -> None:
    made = plan(auto_route=False)
    assert made.routes == ()
    assert plan_rules(made, 4) == plan_rules(made, 6) == []
    assert [address.address for address in plan_addresses(made, 6)] == [V6]


def test_family_without_address_is_not_routed() -> None:
    made = plan(addresses=[V4])
    assert plan_routes(made, 6) == plan_rules(made, 6) == []
    assert plan_rules(made, 4)


def test_sockets_of_the_tun_have_a_table_without_exceptions() -> None:
    made = plan(addresses=[V4], exclude=["203.0.113.0/24"])
    assert plan_socket_routes(made, 4) == [Route(family=4, destination="0.0.0.0/0", table=2023)]
    assert plan_socket_routes(made, 6) == []


def test_rules_v4() -> None:
    made = plan(own_uid=990, own_mark=0x2024)
    assert plan_rules(made, 4) == [
        Rule(family=4, priority=9012),
        Rule(family=4, priority=9000, uid=990, goto=9012),
        Rule(family=4, priority=9001, mark=0x2024, goto=9012),
        Rule(family=4, priority=9002, iif="tun0", goto=9012),
        Rule(family=4, priority=9006, table=254, suppress_prefix_length=0),
        Rule(family=4, priority=9007, source="172.19.0.1/32", iif="lo", table=2023),
        Rule(family=4, priority=9008, source="0.0.0.0/32", iif="lo", table=2022),
        Rule(family=4, priority=9011, iif="lo", invert=True, table=2022),
    ]


def test_rules_v6_let_sockets_with_a_source_leave() -> None:
    assert plan_rules(plan(), 6)[3:] == [
        Rule(family=6, priority=9007, source="fdfe:dcba:9876::1/128", iif="lo", table=2023),
        Rule(family=6, priority=9008, source="::/1", iif="lo", goto=9012),
        Rule(family=6, priority=9009, source="8000::/1", iif="lo", goto=9012),
        Rule(family=6, priority=9010, iif="lo", table=2022),
        Rule(family=6, priority=9011, iif="lo", invert=True, table=2022),
    ]


def test_table_and_priority_are_the_users() -> None:
    made = plan(table=77, priority=100)
    assert {rule.table for rule in plan_rules(made, 4)} == {None, 254, 77, 78}
    assert {route.table for route in plan_routes(made, 4)} == {77}
    priorities = {rule.priority for rule in (*plan_rules(made, 4), *plan_rules(made, 6))}
    assert min(priorities) >= 100 and max(priorities) == 100 + RULE_COUNT - 1


def test_excluded_users_and_interfaces_leave() -> None:
    made = plan(exclude_uid=[(1000, 1000), (2000, 2999)], exclude_interface=["eth1", "docker0"])
    for family in (4, 6):
        assert [rule for rule in plan_rules(made, family) if rule.priority == 9003] == [
            Rule(family=family, priority=9003, uid=1000, goto=9012),
            Rule(family=family, priority=9003, uid=2000, last_uid=2999, goto=9012),
            Rule(family=family, priority=9003, iif="eth1", goto=9012),
            Rule(family=family, priority=9003, iif="docker0", goto=9012),
        ]


def test_included_users_exclude_all_others() -> None:
    assert plan(include_uid=[(1000, 1000), (3000, 3999)]).excluded_uids == (
        (0, 999),
        (1001, 2999),
        (4000, 0xFFFFFFFE),
    )
    assert plan(include_uid=[(0, 0xFFFFFFFE)]).excluded_uids == ()


uid_ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair))))


@given(uid_ranges, uid_ranges)
def test_uid_is_excluded_as_the_lists_say(include: list[tuple[int, int]], exclude: list[tuple[int, int]]) -> None:
    made = plan(include_uid=include, exclude_uid=exclude).excluded_uids
    for uid in (*range(43), 0xFFFFFFFE):
        is_in = any(first <= uid <= last for first, last in include) or not include
        is_out = any(first <= uid <= last for first, last in exclude)
        assert any(first <= uid <= last for first, last in made) == (not is_in or is_out)
    assert all(after[0] > before[1] + 1 for before, after in pairwise(made))


def test_only_included_interfaces_go_on() -> None:
    made = plan(include_interface=["eth1", "lo"])
    assert [rule for rule in plan_rules(made, 4) if rule.priority in (9004, 9005)] == [
        Rule(family=4, priority=9004, iif="eth1", goto=9006),
        Rule(family=4, priority=9004, iif="lo", goto=9006),
        Rule(family=4, priority=9005, goto=9012),
    ]
    order = [rule.priority for rule in plan_rules(made, 4)]
    assert order.index(9006) < order.index(9004), "a goto without its target falls through"


def test_captured_dns_passes_the_main_table_by() -> None:
    assert Rule(family=4, priority=9006, port=53, invert=True, table=254, suppress_prefix_length=0) in plan_rules(
        plan(captures_dns=True), 4
    )


def test_strict_closes_the_family_without_address() -> None:
    made = plan(addresses=[V4], strict=True, own_uid=990)
    assert plan_rules(made, 6) == [
        Rule(family=6, priority=9012),
        Rule(family=6, priority=9000, uid=990, goto=9012),
        Rule(family=6, priority=9002, iif="tun0", goto=9012),
        Rule(family=6, priority=9006, table=254, suppress_prefix_length=0),
        Rule(family=6, priority=9010, iif="lo", unreachable=True),
        Rule(family=6, priority=9011, iif="lo", invert=True, unreachable=True),
    ]
    assert plan_rules(made, 4) == plan_rules(plan(addresses=[V4], own_uid=990), 4)
    assert plan_rules(plan(addresses=[V4], strict=True, auto_route=False), 6) == []


@pytest.mark.parametrize(
    "changed",
    [{"addresses": ["tun"]}, {"exclude": ["10.0.0.0/33"]}, {"include": ["all"]}, {"upstreams": ["proxy.example"]}],
)
def test_unreadable_address(changed: dict[str, object]) -> None:
    with pytest.raises(NetworkError, match="is neither"):
        plan(**changed)
