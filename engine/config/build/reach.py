"""Rules that no flow can come to, since an earlier final rule takes whatever they could match."""

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from shared.config import Logical, Match, Reject, Resolve, Route, Rule, Sniff
from shared.config.route import HijackDns

__all__ = ["shadowing_rule"]

_GROUPS = (
    ("domain", "domain_suffix", "domain_keyword", "domain_regex", "ip_cidr", "ip_is_private"),
    ("port", "port_range"),
    ("source_ip_cidr", "source_ip_is_private"),
    ("source_port", "source_port_range"),
)
_GROUPED = {name for group in _GROUPS for name in group}
_ALONE = tuple(name for name in Match.__struct_fields__ if name not in _GROUPED)
_ALL_NETWORKS = {"tcp", "udp"}
RULES_MAX = 500
"""Rules that are compared with one another; a longer list is only searched for a rule that takes everything."""


def shadowing_rule(rules: tuple[Rule, ...], index: int) -> Rule | None:
    """Return an earlier rule that takes every flow that rule `index` matches, or None when there is none for certain."""
    target = rules[index]
    for earlier in reversed(rules[:index]):
        if isinstance(earlier.action, Sniff | Resolve) and not _takes_everything(target.match):
            # A rule before this one saw less of the flow. Only one that takes everything still counts.
            return next((rule for rule in rules[:index] if _final(rule) and _takes_everything(rule.match)), None)
        if _final(earlier) and (
            _takes_everything(earlier.match) or (index < RULES_MAX and _covers(earlier.match, target.match))
        ):
            return earlier
    return None


def _final(rule: Rule) -> bool:
    return isinstance(rule.action, Route | Reject | HijackDns)


def _takes_everything(match: Match | Logical) -> bool:
    if isinstance(match, Logical) or match.invert:
        return False
    return match == Match(network=match.network) and (not match.network or set(match.network) >= _ALL_NETWORKS)


def _covers(wide: Match | Logical, narrow: Match | Logical) -> bool:
    """Whether every flow that `narrow` matches is one that `wide` matches, as far as can be told from their conditions."""
    if wide == narrow:
        return True
    if isinstance(wide, Logical) or isinstance(narrow, Logical) or wide.invert or narrow.invert:
        return False
    if wide.rule_set or narrow.rule_set:  # items of rule-sets join the groups
        return False
    if not all(_covers_alone(getattr(wide, name), getattr(narrow, name)) for name in _ALONE):
        return False
    return all(_covers_group(group, wide, narrow) for group in _GROUPS)


def _covers_alone(wide: object, narrow: object) -> bool:
    if isinstance(wide, tuple) and isinstance(narrow, tuple):
        return not wide or (bool(narrow) and set(narrow) <= set(wide))
    return wide is None or wide is False or wide == narrow


def _covers_group(group: tuple[str, ...], wide: Match, narrow: Match) -> bool:
    """Items of a group are alternatives: each of the narrow ones must be covered by a wide one."""
    if not any(getattr(wide, name) for name in group):
        return True
    if not any(getattr(narrow, name) for name in group):
        return False
    checks: dict[str, Callable[[Any], bool]] = {
        "domain": lambda name: name in wide.domain or _below(name, wide) or _has_keyword(name, wide),
        "domain_suffix": lambda name: name in wide.domain_suffix or _below(name, wide) or _has_keyword(name, wide),
        "domain_keyword": lambda name: _has_keyword(name, wide),
        "domain_regex": lambda pattern: pattern in wide.domain_regex,
        "ip_cidr": lambda text: _within(text, wide.ip_cidr, private=wide.ip_is_private),
        "source_ip_cidr": lambda text: _within(text, wide.source_ip_cidr, private=wide.source_ip_is_private),
        "port": lambda port: port in wide.port or any(first <= port <= last for first, last in wide.port_range),
        "source_port": lambda port: port in wide.source_port
        or any(first <= port <= last for first, last in wide.source_port_range),
        "port_range": lambda found: any(first <= found[0] and found[1] <= last for first, last in wide.port_range),
        "source_port_range": lambda found: any(first <= found[0] and found[1] <= last for first, last in wide.source_port_range),
    }  # fmt: skip
    for name in group:
        items = getattr(narrow, name)
        if isinstance(items, bool):
            if items and not getattr(wide, name):
                return False
        elif not all(checks[name](item) for item in items):
            return False
    return True


def _below(name: str, wide: Match) -> bool:
    """Whether a name (or all below a suffix) ends with a suffix of the wide rule."""
    bare = name.lstrip(".")
    for suffix in wide.domain_suffix:
        if bare.endswith(suffix if suffix.startswith(".") else f".{suffix}") or name == suffix or bare == suffix:
            return True
    return False


def _has_keyword(name: str, wide: Match) -> bool:
    return any(keyword in name.lstrip(".") for keyword in wide.domain_keyword)


def _within(text: str, prefixes: tuple[str, ...], *, private: bool) -> bool:
    if "-" in text:
        return text in prefixes
    network = ip_network(text, strict=False)
    if private and _is_private(text):
        return True
    for prefix in prefixes:
        if "-" not in prefix:
            other = ip_network(prefix, strict=False)
            if network.version == other.version and network.subnet_of(other):  # type: ignore[arg-type]
                return True
    return False


_PRIVATE = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)
"""What ip_is_private holds for, without its rarer parts."""


def _is_private(text: str) -> bool:
    return _within(text, _PRIVATE, private=False)
