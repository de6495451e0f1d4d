"""How this machine is connected now, and what is different from a moment ago."""

import socket
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import NamedTuple

from engine.netconf.events import Kind
from engine.netconf.plan import TABLE_MAIN
from engine.netconf.rtnetlink import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTN_UNICAST,
    AddressMessage,
    LinkMessage,
    RouteMessage,
    dump,
)

__all__ = ["Interface", "Picture", "WayOut", "differences", "read_picture"]

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
NAMED_MAX = 3
"""Things of one kind that a line of the log names."""


class Interface(NamedTuple):
    """An interface and its addresses, those of the link alone left out."""

    up: bool
    addresses: frozenset[str]
    """With prefix length."""


class WayOut(NamedTuple):
    """Where what no other route takes leaves this machine by itself."""

    interface: str
    gateway: str
    """Empty: there is none, as on a point-to-point link."""


class Picture(NamedTuple):
    """What `differences` compares."""

    interfaces: dict[str, Interface]
    """All but lo and the engine's own tun."""
    ways_out: dict[int, WayOut]
    """Of IPv4 and IPv6, where there is one."""
    local: frozenset[str]
    """Destinations of the main table other than the default route and what leads into the tun."""
    mtu: int
    """Of the tun."""

    def addresses(self, interface: str, family: int) -> list[str]:
        """Return the addresses of an interface, with prefix length, of IPv4 or IPv6."""
        found = self.interfaces.get(interface)
        return sorted(text for text in found.addresses if (":" in text) == (family == 6)) if found else []


def read_picture(tun: int) -> Picture:
    """Look at this network namespace; `tun` is the index of the engine's own. Raises OSError."""
    links = {link.interface: link for link in dump(RTM_GETLINK) if isinstance(link, LinkMessage)}
    addresses: dict[int, set[str]] = {}
    for message in dump(RTM_GETADDR):
        if isinstance(message, AddressMessage) and not ip_interface(message.address).is_link_local:
            addresses.setdefault(message.interface, set()).add(message.address)
    routes = [
        route
        for family in _FAMILIES.values()
        for route in dump(RTM_GETROUTE, family, table=TABLE_MAIN)
        if isinstance(route, RouteMessage) and route.table == TABLE_MAIN
    ]
    return Picture(
        interfaces={
            link.name: Interface(link.up, frozenset(addresses.get(index, ())))
            for index, link in links.items()
            if index != tun and link.name != "lo"
        },
        ways_out=dict(_ways_out(routes, links, tun)),
        local=frozenset(
            route.destination for route in routes if route.destination != "default" and route.interface != tun
        ),
        mtu=links[tun].mtu if tun in links else 0,
    )


def _ways_out(routes: list[RouteMessage], links: dict[int, LinkMessage], tun: int) -> Iterator[tuple[int, WayOut]]:
    for family in _FAMILIES:
        defaults = [
            route
            for route in routes
            if route.family == family
            and route.destination == "default"
            and route.kind == RTN_UNICAST
            and route.interface in links
            and route.interface != tun
            and not route.dead
        ]
        if defaults:
            best = min(defaults, key=lambda route: route.metric)
            yield family, WayOut(links[best.interface].name, best.gateway)


def differences(before: Picture, after: Picture) -> Iterator[tuple[Kind, str]]:
    """Give what has happened between the two, as kind and a line for people.

    Interfaces that have no address count for nothing: a machine with containers makes and removes them by the hundred.
    """
    nothing = Interface(False, frozenset())
    for name in sorted(before.interfaces.keys() | after.interfaces.keys()):
        was, now = before.interfaces.get(name, nothing), after.interfaces.get(name, nothing)
        if not was.addresses and not now.addresses:
            continue
        if was.up and not now.up:
            yield "interface_down", f"{name} {'is down' if name in after.interfaces else 'is gone'}"
        elif now.up and not was.up:
            yield "interface_up", f"{name} is up"
        if was.addresses != now.addresses and name in after.interfaces:
            yield "address_changed", f"{name}: {_difference(was.addresses, now.addresses)}"
    for family in _FAMILIES:
        old, new = before.ways_out.get(family), after.ways_out.get(family)
        if old != new:
            text = f"the default route of IPv{family} moved from {_way(old)} to {_way(new)}"
            yield "default_route_moved", text
    if before.local != after.local:
        yield "local_networks_changed", f"local networks: {_difference(before.local, after.local)}"
    if before.mtu != after.mtu and before.mtu and after.mtu:
        text = f"another program has set the tun's MTU to {after.mtu} (it was {before.mtu}); it is left so"
        yield "conflict", text


def _way(way: WayOut | None) -> str:
    if way is None:
        return "nowhere"
    return f"{way.interface} ({way.gateway})" if way.gateway else way.interface


def _difference(before: frozenset[str], after: frozenset[str]) -> str:
    parts = [
        f"{_named(sorted(found))} {verb}"
        for found, verb in ((after - before, "added"), (before - after, "removed"))
        if found
    ]
    return ", ".join(parts)


def _named(things: list[str]) -> str:
    more = len(things) - NAMED_MAX
    return ", ".join(things[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
