"""What others have made of this machine's routing, for `engine doctor`: read, never changed."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["DefaultRoute", "ForeignRule", "Survey", "Tunnel", "survey"]

FR_ACT_TO_TBL = 1  # include/uapi/linux/fib_rules.h
TABLE_LOCAL = 255
ARPHRD_NONE = 0xFFFE  # include/uapi/linux/if_arp.h
NO_SUPPRESSION = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """One policy rule that looks a table up."""

    family: Literal[4, 6]
    priority: int
    table: int
    is_conditional: bool
    """It does not concern all packets, or leaves default routes out."""


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """Where a table sends what it has no other route for."""

    family: Literal[4, 6]
    table: int
    interface: str | None


@dataclass(frozen=True, slots=True)
class Tunnel:
    """An interface that leads into a tunnel."""

    name: str
    kind: Literal["tun", "wireguard"]


@dataclass(frozen=True, slots=True)
class Survey:
    """Rules in order of priority, the default routes of the tables that they name, and tunnels."""

    rules: tuple[ForeignRule, ...]
    defaults: tuple[DefaultRoute, ...]
    tunnels: tuple[Tunnel, ...]

    def default(self, family: Literal[4, 6], table: int) -> DefaultRoute | None:
        """The default route of a table."""
        return next((route for route in self.defaults if (route.family, route.table) == (family, table)), None)


def survey() -> Survey:
    """Look at the rules and default routes of this network namespace. Raises OSError."""
    rules: list[ForeignRule] = []
    defaults: list[DefaultRoute] = []
    with IPRoute(strict_check=True) as route:  # tables that nobody asks for stay in the kernel
        links = list(route.get_links())
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
        families: tuple[tuple[Literal[4, 6], int], ...] = ((4, socket.AF_INET), (6, socket.AF_INET6))
        for family, number in families:
            messages = [message for message in route.get_rules(family=number) if message["family"] == number]
            found = [_rule(family, message) for message in messages if message["action"] == FR_ACT_TO_TBL]
            rules += found
            for table in sorted({rule.table for rule in found} - {TABLE_LOCAL}):
                defaults += _defaults(route, family, number, table, names)
    return Survey(tuple(sorted(rules, key=lambda rule: rule.priority)), tuple(defaults), tuple(_tunnels(links)))


def _tunnels(links: list[Any]) -> Iterator[Tunnel]:
    for link in links:
        info = link.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
        if kind == "wireguard":
            yield Tunnel(link.get_attr("IFLA_IFNAME"), "wireguard")
        elif kind == "tun" and link["ifi_type"] == ARPHRD_NONE:  # a tap, as of a virtual machine, is an Ethernet
            yield Tunnel(link.get_attr("IFLA_IFNAME"), "tun")


def _rule(family: Literal[4, 6], message: Any) -> ForeignRule:
    attributes: dict[str, Any] = dict(message["attrs"])
    conditions = attributes.keys() - {"FRA_PRIORITY", "FRA_TABLE", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"}
    suppresses = attributes.get("FRA_SUPPRESS_PREFIXLEN", NO_SUPPRESSION) != NO_SUPPRESSION
    return ForeignRule(
        family, attributes.get("FRA_PRIORITY", 0), attributes["FRA_TABLE"], bool(conditions) or suppresses
    )


def _defaults(route: Any, family: Literal[4, 6], number: int, table: int, names: dict[int, str]) -> list[DefaultRoute]:
    try:
        messages = list(route.get_routes(family=number, table=table))
    except NetlinkError:  # nobody has ever used this table
        return []
    return [
        DefaultRoute(family, table, names.get(message.get_attr("RTA_OIF")))
        for message in messages
        if not message["dst_len"]
    ]
