"""Conditions of rules: options -> Match and Logical."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config.decode import nearest
from engine.config.options.rule import (
    NEVER_KEYS,
    DnsMatchOptions,
    LogicalDnsOptions,
    LogicalOptions,
    MatchOptions,
    QuestionOptions,
)
from engine.config.problems import Report
from shared.config import Logical, Match, RuleSet

__all__ = ["NEVER", "Scope", "asks_for_names", "build_conditions"]

NEVER = Logical(mode="or", rules=())
"""Holds for no flow."""


@dataclass(frozen=True)
class Scope:
    """What conditions may refer to."""

    inbounds: frozenset[str]
    outbounds: frozenset[str]
    rule_sets: frozenset[str]
    report: Report
    in_rule_set: bool = False
    """A rule-set names no inbound and no other rule-set."""


def build_conditions(
    options: MatchOptions | LogicalOptions | DnsMatchOptions | LogicalDnsOptions,
    scope: Scope,
    question: QuestionOptions | None = None,
) -> Match | Logical:
    """Return the condition that the options mean; what they refer to must exist."""
    match options:
        case DnsMatchOptions():
            if scope.in_rule_set and options.question.outbound:
                where = (*options.where, "outbound")
                scope.report.error(where, "outbound does not belong into a rule-set", of_key=True)
            return build_conditions(options.conditions, scope, options.question)
        case LogicalOptions() | LogicalDnsOptions():
            if not options.rules:
                scope.report.error(
                    (*options.where, "rules"), "a logical rule needs rules: without any it would match everything"
                )
            parts = tuple(build_conditions(rule, scope) for rule in options.rules)
            return Logical(mode=options.mode, rules=parts, invert=options.invert)
    _check_references(options, scope)
    never = bool(options.given & NEVER_KEYS) and any(getattr(options, key) for key in options.given & NEVER_KEYS)
    match = _match(options, question)
    if not never:
        return match
    return Logical(mode="or", rules=(), invert=True) if options.invert else NEVER


def _match(options: MatchOptions, question: QuestionOptions | None) -> Match:
    return Match(
        inbound=options.inbound,
        ip_version=options.ip_version,
        network=options.network,
        protocol=options.protocol,
        client=options.client,
        domain=options.domain,
        domain_suffix=options.domain_suffix,
        domain_keyword=options.domain_keyword,
        domain_regex=options.domain_regex,
        ip_cidr=options.ip_cidr,
        ip_is_private=options.ip_is_private,
        source_ip_cidr=options.source_ip_cidr,
        source_ip_is_private=options.source_ip_is_private,
        port=options.port,
        port_range=options.port_range,
        source_port=options.source_port,
        source_port_range=options.source_port_range,
        process_name=options.process_name,
        process_path=options.process_path,
        process_path_regex=options.process_path_regex,
        user=options.user,
        user_id=options.user_id,
        rule_set=options.rule_set,
        rule_set_ip_cidr_match_source=options.rule_set_ip_cidr_match_source,
        clash_mode=options.clash_mode or None,
        query_type=question.query_type if question else (),
        outbound=question.outbound if question else (),
        invert=options.invert,
    )


def _check_references(options: MatchOptions, scope: Scope) -> None:
    report, here = scope.report, options.where
    if scope.in_rule_set:
        for key in ("inbound", "rule_set", "protocol", "client", "user", "user_id", "clash_mode"):
            if key in options.given:
                report.error(
                    (*here, key),
                    f"{key} does not belong into a rule-set: write it into the rule that names the set",
                    of_key=True,
                )
        return
    for index, tag in enumerate(options.inbound):
        if tag not in scope.inbounds:
            report.error((*here, "inbound", index), f'no inbound has the tag "{tag}"{nearest(tag, scope.inbounds)}')
    for index, tag in enumerate(options.rule_set):
        if tag not in scope.rule_sets:
            report.error((*here, "rule_set", index), f'no rule-set has the tag "{tag}"{nearest(tag, scope.rule_sets)}')
    for key in ("process_path",):
        for index, path in enumerate(options.process_path):
            if not path.startswith("/"):
                report.warning(
                    (*here, key, index), f'"{path}" is no absolute path, so that no program has it: use process_name'
                )


def asks_for_names(match: Match | Logical, rule_sets: Mapping[str, RuleSet]) -> bool:
    """Whether a condition depends on the name of the destination, itself or by one of its rule-sets."""
    if isinstance(match, Logical):
        return any(asks_for_names(part, rule_sets) for part in match.rules)
    if match.domain or match.domain_suffix or match.domain_keyword or match.domain_regex:
        return True
    named = (rule_sets[tag] for tag in match.rule_set if tag in rule_sets)
    return any(asks_for_names(part, rule_sets) for rule_set in named for part in rule_set.rules)
