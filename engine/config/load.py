"""Files -> EngineConfig. Pure but for reading them: the machine is an argument."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.config.build.conditions import Scope
from engine.config.build.dns import build_dns
from engine.config.build.machine import Machine, this_machine
from engine.config.build.outbounds import build_outbounds
from engine.config.build.reach import shadowing_rule
from engine.config.build.route import build_route
from engine.config.build.tun import build_tun, dns_addresses, the_tun
from engine.config.decode import decode
from engine.config.dialect import Array, DialectError, Object, decode_text, parse, tags_in
from engine.config.legacy import fold_keys, migrate
from engine.config.model import CacheConfig, ClashApiConfig, EngineConfig, LogConfig
from engine.config.options.engine import StackOptions, UdpOptions
from engine.config.options.route import ExperimentalOptions, FileOptions, LogOptions
from engine.config.problems import Problems, Report, Sources
from engine.config.rule_set.files import build_rule_sets
from shared.config import Policy, ProxyConfig, ProxyOutbound, RouteConfig, StackConfig, UdpConfig

__all__ = ["FILE_SIZE_MAX", "expand", "load", "load_text", "with_proxy"]

FILE_SIZE_MAX = 64 * 1024 * 1024
"""Bytes of one file."""


def load(paths: Path | Iterable[Path], machine: Machine | None = None) -> EngineConfig:
    """Return the configuration that one file, or several merged in their order, describe.

    Raises ConfigError with all errors. Nothing of the machine is changed, so a reload can be tried at any time.
    """
    machine = machine or this_machine()
    sources = Sources()
    problems = Problems(sources)
    trees = []
    files = []
    for path in [paths] if isinstance(paths, Path) else paths:
        files.append(str(path))
        try:
            data = machine.read(path)
        except OSError as error:
            problems.error(sources.add(str(path), ""), f"the file cannot be read: {error.strerror}")
            continue
        if len(data) > FILE_SIZE_MAX:
            problems.error(sources.add(str(path), ""), f"the file is larger than {FILE_SIZE_MAX >> 20} MiB")
            continue
        trees.append(_tree(str(path), decode_text(data), problems))
    problems.raise_errors()
    return _load(_merge(trees), problems, machine, files)


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
        clash_mode=options.experimental.clash_api.default_mode,
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
    clash_api = _clash_api(options.experimental, report)
    problems.raise_errors()
    _warn_of_unreachable(routes, problems, report)
    return EngineConfig(
        policy=Policy(outbounds=_default_first(outbounds.configs, outbounds.default), route=routes, dns=dns),
        tun=tun_config,
        log=_log(options.log, engine.log_format),
        stack=_stack(engine.stack),
        udp=_udp(engine.udp, tun.udp_timeout if tun is not None else 300.0),
        workers=engine.workers,
        run_dir=engine.run_dir,
        metrics=engine.metrics,
        clash_api=clash_api,
        cache=_cache(options.experimental),
        kill_switch=engine.kill_switch,
        files=(*files, *rule_sets.files),
        warnings=tuple(map(str, problems.warnings)),
    )


def _default_first(configs: list[Any], default: str) -> tuple[Any, ...]:
    """Put the outbound of flows that no rule takes first: it is the one that is named where there is room for one."""
    return tuple(sorted(configs, key=lambda config: config.tag != default))


def _warn_of_unreachable(routes: RouteConfig, problems: Problems, report: Report) -> None:
    origins = {report.origin(("route", "rules", index)): index for index in range(len(_list(report.tree)))}
    for index, rule in enumerate(routes.rules):
        if rule.origin not in origins:
            continue
        earlier = shadowing_rule(routes.rules, index)
        if earlier is not None:
            report.warning(
                ("route", "rules", origins[rule.origin]),
                f"no flow comes to this rule: the rule at {earlier.origin} takes all that it could match",
            )


def _list(tree: Any) -> list[Any]:
    route = tree.get("route")
    rules = route.get("rules") if isinstance(route, Object) else None
    return rules if isinstance(rules, Array) else []


_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error"}


def _log(options: LogOptions, form: Any) -> LogConfig:
    level: Any = "error" if options.disabled else _LEVELS.get(options.level, options.level)
    return LogConfig(level=level, format=form, output=options.output or None, timestamp=options.timestamp)


def _clash_api(options: ExperimentalOptions, report: Report) -> ClashApiConfig | None:
    api = options.clash_api
    if not api.external_controller:
        return None
    host, colon, port = api.external_controller.rpartition(":")
    path = (*api.where, "external_controller")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        report.error(path, f'"{api.external_controller}" is no address to listen at: write one as in "127.0.0.1:9090"')
        return None
    if host.strip("[]") not in ("127.0.0.1", "::1", "localhost") and not api.secret:
        report.error(path, "the API would be open to the network: write a secret, or listen at 127.0.0.1")
    return ClashApiConfig(
        listen=f"{host or '0.0.0.0'}:{port}",
        secret=api.secret,
        external_ui=api.external_ui or None,
        default_mode=api.default_mode,
        allow_origins=api.access_control_allow_origin,
        allow_private_network=api.access_control_allow_private_network,
    )


def _cache(options: ExperimentalOptions) -> CacheConfig | None:
    cache = options.cache_file
    if not cache.enabled:
        return None
    return CacheConfig(path=cache.path or None, cache_id=cache.cache_id or None, store_fakeip=cache.store_fakeip)


def _stack(options: StackOptions) -> StackConfig:
    limits = {name: getattr(options, name) for name in StackOptions.__struct_fields__ if name not in ("where", "given")}
    return StackConfig(mtu=65535, offload=False, **limits)


def _udp(options: UdpOptions, idle_timeout: float) -> UdpConfig:
    return UdpConfig(idle_timeout=idle_timeout or 300.0, max_associations=options.max_associations)


def with_proxy(config: EngineConfig, proxy: ProxyConfig) -> EngineConfig:
    """Return `config` with its default outbound replaced by `proxy` (a ProxyConfig), as the option --proxy says.

    A default outbound that is a proxy keeps its tag, so that rules which name it follow. Another kind (a group, direct)
    stays for the rules that name it, and the proxy becomes what flows take that no rule takes.
    """
    policy = config.policy
    default = policy.route.final
    outbounds = list(policy.outbounds)
    for index, outbound in enumerate(outbounds):
        if outbound.tag == default and isinstance(outbound, ProxyOutbound):
            outbounds[index] = msgspec.structs.replace(outbound, proxy=proxy)
            return msgspec.structs.replace(config, policy=msgspec.structs.replace(policy, outbounds=tuple(outbounds)))
    tag = "proxy"
    while any(outbound.tag == tag for outbound in outbounds):
        tag += "'"
    route = msgspec.structs.replace(policy.route, final=tag)
    outbounds.insert(0, ProxyOutbound(tag=tag, proxy=proxy))
    return msgspec.structs.replace(
        config, policy=msgspec.structs.replace(policy, outbounds=tuple(outbounds), route=route)
    )
