"""Files -> EngineConfig. Pure but for reading them: the machine is an argument."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.config.build.conditions import Scope, asks_for_names
from engine.config.build.dns import build_dns
from engine.config.build.machine import Machine, this_machine
from engine.config.build.outbounds import build_outbounds
from engine.config.build.reach import shadowing_rule
from engine.config.build.route import build_route
from engine.config.build.tun import build_tun, dns_addresses, the_tun
from engine.config.decode import decode
from engine.config.dialect import Array, DialectError, Object, decode_text, parse, tags_in
from engine.config.legacy import fold_keys, migrate
from engine.config.model import CacheConfig, EngineConfig, LogConfig, QueueConfig
from engine.config.options.engine import QueueOptions, StackOptions, UdpOptions
from engine.config.options.outbound import HttpOptions as HttpProxyOptions
from engine.config.options.outbound import SocksOptions
from engine.config.options.route import ExperimentalOptions, FileOptions, LogOptions
from engine.config.problems import Problems, Report, Sources
from engine.config.rule_set.files import build_rule_sets
from engine.http import HttpOptions
from engine.http.listen import DEFAULT_LISTEN, ListenError, is_loopback, parse_listen
from shared.config import DnsConfig, HijackDns, Policy, RouteConfig, Sniff, StackConfig, UdpConfig

__all__ = ["FILE_SIZE_MAX", "expand", "load", "load_text", "read_tree"]

FILE_SIZE_MAX = 64 * 1024 * 1024
"""Bytes of one file."""


def load(paths: Path | Iterable[Path], machine: Machine | None = None) -> EngineConfig:
    """Return the configuration that one file, or several merged in their order, describe.

    Raises ConfigError with all errors. Nothing of the machine is changed, so a reload can be tried at any time.
    """
    machine = machine or this_machine()
    paths = [paths] if isinstance(paths, Path) else list(paths)
    problems = Problems(Sources())
    tree = read_tree(paths, problems, machine)
    problems.raise_errors()
    return _load(tree, problems, machine, [str(path) for path in paths])


def read_tree(paths: Iterable[Path], problems: Problems, machine: Machine) -> Object:
    """Return the tree of one file or several merged ones; what is wrong with them goes to `problems`."""
    trees = []
    for path in paths:
        name = str(path)
        try:
            data = machine.read(path)
        except OSError as error:
            problems.error(problems.sources.add(name, ""), f"the file cannot be read: {error.strerror}")
            continue
        if len(data) > FILE_SIZE_MAX:
            problems.error(problems.sources.add(name, ""), f"the file is larger than {FILE_SIZE_MAX >> 20} MiB")
            continue
        trees.append(_tree(name, decode_text(data), problems))
    return _merge(trees)


def load_text(text: str, file: str = "config.json", machine: Machine | None = None) -> EngineConfig:
    """As `load`, of a text that is called `file` in messages."""
    problems = Problems(Sources())
    tree = _tree(file, text, problems)
    problems.raise_errors()
    return _load(tree, problems, machine or this_machine(), [file])


def expand(paths: Iterable[Path]) -> list[Path]:
    """Replace each directory by its *.json files in the order of their names, as sing-box's -C does. Raises OSError."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        files = sorted(file for file in path.iterdir() if file.suffix == ".json")
        if not files:
            raise FileNotFoundError(2, "has no *.json file", str(path))
        found += files
    return found


def _tree(file: str, text: str, problems: Problems) -> Object:
    base = problems.sources.add(file, text)
    try:
        tree = parse(text, base)
    except DialectError as error:
        problems.error(error.at, str(error))
        return Object(base)
    if not isinstance(tree, Object):
        problems.error(base, "a configuration is one object in { }")
        return Object(base)
    fold_keys(tree, Report(problems, tree))
    return tree


def _merge(trees: list[Object]) -> Object:
    """Merge files as sing-box does: objects are merged, lists joined, of other values the last one counts."""
    merged = trees[0] if trees else Object()
    for tree in trees[1:]:
        _merge_into(merged, tree)
    return merged


def _merge_into(merged: Object, tree: Object) -> None:
    for key, value in tree.items():
        there: Any = merged.get(key)
        if isinstance(there, Object) and isinstance(value, Object):
            _merge_into(there, value)
        elif isinstance(there, Array) and isinstance(value, Array):
            for item, at in zip(value, value.item_at, strict=True):
                there.add(item, at)
        else:
            merged.put(key, value, key_at=tree.key_at[key], value_at=tree.value_at[key])


def _load(tree: Object, problems: Problems, machine: Machine, files: list[str]) -> EngineConfig:
    report = Report(problems, tree)
    migrate(tree, report)
    options = decode(FileOptions, tree, (), report)
    engine, route = options.engine, options.route
    outbounds = build_outbounds(options.outbounds, route, report, machine)
    tun = the_tun(options.inbounds, report)
    scope = Scope(
        inbounds=frozenset(inbound.tag for inbound in options.inbounds if inbound.tag)
        | tags_in(tree, "inbounds")
        | (frozenset() if tun else {"tun-in"}),
        outbounds=frozenset(outbounds.origins),
        rule_sets=tags_in(tree, "route", "rule_set"),
        report=report,
    )
    rule_sets = build_rule_sets(route.rule_set, scope, machine, engine.rule_set_dir)
    dns = build_dns(options.dns, outbounds, scope, machine)
    routes = build_route(
        route,
        tun,
        dns_addresses(tun),
        frozenset(server.tag for server in dns.servers) | tags_in(tree, "dns", "servers"),
        rule_sets.built,
        outbounds,
        scope,
        hijack_dns=engine.hijack_dns,
    )
    tun_config = build_tun(tun, engine, rule_sets.built, report, machine)
    http = _http(options.experimental, engine.metrics, report)
    _warn_of_unreachable(routes, problems, report)
    problems.raise_errors()
    _warn_of_open_secrets(options, report, machine)
    dns = _with_names(dns, routes, report)
    return EngineConfig(
        policy=Policy(outbounds=_default_first(outbounds.configs, outbounds.default), route=routes, dns=dns),
        tun=tun_config,
        log=_log(options.log, engine.log_format),
        queues=_queues(engine.queues),
        stack=_stack(engine.stack),
        udp=_udp(engine.udp, tun.udp_timeout if tun is not None else 300.0),
        workers=engine.workers,
        drain_timeout=engine.drain_timeout,
        run_dir=engine.run_dir,
        http=http,
        mode=options.experimental.clash_api.default_mode,
        cache=_cache(options.experimental),
        kill_switch=engine.kill_switch,
        files=(*files, *rule_sets.files),
        warnings=tuple(map(str, problems.warnings)),
    )


def _default_first(configs: list[Any], default: str) -> tuple[Any, ...]:
    """Put the outbound of flows that no rule takes first: it is the one that is named where there is room for one."""
    return tuple(sorted(configs, key=lambda config: config.tag != default))


def _warn_of_unreachable(routes: RouteConfig, problems: Problems, report: Report) -> None:
    """Tell of rules that no flow can come to. What a rule with an error means is not known: it counts for nothing."""
    wrong = {
        problem.path[2] for problem in problems.errors if problem.path[:2] == ("route", "rules") and problem.path[2:]
    }
    origins = {origin: index for origin, index in _origins(report).items() if index not in wrong}
    broken = {report.origin(("route", "rules", index)) for index in wrong if isinstance(index, int)}
    rules = tuple(rule for rule in routes.rules if rule.origin not in broken)
    for position, rule in enumerate(rules):
        earlier = shadowing_rule(rules, position) if rule.origin in origins else None
        if earlier is not None:
            report.warning(
                ("route", "rules", origins[rule.origin]),
                f"no flow comes to this rule: the rule at {earlier.origin} takes all that it could match",
            )


def _warn_of_open_secrets(options: FileOptions, report: Report, machine: Machine) -> None:
    """Tell of passwords in files that every user can read."""
    secrets = [
        (*outbound.where, "password")
        for outbound in options.outbounds
        if isinstance(outbound, SocksOptions | HttpProxyOptions) and outbound.password
    ]
    if options.experimental.clash_api.secret:
        secrets.append((*options.experimental.clash_api.where, "secret"))
    for path in secrets:
        file = report.origin(path).rsplit(":", 2)[0]
        if machine.is_open(Path(file)):
            report.warning(path, f"every user of this machine can read this: chmod 600 {file}", of_key=True)


def _with_names(dns: DnsConfig, routes: RouteConfig, report: Report) -> DnsConfig:
    """Switch reverse mapping on where rules ask for names, and nothing else would tell them."""
    if dns.reverse_mapping or not any(isinstance(rule.action, HijackDns) for rule in routes.rules):
        return dns
    rule_sets = {rule_set.tag: rule_set for rule_set in routes.rule_sets}
    for rule in routes.rules:
        if isinstance(rule.action, Sniff):
            break
        if asks_for_names(rule.match, rule_sets):
            index = _origins(report).get(rule.origin, 0)
            report.warning(
                ("route", "rules", index),
                "no rule with the action sniff stands before this one, so that sing-box would know no name here: it is "
                "taken from the DNS answers, as with dns.reverse_mapping",
            )
            return msgspec.structs.replace(dns, reverse_mapping=True)
    return dns


def _origins(report: Report) -> dict[str, int]:
    """Return the places of the file's route rules and their indices."""
    return {report.origin(("route", "rules", index)): index for index in range(len(_list(report.tree)))}


def _list(tree: Any) -> list[Any]:
    route = tree.get("route")
    rules = route.get("rules") if isinstance(route, Object) else None
    return rules if isinstance(rules, Array) else []


_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error"}


def _log(options: LogOptions, form: Any) -> LogConfig:
    level: Any = "error" if options.disabled else _LEVELS.get(options.level, options.level)
    return LogConfig(level=level, format=form, output=options.output or None, timestamp=options.timestamp)


def _http(options: ExperimentalOptions, metrics: str | None, report: Report) -> HttpOptions | None:
    """Return where metrics and Clash API are served: at engine.metrics, and at the address of the Clash API if it has one."""
    api = options.clash_api
    addresses = []
    named = metrics is not None or bool(api.external_controller)
    if metrics != "off":
        addresses.append(parse_listen(metrics or DEFAULT_LISTEN, option="engine.metrics"))
    if api.external_controller:
        path = (*api.where, "external_controller")
        try:
            addresses.append(parse_listen(api.external_controller, option="address"))
        except ListenError as error:
            report.error(path, str(error).removeprefix("address: "))
            return None
        if metrics is None:  # the user has named the one, so the other need not be there
            addresses.pop(0)
    for host, port in addresses:
        if not is_loopback(host) and not api.secret:
            path = (*api.where, "external_controller") if api.external_controller else ("engine", "metrics")
            report.error(
                path,
                f"{host or 'every address'}:{port} is not loopback, and there others may ask only with a secret: "
                "write experimental.clash_api.secret",
            )
            return None
    if not addresses:
        return None
    return HttpOptions(
        addresses=tuple(dict.fromkeys(addresses)),
        is_named=named,
        secret=api.secret,
        origins=api.access_control_allow_origin,
        ui=api.external_ui or None,
    )


def _cache(options: ExperimentalOptions) -> CacheConfig | None:
    cache = options.cache_file
    if not cache.enabled:
        return None
    return CacheConfig(path=cache.path or None, cache_id=cache.cache_id or None, store_fakeip=cache.store_fakeip)


def _queues(options: QueueOptions) -> QueueConfig:
    return QueueConfig(packets=1 << (options.packets - 1).bit_length(), large_packets=options.large_packets)


def _stack(options: StackOptions) -> StackConfig:
    limits = {name: getattr(options, name) for name in StackOptions.__struct_fields__ if name not in ("where", "given")}
    return StackConfig(mtu=65535, offload=False, **limits)


def _udp(options: UdpOptions, idle_timeout: float) -> UdpConfig:
    return UdpConfig(idle_timeout=idle_timeout or 300.0, max_associations=options.max_associations)
