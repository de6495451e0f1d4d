"""Route rules: what the file says, and before it what the engine adds of its own."""

import msgspec

from engine.config.build.conditions import Scope, build_conditions
from engine.config.build.outbounds import Outbounds
from engine.config.decode import nearest
from engine.config.dialect import Path, value_at
from engine.config.options.inbound import TunOptions
from engine.config.options.route import RouteOptions
from engine.config.options.rule import LogicalRouteRuleOptions, RouteActionOptions, RouteRuleOptions
from engine.config.problems import Report
from shared.config import (
    Action,
    DirectOutbound,
    HijackDns,
    Logical,
    Match,
    Reject,
    Resolve,
    Route,
    RouteConfig,
    Rule,
    RuleSet,
    Sniff,
)
from shared.config import RouteOptions as RouteOptionsAction

__all__ = ["build_route", "own_rules"]

DNS_PORT = 53

_FIELDS = {
    "route": {
        "outbound",
        "override_address",
        "override_port",
        "udp_timeout",
        "udp_connect",
        "udp_disable_domain_unmapping",
    },
    "bypass": {"outbound"},
    "reject": {"method", "no_drop"},
    "hijack-dns": set(),
    "route-options": {
        "override_address",
        "override_port",
        "udp_timeout",
        "udp_connect",
        "udp_disable_domain_unmapping",
    },
    "direct": set(),
    "sniff": {"sniffer", "timeout", "override_destination"},
    "resolve": {"server", "strategy", "disable_cache", "rewrite_ttl"},
}
"""Keys that belong to an action."""
_ACTION_KEYS = set().union(*_FIELDS.values())


def build_route(
    options: RouteOptions,
    tun: TunOptions | None,
    dns_addresses: tuple[str, ...],
    dns_tags: frozenset[str],
    rule_sets: dict[str, RuleSet],
    outbounds: Outbounds,
    scope: Scope,
    *,
    hijack_dns: bool,
) -> RouteConfig:
    """Return the rules; `hijack_dns`: port 53 is led to the DNS service when no rule speaks of DNS."""
    rules = [rule for option in options.rules for rule in _rule(option, outbounds, dns_tags, scope)]
    own = [
        *own_rules(dns_addresses, every_server=hijack_dns and not any(map(_speaks_of_dns, rules))),
        *_legacy_rules(tun, scope.report),
    ]
    resolver = options.default_domain_resolver
    if resolver is not None and resolver.server and resolver.server not in dns_tags:
        where = (*options.where, "default_domain_resolver")
        scope.report.error(where, f'no DNS server has the tag "{resolver.server}"{nearest(resolver.server, dns_tags)}')
    return RouteConfig(
        rules=(*own, *rules),
        rule_sets=tuple(rule_sets.values()),
        final=outbounds.default,
        default_domain_resolver=resolver.server if resolver is not None else None,
    )


def own_rules(dns_addresses: tuple[str, ...], *, every_server: bool) -> list[Rule]:
    """Return the rules that come before those of a file: DNS to the tun's own addresses, or to `every_server`."""
    rules = []
    if dns_addresses:
        rules.append(
            Rule(
                match=Match(ip_cidr=dns_addresses, port=(DNS_PORT,)),
                action=HijackDns(),
                origin="the engine's own: the DNS address of the tun (switched off by its dns_mode disabled)",
            )
        )
    if every_server:
        rules.append(
            Rule(
                match=Match(port=(DNS_PORT,)),
                action=HijackDns(),
                origin='the engine\'s own: no rule speaks of DNS (switched off by "engine": {"hijack_dns": false})',
            )
        )
    return rules


def _legacy_rules(tun: TunOptions | None, report: Report) -> list[Rule]:
    """Return what the keys of an inbound before sing-box 1.11 mean."""
    rules: list[Rule] = []
    if tun is None:
        return rules
    match = Match(inbound=(tun.tag,))

    def add(key: str, action: Action, new: str) -> None:
        path = (*tun.where, key)
        report.warning(
            path,
            f'"{key}" of an inbound is the form before sing-box 1.11: read as a first rule with {new}',
            of_key=True,
        )
        rules.append(Rule(match=match, action=action, origin=report.origin(path)))

    if tun.sniff:
        sniff = Sniff(timeout=tun.sniff_timeout, override_destination=tun.sniff_override_destination)
        add("sniff", sniff, '"action": "sniff"')
    if tun.domain_strategy is not None:
        add("domain_strategy", Resolve(strategy=tun.domain_strategy), '"action": "resolve"')
    if tun.udp_disable_domain_unmapping:
        unmapping = RouteOptionsAction(udp_disable_domain_unmapping=True)
        add("udp_disable_domain_unmapping", unmapping, '"action": "route-options"')
    return rules


def _rule(
    option: RouteRuleOptions | LogicalRouteRuleOptions, outbounds: Outbounds, dns_tags: frozenset[str], scope: Scope
) -> list[Rule]:
    """Return the rules that one rule of the file becomes; none when it has an error."""
    report = scope.report
    match = build_conditions(option.conditions, scope)
    _check_keys(option.action, option.where, report)
    action = _action(option, outbounds, dns_tags, report)
    if action is None:
        return []
    if isinstance(action, HijackDns):
        match = _dns_by_port(match)
    return [Rule(match=match, action=action, origin=report.origin(option.where))]


def _check_keys(action: RouteActionOptions, path: Path, report: Report) -> None:
    allowed = _FIELDS[action.action]
    for key in sorted(action.given & _ACTION_KEYS - allowed):
        owners = " or ".join(name for name, fields in _FIELDS.items() if key in fields)
        report.error(
            (*path, key), f'"{key}" does not belong to the action {action.action}, but to {owners}', of_key=True
        )


def _action(
    option: RouteRuleOptions | LogicalRouteRuleOptions, outbounds: Outbounds, dns_tags: frozenset[str], report: Report
) -> Action | None:
    action, path = option.action, option.where
    match action.action:
        case "route" | "bypass":
            return _route(action, path, outbounds, report)
        case "reject":
            return Reject(method=action.method, no_drop=action.no_drop)
        case "hijack-dns":
            return HijackDns()
        case "direct":
            return Route(outbound=_direct(outbounds))
        case "sniff":
            return Sniff(
                sniffer=action.sniffer, timeout=action.timeout or 0.3, override_destination=action.override_destination
            )
        case "resolve":
            if action.server is not None and action.server not in dns_tags:
                report.error(
                    (*path, "server"), f'no DNS server has the tag "{action.server}"{nearest(action.server, dns_tags)}'
                )
            return Resolve(
                server=action.server,
                strategy=action.strategy,
                disable_cache=action.disable_cache,
                rewrite_ttl=action.rewrite_ttl,
            )
        case "route-options":
            changes = _changes(action)
            if changes is None:
                report.error(
                    path,
                    "route-options changes nothing: write override_address, override_port or udp_timeout",
                )
            return changes


def _route(action: RouteActionOptions, path: Path, outbounds: Outbounds, report: Report) -> Action | None:
    tag = action.outbound
    if tag is None or tag == "":
        if value_at(report.tree, (*path, "action")) not in (None, "", "route", "bypass"):
            return None  # the action could not be read, which is told already
        if action.action == "bypass":
            report.error(
                path, "bypass is only for sing-box's auto_redirect: write an outbound of type direct under outbound"
            )
        else:
            report.error(
                path, 'the rule does nothing: write "outbound", or an "action" such as reject, hijack-dns or sniff'
            )
        return None
    if tag in outbounds.dns:
        return HijackDns()
    if not outbounds.knows(tag, (*path, "outbound"), report):
        return None
    changes, legacy = _changes(action), outbounds.overrides.get(tag)
    if legacy is not None:
        changes = msgspec.structs.replace(
            changes or RouteOptionsAction(),
            override_address=action.override_address or legacy.override_address,
            override_port=action.override_port or legacy.override_port,
        )
    return Route(outbound=tag, options=changes)


def _changes(action: RouteActionOptions) -> RouteOptionsAction | None:
    changes = RouteOptionsAction(
        override_address=action.override_address,
        override_port=action.override_port or None,
        udp_timeout=action.udp_timeout,
        udp_disable_domain_unmapping=action.udp_disable_domain_unmapping,
        udp_connect=action.udp_connect,
    )
    return None if changes == RouteOptionsAction() else changes


def _direct(outbounds: Outbounds) -> str:
    """Return the tag of a plain direct outbound, made when there is none."""
    for config in outbounds.configs:
        if isinstance(config, DirectOutbound) and config.tag not in outbounds.overrides:
            return config.tag
    outbounds.configs.append(DirectOutbound(tag="direct"))
    outbounds.origins["direct"] = ()
    return "direct"


def _dns_by_port(match: Match | Logical) -> Match | Logical:
    """Let `"protocol": "dns"` mean port 53 as well: a question is known by it before anything is sniffed."""
    if match != Match(protocol=("dns",)):
        return match
    return Logical(mode="or", rules=(Match(port=(DNS_PORT,)), match))


def _speaks_of_dns(rule: Rule) -> bool:
    return isinstance(rule.action, HijackDns) or _asks_for_dns(rule.match)


def _asks_for_dns(match: Match | Logical) -> bool:
    if isinstance(match, Logical):
        return any(_asks_for_dns(part) for part in match.rules)
    return DNS_PORT in match.port or "dns" in match.protocol
