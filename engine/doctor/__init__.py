"""`engine doctor`: what is wrong with this machine, or will be once the engine runs, and how to mend it.

machine   rights, tun and its offloads, memory and files
network   what a crash has left, other programs that take routes, kernel parameters, resolver, IPv6
proxies   whether each proxy answers, lets us in, and relays UDP
examine   all of it

Nothing is changed. A tun is opened for a moment, without address or route; each proxy is connected to.
"""

from typing import Literal

import msgspec

__all__ = ["Finding", "Level"]

Level = Literal["ok", "note", "warning", "error"]
"""note: worth knowing; warning: something will not work as one might expect; error: the engine cannot do its work."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    """Short name: tun, rights, offload, leftovers, conflict, rp_filter, resolver, proxy, udp, ipv6 ..."""
    level: Level
    text: str
    """What there is, in one sentence."""
    mend: str = ""
    """What to do about it; empty only where there is nothing to do."""
