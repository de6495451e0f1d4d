"""What networksetup(8) and scutil(8) say about DNS, and what they are told. Pure.

The resolver of a LAN is on its own link, and so is reached past the tun: while the engine serves DNS, the network services
are given an address inside of the tun. networksetup rather than scutil, which not all programs heed; its settings stay on
disk, so they are restored from the journal after a crash.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

__all__ = [
    "FLUSH",
    "SHOW_DNS",
    "Resolver",
    "get_servers",
    "list_services",
    "parse_resolvers",
    "parse_servers",
    "parse_services",
    "set_servers",
]

FLUSH = (("/usr/bin/dscacheutil", "-flushcache"), ("/usr/bin/killall", "-HUP", "mDNSResponder"))
"""Commands that empty the caches of names."""
SHOW_DNS = ("/usr/sbin/scutil", "--dns")

_NETWORKSETUP = "/usr/sbin/networksetup"
_NONE = "Empty"  # how networksetup is told that there are no servers but those of DHCP

_ORDER_LINE = re.compile(r"^\((?:\d+|(\*))\) (.+)$")
_DEVICE_LINE = re.compile(r"^\(Hardware Port: .*, Device: ?(\S*)\)$")


def list_services() -> tuple[str, ...]:
    """Return the command whose output `parse_services` reads."""
    return _NETWORKSETUP, "-listnetworkserviceorder"


def get_servers(service: str) -> tuple[str, ...]:
    """Return the command whose output `parse_servers` reads."""
    return _NETWORKSETUP, "-getdnsservers", service


def set_servers(service: str, servers: Sequence[str]) -> tuple[str, ...]:
    """Return the command that gives a service its servers; none: those of DHCP."""
    return _NETWORKSETUP, "-setdnsservers", service, *(servers or (_NONE,))


def parse_services(text: str) -> dict[str, str]:
    """Return the enabled network services: name -> device (`en0`), in the order in which the system prefers them.

    Services without a device (VPNs of the system) are left out, as are those that the user has switched off (`(*)`).
    """
    services: dict[str, str] = {}
    name: str | None = None
    for line in text.splitlines():
        device = _DEVICE_LINE.match(line)
        order = _ORDER_LINE.match(line)
        if device is not None:
            if name is not None and device[1]:
                services[name] = device[1]
            name = None
        elif order is not None:
            name = None if order[1] else order[2]
    return services


def parse_servers(text: str) -> tuple[str, ...]:
    """Return the servers set by hand; none when the answer is a sentence: "There aren't any DNS Servers set on Wi-Fi."."""
    servers = []
    for line in text.splitlines():
        try:
            ip_address(line.strip())
        except ValueError:
            continue
        servers.append(line.strip())
    return tuple(servers)


@dataclass(frozen=True, slots=True)
class Resolver:
    """One entry of `scutil --dns`."""

    domain: str
    """Names below it are asked here; empty: all that no other takes."""
    servers: tuple[str, ...]
    interface: str
    """Name; empty: any."""
    scoped: bool
    """Only for programs that are bound to the interface."""


_SCOPED_TITLE = "DNS configuration (for scoped queries)"
_RESOLVER_FIELD = re.compile(r"^\s+([\w ]+?)(?:\[\d+\])?\s*: (.+)$")
_INTERFACE = re.compile(r"^\d+ \((\S+)\)$")


def parse_resolvers(text: str) -> list[Resolver]:
    """Read `scutil --dns`."""
    resolvers: list[Resolver] = []
    fields: dict[str, list[str]] | None = None
    scoped = False
    for line in (*text.splitlines(), "resolver #end"):
        if line.startswith(("resolver #", "DNS configuration")):
            if fields is not None:
                resolvers.append(_resolver(fields, scoped))
            fields = {} if line.startswith("resolver #") else None
            scoped = scoped or line.strip() == _SCOPED_TITLE
        elif fields is not None and (field := _RESOLVER_FIELD.match(line)) is not None:
            fields.setdefault(field[1], []).append(field[2].strip())
    return resolvers


def _resolver(fields: dict[str, list[str]], scoped: bool) -> Resolver:
    interface = _INTERFACE.match("".join(fields.get("if_index", ())))
    return Resolver(
        "".join(fields.get("domain", ())).rstrip("."),
        tuple(fields.get("nameserver", ())),
        interface[1] if interface is not None else "",
        scoped,
    )
