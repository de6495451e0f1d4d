"""Rules: which flow takes which outbound. The meaning is exactly that of sing-box's route rules.

Within a Match the lists of one group are alternatives (OR), the groups and all other fields must hold together (AND):
destination group (domain*, ip_cidr, ip_is_private), destination ports, source addresses, source ports. The items of a
rule-set join the same groups. `invert` comes last. A Match without any condition matches every flow.
"""

from typing import Literal

import msgspec

__all__ = [
    "Action",
    "HijackDns",
    "Logical",
    "Match",
    "Reject",
    "Resolve",
    "Route",
    "RouteConfig",
    "RouteOptions",
    "Rule",
    "RuleSet",
    "Sniff",
    "Strategy",
    "set_fields",
]

Strategy = Literal["prefer_ipv4", "prefer_ipv6", "ipv4_only", "ipv6_only"]
"""Which addresses of a name are asked for, and which come first."""


class Match(msgspec.Struct, frozen=True, kw_only=True, tag="default", omit_defaults=True):
    """Conditions of one rule, as in sing-box; an empty tuple is no condition."""

    inbound: tuple[str, ...] = ()
    ip_version: Literal[4, 6] | None = None
    network: tuple[Literal["tcp", "udp", "icmp"], ...] = ()
    protocol: tuple[str, ...] = ()
    """Sniffed: http, tls, quic, stun, dns, bittorrent, dtls, ssh, rdp, ntp."""
    client: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    domain_suffix: tuple[str, ...] = ()
    """`example.com`: it and what is below; `.example.com`: only what is below."""
    domain_keyword: tuple[str, ...] = ()
    domain_regex: tuple[str, ...] = ()
    ip_cidr: tuple[str, ...] = ()
    """Prefixes and addresses; `first-last` is a range (of binary rule-sets)."""
    ip_is_private: bool = False
    source_ip_cidr: tuple[str, ...] = ()
    source_ip_is_private: bool = False
    port: tuple[int, ...] = ()
    port_range: tuple[tuple[int, int], ...] = ()
    """First and last port, both included."""
    source_port: tuple[int, ...] = ()
    source_port_range: tuple[tuple[int, int], ...] = ()
    process_name: tuple[str, ...] = ()
    process_path: tuple[str, ...] = ()
    process_path_regex: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    user_id: tuple[int, ...] = ()
    rule_set: tuple[str, ...] = ()
    """Tags; one of them must match."""
    rule_set_ip_cidr_match_source: bool = False
    """`ip_cidr` of the rule-sets is about the source."""
    clash_mode: str | None = None
    """The mode in which the rule holds. The master decides it (engine/config/modes.py): no worker is told."""
    query_type: tuple[int, ...] = ()
    """DNS rules only: types of the question."""
    outbound: tuple[str, ...] = ()
    """DNS rules only: the question is about the server of one of these outbounds; `any`."""
    invert: bool = False


def set_fields(match: Match) -> set[str]:
    """Return the names of the conditions that a Match has."""
    return {field.name for field in msgspec.structs.fields(match) if getattr(match, field.name) != field.default}


class Logical(msgspec.Struct, frozen=True, kw_only=True, tag="logical", omit_defaults=True):
    """`and` or `or` of other rules' conditions."""

    mode: Literal["and", "or"]
    rules: tuple["Match | Logical", ...]
    invert: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True, tag="route"):
    """Final: take this outbound."""

    outbound: str
    options: "RouteOptions | None" = None
    """What is changed of the flow before it leaves."""


class Reject(msgspec.Struct, frozen=True, kw_only=True, tag="reject"):
    """Final: refuse. `default`: RST or ICMP port unreachable; `drop`: silence."""

    method: Literal["default", "drop"] = "default"
    no_drop: bool = False
    """Never fall silent, however often it is asked (sing-box: 50 times in 30 s)."""


class HijackDns(msgspec.Struct, frozen=True, kw_only=True, tag="hijack-dns"):
    """Final: the engine's DNS service answers."""


class Sniff(msgspec.Struct, frozen=True, kw_only=True, tag="sniff"):
    """Look at the first bytes, then go on with the next rule."""

    sniffer: tuple[str, ...] = ()
    """Protocols looked for; empty: all."""
    timeout: float = 0.3
    """Seconds to wait for the first bytes."""
    override_destination: bool = False
    """The name found is what the proxy is asked for (the legacy inbound option sniff_override_destination)."""


class Resolve(msgspec.Struct, frozen=True, kw_only=True, tag="resolve"):
    """Look the flow's name up, so that later rules see addresses; then go on with the next rule."""

    server: str | None = None
    strategy: Strategy | None = None
    disable_cache: bool = False
    rewrite_ttl: int | None = None


class RouteOptions(msgspec.Struct, frozen=True, kw_only=True, tag="route-options"):
    """Change the flow, then go on with the next rule."""

    override_address: str | None = None
    override_port: int | None = None
    udp_timeout: float | None = None
    """Seconds without a datagram before the flow's mapping ends."""
    udp_disable_domain_unmapping: bool = False
    """Of no meaning here: what comes from a tun is addressed by addresses."""
    udp_connect: bool = False
    """The flow's datagrams have a mapping of their own, and only its destination may answer."""


Action = Route | Reject | HijackDns | Sniff | Resolve | RouteOptions


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One route rule."""

    match: Match | Logical
    action: Action
    origin: str
    """Where it stands, `config.json:41:7`, or why it exists; shown by explain, flows and the log."""


class RuleSet(msgspec.Struct, frozen=True, kw_only=True):
    """A named list of conditions, one of which must hold; files are read by the master."""

    tag: str
    rules: tuple[Match | Logical, ...]
    origin: str


class RouteConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The first rule with a final action decides; without one, `final`."""

    rules: tuple[Rule, ...] = ()
    rule_sets: tuple[RuleSet, ...] = ()
    final: str | None = None
    """Tag of an outbound; None: the first one."""
    default_domain_resolver: str | None = None
    """Tag of the DNS server that finds the servers of outbounds and the names of direct flows."""
