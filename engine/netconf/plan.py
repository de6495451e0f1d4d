"""What is wanted of the network, and how routes and rules express it. Pure: nothing here touches the machine.

Same conventions as sing-box: one route table of our own (2022), policy rules from priority 9000. A rule `goto`es the nop
at the end rather than naming the main table, so that rules of the user that come later still apply: rules.py.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Literal

import msgspec
from netaddr import AddrFormatError, IPNetwork, IPSet

from engine.netconf import NetworkError

__all__ = [
    "TABLE_MAIN",
    "Address",
    "Bypass",
    "Change",
    "Family",
    "KillSwitch",
    "Link",
    "LinkState",
    "NetworkPlan",
    "Route",
    "Rule",
    "Sysctl",
    "build_plan",
    "plan_addresses",
    "plan_bypass",
    "plan_kill_switch",
    "plan_routes",
    "plan_socket_routes",
    "prefixes",
    "socket_table",
]

Family = Literal[4, 6]

TABLE_MAIN = 254  # RT_TABLE_MAIN, include/uapi/linux/rtnetlink.h
ROUTE_METRIC = 1024
"""Of the routes into the tun: the default of IPv6, and in both families higher than that of a Bypass, which must win over
a route into the tun to the same host (the neighbour of an excluded one is often a /32)."""

UID_MAX = 0xFFFFFFFE  # all ones means no user (setreuid(2))
NEVER_PROXIED = ("224.0.0.0/4", "255.255.255.255/32")
"""Multicast and limited broadcast (RFC 1112, RFC 919) mean the local link, and no SOCKS proxy carries them. IPv6 needs no
such entry: its multicast routes are in the table `local`, which comes before ours."""


class NetworkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the helper process has to do; made by `build_plan`, sent as JSON."""

    interface: str
    mtu: int
    """Bytes."""
    addresses: tuple[str, ...]
    """The tun's own addresses with prefix length, IPv4 or IPv6. A family without address is not routed."""
    auto_route: bool
    """Lead the machine's traffic into the tun; False: only the interface is set up."""
    table: int
    priority: int
    """Priority of the first rule; RULE_COUNT priorities are used (rules.py)."""
    routes: tuple[str, ...]
    """Destinations that go into the tun: minimal prefixes, with all exclusions taken out."""
    own_uid: int | None
    """The workers' user: its sockets never enter the tun."""
    own_mark: int | None
    """SO_MARK of sockets that never enter the tun."""
    bypass: tuple[str, ...] = ()
    """Host addresses that leave beside the tun from the first packet on; `Network.bypass` adds to them."""
    upstreams: tuple[str, ...] = ()
    """Addresses of proxies on other machines."""
    kill_switch: bool = False
    """Whatever does not go into the tun, and is neither local nor the engine's, does not leave at all."""
    strict: bool = False
    """A family without address is closed: nothing of it leaves but to the LAN, and by who is exempt."""
    captures_dns: bool = False
    """What is sent to port 53 goes into the tun even when it is for the LAN."""
    excluded_uids: tuple[tuple[int, int], ...] = ()
    """Users, as ranges with both ends, whose traffic does not enter the tun."""
    included_interfaces: tuple[str, ...] = ()
    """Only what comes in by these enters the tun (`lo`: what this machine sends itself); empty: everything."""
    excluded_interfaces: tuple[str, ...] = ()
    """What comes in by these does not."""
    name_servers: tuple[str, ...] = ()
    """Addresses that lead into the tun and that the machine is to ask for names (macOS: engine/netconf/darwin_plan.py)."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, tag="rule", omit_defaults=True):
    """One policy rule (include/uapi/linux/fib_rules.h). Absent fields match everything."""

    family: Family
    priority: int
    table: int | None = None
    """lookup TABLE."""
    goto: int | None = None
    """goto PRIORITY. Neither table, goto nor unreachable: nop."""
    source: str | None = None
    """Prefix."""
    iif: str | None = None
    """Interface a packet came in by; `lo`: sent by this machine."""
    invert: bool = False
    """`not`: the rule acts on packets that do not match."""
    uid: int | None = None
    last_uid: int | None = None
    """The end of a range that begins with `uid`."""
    mark: int | None = None
    port: int | None = None
    """Destination port."""
    unreachable: bool = False
    """The packet does not leave: EHOSTUNREACH or ICMP."""
    suppress_prefix_length: int | None = None
    """A route with a prefix of at most this many bits does not count."""


class Route(msgspec.Struct, frozen=True, kw_only=True, tag="route"):
    """One route into the tun."""

    family: Family
    destination: str
    table: int
    metric: int = ROUTE_METRIC


class Bypass(msgspec.Struct, frozen=True, kw_only=True, tag="bypass"):
    """One host that leaves beside the tun: a `throw` route, which ends the look-up in our table."""

    family: Family
    address: str
    table: int


class Address(msgspec.Struct, frozen=True, kw_only=True, tag="address"):
    """One address of the tun, with prefix length."""

    family: Family
    address: str


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """What of an interface is changed."""

    mtu: int
    queue_length: int
    """Packets that wait for the engine."""
    up: bool
    addr_gen_mode: int | None = None
    """How the kernel makes IPv6 link-local addresses (include/uapi/linux/if_link.h); None: the interface has no IPv6."""


class Link(msgspec.Struct, frozen=True, kw_only=True, tag="link"):
    """The tun as it was and as it is to be."""

    before: LinkState
    after: LinkState


class Sysctl(msgspec.Struct, frozen=True, kw_only=True, tag="sysctl"):
    """One value of the tun under /proc/sys."""

    path: str
    before: str
    after: str


class KillSwitch(msgspec.Struct, frozen=True, kw_only=True, tag="kill_switch"):
    """Nothing leaves but into the tun, to the LAN, or as one of these."""

    interface: str
    uid: int | None
    """The workers' user."""
    mark: int | None
    """SO_MARK of the engine's sockets."""
    hosts: tuple[str, ...]
    """The proxy's addresses, and those that bypass the tun."""
    captures_dns: bool = False
    """What is sent to port 53 does not go to the LAN either."""


Change = KillSwitch | Rule | Route | Bypass | Address | Link | Sysctl
"""One change of the network. It says enough to be undone."""


def build_plan(
    *,
    interface: str,
    mtu: int,
    addresses: Iterable[str],
    auto_route: bool = True,
    include: Iterable[str] = ("0.0.0.0/0", "::/0"),
    exclude: Iterable[str] = (),
    upstreams: Iterable[str] = (),
    own_uid: int | None = None,
    own_mark: int | None = None,
    bypass: Iterable[str] = (),
    kill_switch: bool = False,
    strict: bool = False,
    captures_dns: bool = False,
    include_uid: Iterable[tuple[int, int]] = (),
    exclude_uid: Iterable[tuple[int, int]] = (),
    include_interface: Iterable[str] = (),
    exclude_interface: Iterable[str] = (),
    table: int = 2022,
    priority: int = 9000,
) -> NetworkPlan:
    """Compute the routes: `include` minus `exclude` (prefixes) minus `upstreams` (addresses of the proxy).

    Users are given as ranges with both ends; without `include_uid` all are included. Raises NetworkError when an address or
    prefix cannot be read.
    """
    addresses = tuple(addresses)
    for address in addresses:
        _family(address)
    included = prefixes(include)
    # A loopback upstream is reached through the table `local`, whatever we route.
    remote = [address for address in upstreams if not _address(address).is_loopback]
    routed = included - prefixes(exclude) - prefixes(remote) - prefixes(NEVER_PROXIED)
    return NetworkPlan(
        interface=interface,
        mtu=mtu,
        addresses=addresses,
        auto_route=auto_route,
        table=table,
        priority=priority,
        routes=tuple(str(prefix) for prefix in routed.iter_cidrs()) if auto_route else (),
        own_uid=own_uid,
        own_mark=own_mark,
        bypass=tuple(bypass) if auto_route else (),
        upstreams=tuple(remote),
        kill_switch=kill_switch and auto_route,
        strict=strict and auto_route,
        captures_dns=captures_dns,
        excluded_uids=_excluded_uids(tuple(include_uid), exclude_uid),
        included_interfaces=tuple(include_interface),
        excluded_interfaces=tuple(exclude_interface),
    )


def plan_addresses(plan: NetworkPlan, family: Family) -> list[Address]:
    """Return the tun's addresses of one family."""
    return [Address(family=family, address=text) for text in plan.addresses if _family(text) == family]


def plan_routes(plan: NetworkPlan, family: Family) -> list[Route]:
    """Return the routes of one family; none when the tun has no address of it."""
    if not plan_addresses(plan, family):
        return []
    return [Route(family=family, destination=text, table=plan.table) for text in plan.routes if _family(text) == family]


def socket_table(table: int) -> int:
    """Return the table for sockets that have the tun's address: all their packets go into the tun, whatever bypasses it.

    A host that begins to bypass the tun may have connections through it, which leave by no other way with that address.
    """
    return table + 1


def plan_socket_routes(plan: NetworkPlan, family: Family) -> list[Route]:
    """Return the routes of `socket_table`; none when the family's traffic is not routed."""
    if not plan_routes(plan, family):
        return []
    everything = "0.0.0.0/0" if family == 4 else "::/0"
    return [Route(family=family, destination=everything, table=socket_table(plan.table))]


def plan_bypass(addresses: Iterable[str], tables: Mapping[Family, int]) -> list[Bypass]:
    """Return what lets `addresses` leave beside the tun; `tables` has our route table of each family that is routed.

    Raises NetworkError for what is no address.
    """
    hosts = [(_family(text), str(_address(text))) for text in addresses]
    return [Bypass(family=family, address=host, table=tables[family]) for family, host in hosts if family in tables]


def plan_kill_switch(plan: NetworkPlan) -> list[KillSwitch]:
    """Return the kill switch; none when it is not wanted."""
    if not plan.kill_switch:
        return []
    hosts = (*plan.upstreams, *plan.bypass)
    return [
        KillSwitch(
            interface=plan.interface,
            uid=plan.own_uid,
            mark=plan.own_mark,
            hosts=hosts,
            captures_dns=plan.captures_dns,
        )
    ]


def _family(text: str) -> Family:
    try:
        return 4 if ip_interface(text).version == 4 else 6
    except ValueError as error:
        raise NetworkError(f"{text!r} is neither an IPv4 nor an IPv6 address.") from error


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise NetworkError(f"{text!r} is neither an IPv4 nor an IPv6 address.") from error


def prefixes(texts: Iterable[str]) -> IPSet:
    """Return the set of these prefixes and addresses. Raises NetworkError for what is neither."""
    found = IPSet()
    for text in texts:
        try:
            found.add(IPNetwork(text))
        except (AddrFormatError, ValueError) as error:
            raise NetworkError(f"{text!r} is neither an address nor a prefix such as 10.0.0.0/8.") from error
    return found


def _excluded_uids(
    include: tuple[tuple[int, int], ...], exclude: Iterable[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Return the users that are excluded, or not included where any are: ascending ranges that neither overlap nor touch."""
    ranges = list(exclude)
    if include:
        after = 0
        for first, last in sorted(include):
            if first > after:
                ranges.append((after, first - 1))
            after = max(after, last + 1)
        if after <= UID_MAX:
            ranges.append((after, UID_MAX))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
