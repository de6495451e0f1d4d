"""Conditions and actions of route rules, DNS rules and rule-sets, as they stand in the file."""

from typing import Annotated, Literal

from engine.config.decode import Options
from engine.config.fields import (
    FLAT,
    Duration,
    Hidden,
    Ignored,
    Listable,
    Never,
    Port,
    PortRange,
    QueryType,
    Strategy,
    Uid,
    Unsupported,
    Variants,
)
from engine.config.names import DomainName, HostName, IpCidr, Keyword, Regex

__all__ = [
    "DNS_RULE",
    "HEADLESS_DNS_RULE",
    "HEADLESS_RULE",
    "NEVER_KEYS",
    "ROUTE_RULE",
    "DnsActionOptions",
    "DnsMatchOptions",
    "DnsRuleOptions",
    "LogicalDnsOptions",
    "LogicalDnsRuleOptions",
    "LogicalOptions",
    "LogicalRouteRuleOptions",
    "MatchOptions",
    "QuestionOptions",
    "RouteActionOptions",
    "RouteRuleOptions",
]

Protocol = Literal["http", "tls", "quic", "stun", "dns", "bittorrent", "dtls", "ssh", "rdp", "ntp"]
_GEO = "its database was removed in sing-box 1.12: write a rule_set instead"
_PHONE = "only apps for phones know it"


class MatchOptions(Options, frozen=True, kw_only=True):
    """Conditions. Lists of one group (destination names and addresses, ports, source addresses, source ports) are
    alternatives; groups and all other keys must hold together. Without any condition a rule matches everything."""

    type: Annotated[Literal["default", ""], Hidden()] = "default"
    inbound: Listable[str] = ()
    """Tags of inbounds."""
    ip_version: Literal[4, 6] | None = None
    network: Listable[Literal["tcp", "udp", "icmp"]] = ()
    protocol: Listable[Protocol] = ()
    """What the first bytes show; needs a rule with the action sniff before."""
    client: Listable[str] = ()
    """Program that a QUIC or TLS greeting is typical of: chromium, firefox, safari, quic-go."""
    domain: Listable[DomainName] = ()
    """The whole name."""
    domain_suffix: Listable[DomainName] = ()
    """`example.com`: this name and all below; `.example.com`: only those below."""
    domain_keyword: Listable[Keyword] = ()
    """A part of the name."""
    domain_regex: Listable[Regex] = ()
    """A regular expression (RE2) that matches somewhere in the name."""
    ip_cidr: Listable[IpCidr] = ()
    """Destination: prefixes or addresses."""
    ip_is_private: bool = False
    """Destination: not a public address."""
    source_ip_cidr: Listable[IpCidr] = ()
    source_ip_is_private: bool = False
    port: Listable[Port] = ()
    port_range: Listable[PortRange] = ()
    """`1000:2000`, `:3000`, `4000:`; both ends belong to it."""
    source_port: Listable[Port] = ()
    source_port_range: Listable[PortRange] = ()
    process_name: Listable[str] = ()
    """Last part of the program's path; case counts."""
    process_path: Listable[str] = ()
    process_path_regex: Listable[Regex] = ()
    user: Listable[str] = ()
    """Name of the user that the program runs as."""
    user_id: Listable[Uid] = ()
    rule_set: Listable[str] = ()
    """Tags of rule-sets; the conditions of one of them must hold."""
    rule_set_ip_cidr_match_source: bool = False
    """ip_cidr of the rule-sets is about the source."""
    invert: bool = False
    """The rule matches what its conditions do not."""
    clash_mode: str | None = None
    """Holds while the mode is this: experimental.clash_api.default_mode, until the Clash API sets another. Case is ignored."""

    auth_user: Annotated[Listable[str], Never("flows of a tun have no user of an inbound")] = ()
    package_name: Annotated[Listable[str], Never("only Android has packages")] = ()
    package_name_regex: Annotated[Listable[str], Never("only Android has packages")] = ()
    network_type: Annotated[Listable[str], Never(_PHONE)] = ()
    network_is_expensive: Annotated[bool, Never(_PHONE)] = False
    network_is_constrained: Annotated[bool, Never(_PHONE)] = False
    wifi_ssid: Annotated[Listable[str], Never(_PHONE)] = ()
    wifi_bssid: Annotated[Listable[str], Never(_PHONE)] = ()

    geosite: Annotated[object, Unsupported(f"geosite is not supported: {_GEO} (geosite-NAME.srs)")] = None
    geoip: Annotated[
        object, Unsupported(f"geoip is not supported: {_GEO} (geoip-CODE.srs), or ip_is_private for private")
    ] = None
    source_geoip: Annotated[object, Unsupported(f"source_geoip is not supported: {_GEO} (geoip-CODE.srs)")] = None
    interface_address: Annotated[object, Unsupported("interface_address is not supported: delete the rule")] = None
    network_interface_address: Annotated[
        object, Unsupported("network_interface_address is not supported: delete the rule")
    ] = None
    default_interface_address: Annotated[
        object, Unsupported("default_interface_address is not supported: delete the rule")
    ] = None
    preferred_by: Annotated[object, Unsupported("preferred_by is not supported: name the addresses by ip_cidr")] = None
    source_mac_address: Annotated[
        object, Unsupported("source_mac_address is not supported: name the device by source_ip_cidr")
    ] = None
    source_hostname: Annotated[
        object, Unsupported("source_hostname is not supported: name the device by source_ip_cidr")
    ] = None


NEVER_KEYS = frozenset(
    ("auth_user", "package_name", "package_name_regex", "network_type", "network_is_expensive", "network_is_constrained",
     "wifi_ssid", "wifi_bssid")
)  # fmt: skip


class LogicalOptions(Options, frozen=True, kw_only=True):
    """`and` or `or` of other rules' conditions."""

    type: Annotated[str, Hidden()] = "logical"
    mode: Literal["and", "or"] = "and"
    rules: "tuple[Annotated[LogicalOptions | MatchOptions, HEADLESS_RULE], ...]" = ()
    invert: bool = False


class RouteActionOptions(Options, frozen=True, kw_only=True):
    """What a route rule does with a flow that it matches."""

    action: Literal["route", "bypass", "reject", "hijack-dns", "route-options", "direct", "sniff", "resolve"] = "route"
    """`sniff`, `resolve` and `route-options` go on with the next rule; the others are final."""
    outbound: str | None = None
    """Action route: tag of an outbound or a group."""
    override_address: HostName | None = None
    """Action route-options: the destination is replaced."""
    override_port: Port | None = None
    udp_timeout: Duration | None = None
    """Actions route and route-options: without a datagram for so long the mapping ends."""
    udp_connect: bool = False
    udp_disable_domain_unmapping: bool = False
    method: Literal["default", "drop"] = "default"
    """Action reject: refuse at once, or say nothing."""
    no_drop: bool = False
    """Action reject: never fall silent, however often it is asked."""
    sniffer: Listable[Protocol] = ()
    """Action sniff: what is looked for; nothing: everything."""
    timeout: Duration = 0.3
    """Action sniff: how long the first bytes are waited for."""
    server: str | None = None
    """Action resolve: tag of a DNS server."""
    strategy: Strategy | None = None
    """Action resolve."""
    disable_cache: bool = False
    """Action resolve."""
    rewrite_ttl: int | None = None
    """Action resolve: seconds."""
    override_destination: bool = False
    """Action sniff: the proxy is asked for the name that was found. Not in sing-box since 1.13."""

    client_subnet: Annotated[
        object, Unsupported("client_subnet is not supported in a route rule: write it into the DNS rule or server")
    ] = None
    network_strategy: Annotated[
        object, Ignored("network_strategy has no effect: only apps for phones choose networks")
    ] = None
    fallback_network_type: Annotated[
        object, Ignored("fallback_network_type has no effect: only apps for phones choose networks")
    ] = None
    fallback_delay: Annotated[
        object, Ignored("fallback_delay has no effect: addresses are tried one after the other")
    ] = None
    tls_fragment: Annotated[
        object, Unsupported("tls_fragment is not supported: the proxy sends what it is given; delete the key")
    ] = None
    tls_fragment_fallback_delay: Annotated[
        object, Unsupported("tls_fragment_fallback_delay is not supported: delete the key")
    ] = None
    tls_record_fragment: Annotated[
        object, Unsupported("tls_record_fragment is not supported: the proxy sends what it is given; delete the key")
    ] = None


class RouteRuleOptions(Options, frozen=True, kw_only=True):
    """A route rule."""

    conditions: Annotated[MatchOptions, FLAT] = MatchOptions()
    action: Annotated[RouteActionOptions, FLAT] = RouteActionOptions()


class LogicalRouteRuleOptions(Options, frozen=True, kw_only=True):
    """A route rule whose conditions are joined by and/or."""

    conditions: Annotated[LogicalOptions, FLAT] = LogicalOptions()
    action: Annotated[RouteActionOptions, FLAT] = RouteActionOptions()


class DnsActionOptions(Options, frozen=True, kw_only=True):
    """What a DNS rule does with a question that it matches."""

    action: Literal["route", "route-options", "reject", "predefined"] = "route"
    server: str | None = None
    """Action route: tag of a DNS server."""
    strategy: Strategy | None = None
    disable_cache: bool = False
    rewrite_ttl: int | None = None
    """Seconds."""
    client_subnet: IpCidr | None = None
    method: Literal["default", "drop"] = "default"
    """Action reject: REFUSED, or silence."""
    no_drop: bool = False
    rcode: str = "NOERROR"
    """Action predefined: NOERROR, NXDOMAIN, REFUSED, SERVFAIL, FORMERR, NOTIMP."""
    answer: Listable[str] = ()
    """Action predefined: records as in a zone file, `example.com. IN A 127.0.0.1`."""

    timeout: Annotated[object, Ignored("timeout has no effect in a DNS rule: dns.timeout holds for all servers")] = None
    disable_optimistic_cache: Annotated[
        object, Ignored("disable_optimistic_cache has no effect: use disable_cache")
    ] = None
    ns: Annotated[object, Unsupported("ns is not supported: only answer")] = None
    extra: Annotated[object, Unsupported("extra is not supported: only answer")] = None


class QuestionOptions(Options, frozen=True, kw_only=True):
    """Conditions that only DNS rules have."""

    query_type: Listable[QueryType] = ()
    """`A`, `AAAA`, `HTTPS`, or numbers."""
    outbound: Listable[str] = ()
    """The question is about the server of one of these outbounds; `any`. Deprecated since sing-box 1.12: use
    route.default_domain_resolver."""

    ip_accept_any: Annotated[
        object, Unsupported("ip_accept_any is not supported: rules about answers do not exist here; choose by name")
    ] = None
    rule_set_ip_cidr_accept_empty: Annotated[
        object, Unsupported("rule_set_ip_cidr_accept_empty is not supported: rules about answers do not exist here")
    ] = None
    match_response: Annotated[
        object, Unsupported("match_response is not supported: rules about answers do not exist here; choose by name")
    ] = None
    response_rcode: Annotated[object, Unsupported("response_rcode is not supported: choose by name")] = None
    response_answer: Annotated[object, Unsupported("response_answer is not supported: choose by name")] = None
    response_ns: Annotated[object, Unsupported("response_ns is not supported: choose by name")] = None
    response_extra: Annotated[object, Unsupported("response_extra is not supported: choose by name")] = None


class DnsMatchOptions(Options, frozen=True, kw_only=True):
    """Conditions of a DNS rule within a logical one."""

    conditions: Annotated[MatchOptions, FLAT] = MatchOptions()
    question: Annotated[QuestionOptions, FLAT] = QuestionOptions()


class LogicalDnsOptions(Options, frozen=True, kw_only=True):
    """`and` or `or` of the conditions of DNS rules."""

    type: Annotated[str, Hidden()] = "logical"
    mode: Literal["and", "or"] = "and"
    rules: "tuple[Annotated[LogicalDnsOptions | DnsMatchOptions, HEADLESS_DNS_RULE], ...]" = ()
    invert: bool = False


class DnsRuleOptions(Options, frozen=True, kw_only=True):
    """A DNS rule."""

    conditions: Annotated[MatchOptions, FLAT] = MatchOptions()
    question: Annotated[QuestionOptions, FLAT] = QuestionOptions()
    action: Annotated[DnsActionOptions, FLAT] = DnsActionOptions()


class LogicalDnsRuleOptions(Options, frozen=True, kw_only=True):
    """A DNS rule whose conditions are joined by and/or."""

    conditions: Annotated[LogicalDnsOptions, FLAT] = LogicalDnsOptions()
    action: Annotated[DnsActionOptions, FLAT] = DnsActionOptions()


def _kinds(default: type, logical: type, what: str) -> Variants:
    return Variants("type", {"default": default, "": default, "logical": logical}, default="default", what=what)


HEADLESS_RULE = _kinds(MatchOptions, LogicalOptions, "a rule")
HEADLESS_DNS_RULE = _kinds(DnsMatchOptions, LogicalDnsOptions, "a rule")
ROUTE_RULE = _kinds(RouteRuleOptions, LogicalRouteRuleOptions, "a rule")
DNS_RULE = _kinds(DnsRuleOptions, LogicalDnsRuleOptions, "a rule")
