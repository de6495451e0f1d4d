"""Modes of the Clash API. A rule's `clash_mode` is decided here, once for all flows: no worker ever sees it.

A mode is what rules name by clash_mode, as in sing-box. Two mean something where no route rule names them, as in Clash:

direct  every flow goes out directly
global  every flow takes the outbound GLOBAL, if there is one, else the default one (route.final)

In both the rules still say what the DNS service answers, what is sniffed, resolved and changed; and all DNS rules hold.
"""

from collections.abc import Iterator

import msgspec

from engine.config.build.conditions import NEVER
from shared.config import DialConfig, DirectOutbound, Logical, Match, OutboundConfig, Policy, Reject, Route, Rule

__all__ = ["GLOBAL", "decided", "in_mode", "modes_of", "same_mode"]

BUILT_IN = ("rule", "global", "direct")
GLOBAL = "GLOBAL"
"""Tag of the outbound of the mode global."""
ALWAYS = Logical(mode="or", rules=(), invert=True)


def same_mode(one: str, other: str) -> bool:
    """Whether two names mean the same mode: case does not count, as in sing-box."""
    return one.lower() == other.lower()


def modes_of(policy: Policy, default: str) -> tuple[str, ...]:
    """Return the modes that there are: the default, those that rules name, and those of Clash."""
    named = list(_named(policy))
    if not any(same_mode(name, default) for name in named):
        named.insert(0, default)
    found: dict[str, str] = {}
    for name in (*named, *BUILT_IN):
        found.setdefault(name.lower(), name)
    return tuple(found.values())


def _named(policy: Policy) -> Iterator[str]:
    for match in (*(rule.match for rule in policy.route.rules), *(rule.match for rule in policy.dns.rules)):
        yield from _modes_in(match)


def _modes_in(match: Match | Logical) -> Iterator[str]:
    if isinstance(match, Logical):
        for part in match.rules:
            yield from _modes_in(part)
    elif match.clash_mode is not None:
        yield match.clash_mode


def in_mode(policy: Policy, mode: str) -> Policy:
    """Return what a policy means in a mode. The number of its rules and their order stay as they are."""
    route, outbounds = policy.route, policy.outbounds
    rules = tuple(msgspec.structs.replace(rule, match=decided(rule.match, mode)) for rule in route.rules)
    final = route.final
    if _is_built_in(policy, mode):
        outbounds, final = _one_outbound(policy, mode)
        rules = tuple(_leading_to(final, rule, mode) for rule in rules)
    dns_rules = tuple(msgspec.structs.replace(rule, match=decided(rule.match, mode)) for rule in policy.dns.rules)
    return msgspec.structs.replace(
        policy,
        outbounds=outbounds,
        route=msgspec.structs.replace(route, rules=rules, final=final),
        dns=msgspec.structs.replace(policy.dns, rules=dns_rules),
    )


def decided(match: Match | Logical, mode: str) -> Match | Logical:
    """Return the conditions that remain in a mode."""
    if isinstance(match, Logical):
        return msgspec.structs.replace(match, rules=tuple(decided(part, mode) for part in match.rules))
    if match.clash_mode is None:
        return match
    if not same_mode(match.clash_mode, mode):
        return ALWAYS if match.invert else NEVER
    rest = msgspec.structs.replace(match, clash_mode=None)
    return NEVER if rest == Match(invert=True) else rest


def _is_built_in(policy: Policy, mode: str) -> bool:
    """Whether a mode says by itself where all flows go."""
    if not any(same_mode(mode, name) for name in ("global", "direct")):
        return False
    return not any(same_mode(mode, name) for rule in policy.route.rules for name in _modes_in(rule.match))


def _one_outbound(policy: Policy, mode: str) -> tuple[tuple[OutboundConfig, ...], str]:
    """Return the outbounds, and the tag of the one that all flows take."""
    tags = {outbound.tag for outbound in policy.outbounds}
    if same_mode(mode, "global"):
        return policy.outbounds, GLOBAL if GLOBAL in tags else policy.route.final or policy.outbounds[0].tag
    directs = [outbound for outbound in policy.outbounds if isinstance(outbound, DirectOutbound)]
    if directs:
        return policy.outbounds, min(directs, key=lambda outbound: outbound.dial != DialConfig()).tag
    tag = "direct" if "direct" not in tags else "direct (mode)"
    return (*policy.outbounds, DirectOutbound(tag=tag)), tag


def _leading_to(outbound: str, rule: Rule, mode: str) -> Rule:
    if not isinstance(rule.action, Route | Reject):
        return rule
    return msgspec.structs.replace(rule, action=Route(outbound=outbound), origin=f"{rule.origin} (mode {mode.lower()})")
