"""The meaning of rules, written as plainly as possible: what the compiled matcher is checked against.

`holds` returns the combinations of groups that were satisfied on the way, as a set of frozensets; an empty set: it does not hold.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from shared.config import Logical, Match, Rule, RuleSet
from shared.rules.flow import Flow

Groups = frozenset[str]
NONE: Groups = frozenset()

FIELDS_OF_GROUP = {
    "destination": ("domain", "domain_suffix", "domain_keyword", "domain_regex", "ip_cidr", "ip_is_private"),
    "destination port": ("port", "port_range"),
    "source": ("source_ip_cidr", "source_ip_is_private"),
    "source port": ("source_port", "source_port_range"),
}


def first_match(rules: Sequence[Rule], rule_sets: Iterable[RuleSet], flow: Flow) -> int | None:
    """Index of the first rule that holds."""
    sets = {rule_set.tag: rule_set for rule_set in rule_sets}
    return next((index for index, rule in enumerate(rules) if holds(rule.match, flow, sets)), None)


def holds(
    condition: Match | Logical,
    flow: Flow,
    sets: Mapping[str, RuleSet],
    given: Groups = NONE,
    by_source: bool = False,
) -> set[Groups]:
    base = NONE if condition.invert else given
    if isinstance(condition, Logical):
        found = [holds(part, flow, sets, base, by_source) for part in condition.rules]
        if condition.mode == "or":
            ways = set().union(*found)
        else:
            ways = {base}
            for part in found:
                ways = {left | right for left in ways for right in part}
    elif condition in (Match(), Match(invert=True)):
        return {given}
    else:
        ways = _match_holds(condition, flow, sets, base, by_source)
    if condition.invert:
        return set() if ways else {given}
    return ways


def _match_holds(match: Match, flow: Flow, sets: Mapping[str, RuleSet], given: Groups, by_source: bool) -> set[Groups]:
    if not all(_others_hold(match, flow)):
        return set()
    items = _group_items(match, flow, by_source)
    satisfied = given | {group for group, hits in items.items() if any(hits)}
    required = {group for group, hits in items.items() if hits}
    if not match.rule_set:
        return {satisfied} if required <= satisfied else set()
    source = match.rule_set_ip_cidr_match_source
    branches = [holds(rule, flow, sets, satisfied, source) for tag in match.rule_set for rule in sets[tag].rules]
    return {way for way in set().union(*branches) if required <= way}


def _others_hold(match: Match, flow: Flow) -> Iterable[bool]:
    process = flow.process
    assert process is not None, "the slow matcher is given flows whose process is known"
    if match.network:
        yield flow.network in match.network
    if match.inbound:
        yield flow.inbound in match.inbound
    if match.ip_version:
        yield len(flow.destination) == {4: 4, 6: 16}[match.ip_version]
    if match.protocol:
        yield flow.protocol in match.protocol
    if match.client:
        yield flow.client in match.client
    if match.query_type:
        yield flow.query_type in match.query_type
    if match.outbound:
        yield flow.outbound in match.outbound or ("any" in match.outbound and flow.outbound is not None)
    if match.process_name:
        yield process.name != "" and process.name in match.process_name
    if match.process_path:
        yield process.path != "" and process.path in match.process_path
    if match.process_path_regex:
        yield process.path != "" and any(re.search(regex, process.path) for regex in match.process_path_regex)
    if match.user:
        yield process.user != "" and process.user in match.user
    if match.user_id:
        yield process.uid is not None and process.uid in match.user_id


def _group_items(match: Match, flow: Flow, by_source: bool) -> dict[str, list[bool]]:
    host = flow.domain or ""
    destinations = [flow.destination] if flow.destination else list(flow.resolved)
    return {
        "destination": [
            *(host == domain for domain in match.domain),
            *(_is_below(host, suffix) for suffix in match.domain_suffix),
            *(bool(host) and keyword in host for keyword in match.domain_keyword),
            *(bool(host) and re.search(regex, host) is not None for regex in match.domain_regex),
            *(_contains(cidr, destinations) for cidr in match.ip_cidr if not by_source),
            *([any(map(_is_private, destinations))] if match.ip_is_private and not by_source else []),
        ],
        "destination port": [
            *(flow.destination_port == port for port in match.port),
            *(first <= flow.destination_port <= last for first, last in match.port_range),
        ],
        "source": [
            *(_contains(cidr, [flow.source]) for cidr in match.source_ip_cidr),
            *(_contains(cidr, [flow.source]) for cidr in match.ip_cidr if by_source),
            *([_is_private(flow.source)] if match.source_ip_is_private else []),
            *([_is_private(flow.source)] if match.ip_is_private and by_source else []),
        ],
        "source port": [
            *(flow.source_port == port for port in match.source_port),
            *(first <= flow.source_port <= last for first, last in match.source_port_range),
        ],
    }


def _is_below(host: str, suffix: str) -> bool:
    return host.endswith(suffix) if suffix.startswith(".") else host == suffix or host.endswith("." + suffix)


def _contains(cidr: str, addresses: Iterable[bytes]) -> bool:
    if "-" in cidr:
        first, last = map(ip_address, cidr.split("-"))
        return any(
            len(first.packed) == len(address) and first.packed <= address <= last.packed for address in addresses
        )
    return any(ip_address(address) in ip_network(cidr, strict=False) for address in addresses)


def _is_private(packed: bytes) -> bool:
    """Go's netip: private, loopback, multicast, link-local or unspecified."""
    address = ip_address(packed)
    private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
    return (
        any(address in ip_network(net) for net in private if ip_network(net).version == address.version)
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address in ip_network("169.254.0.0/16" if address.version == 4 else "fe80::/10")
    )
