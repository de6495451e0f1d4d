"""What is wanted of a Mac's network, and the changes that it takes. Pure.

There are no policy rules: the tun takes eight prefixes per family, which together are everything but 0.0.0.0/8 and ::/8, and
are more specific than the default route, which stays. Two halves would do in their place but for xnu, to which any route
to a destination of all zeros is the default one, whatever its mask: 0.0.0.0/1 would take the default away from sockets
that are bound to the interface of the real one, and so from the engine's own.
"""

from collections.abc import Iterable
from ipaddress import ip_interface, ip_network

import msgspec
from netaddr import IPSet

from engine.netconf import NetworkError
from engine.netconf.plan import Family, NetworkPlan, build_plan, prefixes

__all__ = [
    "DarwinChange",
    "HostRoute",
    "NameServers",
    "TunAddress",
    "TunRoute",
    "build_darwin_plan",
    "name_servers",
    "plan_tun_addresses",
    "plan_tun_routes",
]

NEVER_CAPTURED = ("0.0.0.0/8", "::/8")


class TunAddress(msgspec.Struct, frozen=True, kw_only=True, tag="tun_address"):
    """One address of the tun, with prefix length."""

    family: Family
    address: str


class TunRoute(msgspec.Struct, frozen=True, kw_only=True, tag="tun_route"):
    """One prefix that goes into the tun, by way of the tun's own address."""

    family: Family
    destination: str
    gateway: str


class HostRoute(msgspec.Struct, frozen=True, kw_only=True, tag="host_route"):
    """One host that leaves beside the tun, as the default route would have it leave."""

    family: Family
    address: str
    gateway: str | None
    """Address of the next hop; None: it is on the link of `interface`, or nowhere if there is no such either."""
    interface: str | None
    index: int
    """Of `interface`. Without one, packets to the host end here: better than in the tun, and round and round."""


class NameServers(msgspec.Struct, frozen=True, kw_only=True, tag="name_servers"):
    """The DNS servers that a network service has by hand; none: those of DHCP."""

    service: str
    before: tuple[str, ...]
    after: tuple[str, ...]


DarwinChange = TunAddress | TunRoute | HostRoute | NameServers


def build_darwin_plan(
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
    table: int = 0,
    priority: int = 0,
) -> NetworkPlan:
    """Compute the routes: `include` minus `exclude` (prefixes). Upstreams get routes of their own, more specific ones.

    Parameters are those of engine.netconf.plan.build_plan; the engine's own sockets are bound to an interface, so users, marks,
    tables and priorities have no meaning here. Raises NetworkError when an address or prefix cannot be read, and for what
    there is not on macOS.
    """
    del own_uid, own_mark, table, priority
    addresses = tuple(addresses)
    for wanted, name in (
        (kill_switch, "a kill switch (--kill-switch, engine.kill_switch)"),
        (tuple(include_uid) or tuple(exclude_uid), "a choice of users (include_uid, exclude_uid)"),
        (tuple(include_interface) or tuple(exclude_interface), "a choice of interfaces (include_interface, exclude_interface)"),
    ):  # fmt: skip
        if wanted:
            raise NetworkError(f"On macOS the engine has no {name.removeprefix('a ')}: leave it out.")
    plan = build_plan(
        interface=interface,
        mtu=mtu,
        addresses=addresses,
        auto_route=auto_route,
        upstreams=upstreams,
        bypass=bypass,
        strict=strict,
        captures_dns=captures_dns,
    )
    captured: IPSet = prefixes(include) - prefixes(exclude) - prefixes(NEVER_CAPTURED)
    return msgspec.structs.replace(
        plan,
        routes=tuple(str(prefix) for prefix in captured.iter_cidrs()) if auto_route else (),
        name_servers=name_servers(addresses) if auto_route and captures_dns else (),
    )


def name_servers(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return an address in the prefix of each of the tun's own, the next one: what is sent there goes into the tun.

    What is sent to the tun's own addresses does so as well, but comes from them too, which nobody expects of a name server.
    """
    own = [ip_interface(text) for text in addresses]
    return tuple(
        str(one.ip + 1) for one in own if one.network.prefixlen < one.max_prefixlen and one.ip + 1 in one.network
    )


def plan_tun_addresses(plan: NetworkPlan) -> list[TunAddress]:
    """Return the addresses of the tun."""
    return [TunAddress(family=ip_interface(text).version, address=text) for text in plan.addresses]


def plan_tun_routes(plan: NetworkPlan) -> list[TunRoute]:
    """Return the routes into the tun, of the families that it has an address of.

    An IPv4 address brings no route to its own prefix along, so there is one where the others leave it out.
    """
    routes: dict[str, TunRoute] = {}
    for own in plan_tun_addresses(plan):
        interface = ip_interface(own.address)
        destinations = [text for text in plan.routes if ip_network(text).version == own.family]
        prefix = interface.network
        if own.family == 4 and prefix.prefixlen < prefix.max_prefixlen and plan.auto_route:
            covered = any(prefix.subnet_of(ip_network(text)) for text in destinations)  # type: ignore[arg-type]
            destinations += [] if covered else [str(prefix)]
        for destination in destinations:
            route = TunRoute(family=own.family, destination=destination, gateway=str(interface.ip))
            routes.setdefault(destination, route)
    return list(routes.values())
