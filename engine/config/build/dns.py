"""The DNS service: servers and rules; without a section of the file, the one that every engine has."""

from collections.abc import Set as AbstractSet
from ipaddress import ip_network
from pathlib import Path as FilePath
from typing import Any, Literal

import msgspec

from engine.config.build.conditions import Scope, build_conditions
from engine.config.build.machine import Machine
from engine.config.build.outbounds import Outbounds
from engine.config.decode import nearest
from engine.config.dialect import tags_in
from engine.config.names import is_address
from engine.config.options.dns import (
    DnsOptions,
    DnsServerOptions,
    FakeipServerOptions,
    HostsServerOptions,
    HttpsServerOptions,
    LocalServerOptions,
    PlainServerOptions,
    RcodeServerOptions,
    TlsOptions,
    TlsServerOptions,
)
from engine.config.options.rule import DnsMatchOptions, DnsRuleOptions, LogicalDnsRuleOptions, QuestionOptions
from engine.config.problems import Report
from shared.config import DnsConfig, DnsRule, DnsServer

__all__ = ["build_dns", "default_dns"]

PUBLIC_SERVERS = ("1.1.1.1", "8.8.8.8")
"""Asked through the proxy, one after the other, in place of a server of the LAN, which no proxy reaches."""
CACHE_MIN = 1024
"""Answers; less than this sing-box takes for unset, too."""
RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")


def default_dns(detour: str | None) -> DnsConfig:
    """Return the service of an engine whose file has no section `dns`: each question goes to the server that the program
    has asked, through `detour`."""
    first, *others = PUBLIC_SERVERS
    server = DnsServer(tag="addressee", kind="addressee", server=first, others=tuple(others), detour=detour)
    return DnsConfig(servers=(server,))


def build_dns(options: DnsOptions | None, outbounds: Outbounds, scope: Scope, machine: Machine) -> DnsConfig:
    """Return the DNS service."""
    report = scope.report
    if options is None:
        return default_dns(outbounds.default)
    if not options.servers and not options.rules and not options.final:
        return msgspec.structs.replace(default_dns(outbounds.default), **_settings(options))
    servers: dict[str, DnsServer] = {}
    for index, option in enumerate(options.servers):
        tag = option.tag or str(index)
        if tag in servers:
            report.error((*option.where, "tag"), f'two DNS servers have the tag "{tag}": rename one of them')
        else:
            servers[tag] = _server(tag, option, outbounds, report, machine)
    known = tags_in(report.tree, "dns", "servers") | servers.keys()
    for option in options.servers:
        _check_resolver(option, known, report)
    rules = tuple(_rule(option, known, scope) for option in options.rules)
    final = options.final or None
    if final is not None and final not in known:
        report.error((*options.where, "final"), f'no DNS server has the tag "{final}"{nearest(final, servers)}')
    elif not servers:
        report.error((*options.where, "servers"), "there are DNS rules, but no DNS server: write one under servers")
    elif (first := servers.get(final or next(iter(servers)))) is not None and first.kind == "fakeip":
        where = (*options.where, "final") if final else (*options.where, "servers", 0)
        report.error(where, "the server for questions that no rule takes cannot be fakeip: set dns.final to another")
    return DnsConfig(
        servers=tuple(servers.values()),
        rules=rules,
        final=final,
        **_settings(options),
    )


def _settings(options: DnsOptions) -> dict[str, Any]:
    return {
        "strategy": options.strategy,
        "disable_cache": options.disable_cache,
        "disable_expire": options.disable_expire,
        "cache_capacity": options.cache_capacity if options.cache_capacity >= CACHE_MIN else 4096,
        "serve_stale": options.optimistic.timeout if options.optimistic.enabled else 0.0,
        "reverse_mapping": options.reverse_mapping,
        "client_subnet": options.client_subnet,
        "timeout": options.timeout or 10.0,
    }


def _server(tag: str, option: DnsServerOptions, outbounds: Outbounds, report: Report, machine: Machine) -> DnsServer:
    detour = None
    if isinstance(option, PlainServerOptions | TlsServerOptions | HttpsServerOptions | LocalServerOptions):
        detour = option.reached.detour or None
        if (
            detour is not None
            and outbounds.knows(detour, (*option.where, "detour"), report)
            and detour in outbounds.dns
        ):
            report.error((*option.where, "detour"), f'"{detour}" is the DNS service itself')
    common: dict[str, Any] = {"tag": tag, "strategy": option.strategy, "client_subnet": option.client_subnet}
    match option:
        case PlainServerOptions():
            kind: Literal["udp", "tcp"] = "tcp" if option.type == "tcp" else "udp"
            return DnsServer(kind=kind, server=option.server, port=option.server_port or 53, detour=detour, **common)
        case TlsServerOptions():
            return DnsServer(
                kind="tls", server=option.server, port=option.server_port or 853, detour=detour,
                **_tls(option.tls, report, machine), **common,
            )  # fmt: skip
        case HttpsServerOptions():
            path = option.path if option.path.startswith("/") else f"/{option.path}"
            return DnsServer(
                kind="https", server=option.server, port=option.server_port or 443, path=path, detour=detour,
                **_tls(option.tls, report, machine), **common,
            )  # fmt: skip
        case HostsServerOptions():
            return DnsServer(kind="hosts", hosts=_hosts(option, report, machine), **common)
        case FakeipServerOptions():
            return DnsServer(kind="fakeip", **_ranges(option, report), **common)
        case RcodeServerOptions():
            if option.rcode not in RCODES:
                report.error(
                    (*option.where, "rcode"), f'"{option.rcode}" is no answer known here{nearest(option.rcode, RCODES)}'
                )
            return DnsServer(kind="rcode", rcode=option.rcode, **common)
        case _:
            return DnsServer(kind="local", **common)


def _check_resolver(option: DnsServerOptions, servers: AbstractSet[str], report: Report) -> None:
    if isinstance(option, PlainServerOptions | TlsServerOptions | HttpsServerOptions):
        resolver = option.reached.domain_resolver
        if resolver is not None and resolver.server and resolver.server not in servers:
            where = (*option.where, "domain_resolver")
            report.error(where, f'no DNS server has the tag "{resolver.server}"{nearest(resolver.server, servers)}')
        elif resolver is not None and not is_address(option.server):
            report.warning(
                (*option.where, "domain_resolver"),
                f'"{option.server}" is looked up by the resolver of this machine, at the start, and not by "{resolver.server}"',
            )


def _tls(tls: TlsOptions, report: Report, machine: Machine) -> dict[str, Any]:
    certificate = "\n".join(tls.certificate) or None
    if tls.certificate_path:
        configuration = FilePath(report.origin(tls.where).rsplit(":", 2)[0])
        path = configuration.parent / tls.certificate_path
        try:
            certificate = machine.read(path).decode(errors="replace")
        except OSError as error:
            report.error((*tls.where, "certificate_path"), f"{path} cannot be read: {error.strerror}")
    return {"server_name": tls.server_name or None, "insecure": tls.insecure, "certificate": certificate}


def _hosts(option: HostsServerOptions, report: Report, machine: Machine) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = {name.lower().rstrip("."): list(addresses) for name, addresses in option.predefined.items()}
    paths = option.path or (() if option.predefined else ("/etc/hosts",))
    for index, path in enumerate(paths):
        try:
            lines = machine.read(FilePath(path)).decode(errors="replace").splitlines()
        except OSError as error:
            report.error((*option.where, "path", index), f"{path} cannot be read: {error.strerror}")
            continue
        for line in lines:
            address, *aliases = line.partition("#")[0].split() or [""]
            for alias in aliases:
                names.setdefault(alias.lower().rstrip("."), []).append(address)
    return tuple((name, tuple(addresses)) for name, addresses in names.items())


def _ranges(option: FakeipServerOptions, report: Report) -> dict[str, Any]:
    for key, version, text in (("inet4_range", 4, option.inet4_range), ("inet6_range", 6, option.inet6_range)):
        if text is not None and ip_network(text).version != version:
            report.error((*option.where, key), f"{text} is no prefix of IPv{version}")
    if option.inet4_range is None and option.inet6_range is None:
        return {"inet4_range": "198.18.0.0/15", "inet6_range": "fc00::/18"}
    return {"inet4_range": option.inet4_range, "inet6_range": option.inet6_range}


_ANSWER_KEYS = ("ip_cidr", "ip_is_private")


def _rule(option: DnsRuleOptions | LogicalDnsRuleOptions, servers: AbstractSet[str], scope: Scope) -> DnsRule:
    report, action, path = scope.report, option.action, option.where
    if isinstance(option, DnsRuleOptions):
        _check_question(option.conditions.given, option.question, path, report)
        match = build_conditions(DnsMatchOptions(conditions=option.conditions, question=option.question), scope)
    else:
        match = build_conditions(option.conditions, scope)
    if action.action == "route":
        if not action.server:
            report.error(path, 'the rule does nothing: write "server", or an "action" such as reject')
        elif action.server not in servers:
            report.error(
                (*path, "server"), f'no DNS server has the tag "{action.server}"{nearest(action.server, servers)}'
            )
    rcode = action.rcode.upper()
    if action.action == "predefined" and rcode not in RCODES:
        report.error((*path, "rcode"), f'"{action.rcode}" is no answer known here{nearest(rcode, RCODES)}')
    return DnsRule(
        match=match,
        action=action.action,
        server=action.server,
        rcode="REFUSED" if action.action == "reject" else rcode,
        answer=action.answer,
        drop=action.action == "reject" and action.method == "drop",
        strategy=action.strategy,
        disable_cache=action.disable_cache,
        rewrite_ttl=action.rewrite_ttl,
        client_subnet=action.client_subnet,
        origin=report.origin(path),
    )


def _check_question(
    given: frozenset[str], question: QuestionOptions, path: tuple[str | int, ...], report: Report
) -> None:
    for key in _ANSWER_KEYS:
        if key in given:
            report.error(
                (*path, key),
                f"{key} in a DNS rule is about the answer, which is not supported: choose by name, or write the rule under route",
                of_key=True,
            )
    if question.outbound:
        report.warning(
            (*path, "outbound"),
            '"outbound" in a DNS rule is the form before sing-box 1.12: read as a rule about the servers of outbounds; '
            "now: route.default_domain_resolver",
            of_key=True,
        )
