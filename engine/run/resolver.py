"""A resolv.conf(5) for a namespace in which the machine's loopback is out of reach. Pure."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

__all__ = ["FALLBACK", "nameservers", "private_resolv_conf"]

FALLBACK = ("1.1.1.1", "8.8.8.8")
"""Asked through the proxy, when the machine has nothing but a stub on loopback and does not say what is behind it."""
SERVERS_MAX = 3  # MAXNS of resolv.conf(5): glibc reads no more


def nameservers(text: str) -> list[str]:
    """Return the addresses that a resolv.conf names."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return found


def private_resolv_conf(text: str, own: Sequence[str], behind: Iterable[str]) -> str | None:
    """Return what is to stand in the machine's resolv.conf `text`; None: it works as it is.

    In the place of a stub on loopback come the engine's `own` addresses for DNS, else the servers `behind` the stub, as
    systemd-resolved tells them.
    """
    named = nameservers(text)
    reachable = [server for server in named if not _is_loopback(server)]
    if named and reachable == named:
        return None
    servers = reachable or own or [server for server in behind if not _is_loopback(server)] or FALLBACK
    others = [
        line for line in text.splitlines() if line.split()[:1] not in ([], ["nameserver"]) and line[0] not in "#;"
    ]
    return "\n".join([*others, *(f"nameserver {server}" for server in servers[:SERVERS_MAX]), ""])


def _is_loopback(server: str) -> bool:
    return ip_address(server.partition("%")[0]).is_loopback
