"""Which route is the machine's own default, told from a dump of the routing table. Pure.

Ours do not pass for it: they are the halves of halves (engine/netconf/darwin.py), and lead into a utun.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engine.darwin.route import (
    RTF_BLACKHOLE,
    RTF_HOST,
    RTF_IFSCOPE,
    RTF_REJECT,
    RTF_UP,
    Gateway,
    Message,
)
from engine.darwin.sockaddr import LinkAddress

__all__ = ["DefaultRoute", "default_route"]

TUNNELS = ("utun", "ipsec", "ppp")
"""Interfaces of VPNs: their default route is taken only when there is no other."""


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """How packets leave this machine by themselves."""

    index: int
    name: str
    """Of the interface."""
    gateway: Gateway
    """The next hop; the interface itself where there is none."""


def default_route(
    messages: Iterable[Message], version: int, name_of: Callable[[int], str], *, own_index: int = 0
) -> DefaultRoute | None:
    """Return the default route of IPv4 or IPv6 (`version`) out of a dump; None when there is none.

    Every interface may have a scoped default of its own, which only bound sockets use: the unscoped one is preferred, and
    that of a VPN is not. `name_of` gives the name of an interface, or raises OSError. `own_index`: the engine's own tun.
    """
    candidates = []
    for place, message in enumerate(messages):
        network = message.destination
        if network is None or network.version != version or network.prefixlen or int(network.network_address):
            continue
        if not message.flags & RTF_UP or message.flags & (RTF_HOST | RTF_REJECT | RTF_BLACKHOLE):
            continue
        if message.index == own_index or message.gateway is None:
            continue
        try:
            name = name_of(message.index)
        except OSError:  # it went between the dump and now
            continue
        rank = (name.startswith(TUNNELS), bool(message.flags & RTF_IFSCOPE), place)
        candidates.append((rank, message, name))
    if not candidates:
        return None
    _, message, name = min(candidates, key=lambda candidate: candidate[0])
    hop = message.gateway
    gateway = LinkAddress(message.index, name) if isinstance(hop, LinkAddress) else str(hop)
    return DefaultRoute(message.index, name, gateway)
