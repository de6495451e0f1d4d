"""Where rule-sets come from: they stand in the file, in a local file, or in one that was fetched before."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.config.build.conditions import Scope, build_conditions
from engine.config.build.machine import Machine
from engine.config.decode import decode
from engine.config.dialect import DialectError, Object, decode_text, parse
from engine.config.legacy import fold_keys, migrate_rules
from engine.config.options.route import (
    InlineRuleSetOptions,
    LocalRuleSetOptions,
    RemoteRuleSetOptions,
    RuleSetFileOptions,
)
from engine.config.problems import Report
from engine.config.rule_set.srs import RuleSetError, decode_srs
from shared.config import Logical, Match, RuleSet
from shared.rules.regex import compile_regex

__all__ = ["RuleSets", "build_rule_sets", "format_of", "remote_path"]

RuleSetOption = InlineRuleSetOptions | LocalRuleSetOptions | RemoteRuleSetOptions


@dataclass
class RuleSets:
    """The rule-sets of a file, and what was read for them."""

    built: dict[str, RuleSet] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def build_rule_sets(options: tuple[RuleSetOption, ...], scope: Scope, machine: Machine, rule_set_dir: str) -> RuleSets:
    """Return the rule-sets, with those of files read."""
    sets = RuleSets()
    scope = replace(scope, in_rule_set=True)
    report = scope.report
    for option in options:
        if option.tag in sets.built:
            report.error((*option.where, "tag"), f'two rule-sets have the tag "{option.tag}": rename one of them')
            continue
        match option:
            case InlineRuleSetOptions():
                rules = tuple(build_conditions(rule, scope) for rule in option.rules)
            case LocalRuleSetOptions() | RemoteRuleSetOptions():
                rules = _read(option, scope, machine, rule_set_dir, sets)
        origin = report.origin(option.where)
        sets.built[option.tag] = RuleSet(tag=option.tag, rules=rules, origin=origin)
    return sets


def remote_path(option: RemoteRuleSetOptions, rule_set_dir: str) -> Path:
    """Return where the file of a remote rule-set stands once it was fetched."""
    ending = "json" if format_of(option.format, option.url) == "source" else "srs"
    return Path(rule_set_dir, f"{option.tag.replace('/', '_')}.{ending}")


def format_of(named: str | None, location: str) -> str | None:
    """Return source or binary, as said or as the ending of the file tells; None: neither does."""
    if named is not None:
        return named
    return {"json": "source", "srs": "binary"}.get(location.partition("?")[0].rpartition(".")[2].lower())


def _read(
    option: LocalRuleSetOptions | RemoteRuleSetOptions,
    scope: Scope,
    machine: Machine,
    rule_set_dir: str,
    sets: RuleSets,
) -> tuple[Match | Logical, ...]:
    report = scope.report
    if isinstance(option, RemoteRuleSetOptions):
        key, location, path = "url", option.url, remote_path(option, rule_set_dir)
    else:
        configuration = report.problems.sources.place(_position(report, option)).file
        key, location, path = "path", option.path, Path(configuration).parent / option.path
    if not location:
        return ()  # its absence is told already
    here = (*option.where, key)
    kind = format_of(option.format, location)
    if kind is None:
        report.error(
            option.where, 'format is missing, and the name of the file does not tell it: write "source" or "binary"'
        )
        return ()
    try:
        data = machine.read(path)
    except OSError as error:
        if isinstance(option, RemoteRuleSetOptions):
            report.error(
                here,
                f"the engine fetches no rule-set by itself, and {path} is not there ({error.strerror}): "
                "run `engine fetch -c FILE` once, and again when it should change",
            )
        else:
            report.error(here, f"{path} cannot be read: {error.strerror}")
        return ()
    sets.files.append(str(path))
    if kind == "source":
        return _source(path, data, scope)
    try:
        rules = decode_srs(data)
        for rule in rules:
            _check_regexes(rule)
    except (RuleSetError, ValueError) as error:
        report.error(here, f"{path}: {error}")
        return ()
    return rules


def _position(report: Report, option: LocalRuleSetOptions) -> int:
    from engine.config.dialect import position

    return position(report.tree, option.where)


def _source(path: Path, data: bytes, scope: Scope) -> tuple[Match | Logical, ...]:
    """Read a rule-set in source form; its errors have its own lines."""
    problems = scope.report.problems
    text = decode_text(data)
    base = problems.sources.add(str(path), text)
    try:
        tree = parse(text, base)
    except DialectError as error:
        problems.error(error.at, str(error))
        return ()
    report = Report(problems, tree)
    if not isinstance(tree, Object):
        problems.error(base, "a rule-set is an object in { } with version and rules")
        return ()
    fold_keys(tree, report)
    migrate_rules(tree.get("rules"), ("rules",), report)
    options = decode(RuleSetFileOptions, tree, (), report)
    if options.version is None and "version" not in tree:
        problems.error(base, 'version is missing: write "version": 3')
    return tuple(build_conditions(rule, replace(scope, report=report)) for rule in options.rules)


def _check_regexes(rule: Match | Logical) -> None:
    """Raise ValueError for a regular expression that the workers could not compile."""
    if isinstance(rule, Logical):
        for part in rule.rules:
            _check_regexes(part)
    else:
        for pattern in (*rule.domain_regex, *rule.process_path_regex):
            compile_regex(pattern)
