"""Outbounds: proxies, direct, block, and groups whose members exist and form no circle."""

import math
from dataclasses import dataclass, field
from typing import Literal

from engine.config.build.machine import Machine
from engine.config.decode import nearest
from engine.config.dialect import Path, tags_in
from engine.config.names import is_address
from engine.config.options.outbound import (
    BlockOptions,
    DialOptions,
    DirectOptions,
    DnsOutboundOptions,
    FallbackOptions,
    HttpOptions,
    OutboundOptions,
    Resolver,
    SelectorOptions,
    SocksOptions,
    UrltestOptions,
)
from engine.config.options.route import RouteOptions
from engine.config.problems import Report
from shared.config import (
    BlockOutbound,
    DialConfig,
    DirectOutbound,
    FallbackOutbound,
    OutboundConfig,
    ProxyConfig,
    ProxyOutbound,
    SelectorOutbound,
    UrltestOutbound,
)
from shared.config import RouteOptions as RouteOptionsAction

__all__ = ["Outbounds", "build_outbounds"]

KEEP_ALIVE_MAX = 32767
"""Seconds: MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL (include/net/tcp.h)."""

Group = SelectorOptions | UrltestOptions | FallbackOptions


@dataclass
class Outbounds:
    """The outbounds of a file."""

    configs: list[OutboundConfig] = field(default_factory=list)
    origins: dict[str, Path] = field(default_factory=dict)
    """Tags and where they stand."""
    refused: frozenset[str] = frozenset()
    """Tags of outbounds that could not be read, which is told already."""
    dns: set[str] = field(default_factory=set)
    """Tags of outbounds of type dns (before sing-box 1.11): a rule that names one hijacks DNS."""
    overrides: dict[str, RouteOptionsAction] = field(default_factory=dict)
    """Direct outbounds that replace the destination (before sing-box 1.11)."""
    default: str = ""
    """Tag of the outbound of flows that no rule takes."""

    def knows(self, tag: str, path: Path, report: Report) -> bool:
        """Report an unknown tag."""
        if tag in self.origins or tag in self.refused:
            return True
        report.error(path, f'no outbound has the tag "{tag}"{nearest(tag, self.origins)}')
        return False


def build_outbounds(
    options: tuple[OutboundOptions, ...], route: RouteOptions, report: Report, machine: Machine
) -> Outbounds:
    """Return the outbounds; without any there is one, direct, as in sing-box."""
    found = Outbounds(refused=tags_in(report.tree, "outbounds"))
    for index, outbound in enumerate(options):
        tag = outbound.tag or str(index)  # as sing-box names those without tag
        if tag in found.origins:
            report.error((*outbound.where, "tag"), f'two outbounds have the tag "{tag}": rename one of them')
        else:
            found.origins[tag] = outbound.where
            _build(tag, outbound, route, found, report, machine)
    if not options:
        report.warning(
            ("outbounds",), "there is no outbound: everything goes out directly, unless --proxy names a proxy"
        )
        found.origins["direct"] = ()
        found.configs.append(DirectOutbound(tag="direct"))
    groups = {outbound.tag: outbound for outbound in options if isinstance(outbound, Group)}
    for outbound in groups.values():
        _check_members(outbound, found, report)
    _check_circles(groups, report)
    found.default = next(iter(found.origins), "direct")
    if route.final is not None and found.knows(route.final, (*route.where, "final"), report):
        found.default = route.final
    if found.default in found.dns:
        report.error(
            (*found.origins[found.default], "type"),
            "flows without a rule cannot go to the DNS service: set route.final",
        )
    return found


def _build(
    tag: str, options: OutboundOptions, route: RouteOptions, found: Outbounds, report: Report, machine: Machine
) -> None:
    if (
        isinstance(options, SocksOptions | HttpOptions)
        and options.dial.domain_resolver
        and not is_address(options.server)
    ):
        report.warning(
            (*options.where, "domain_resolver"),
            f'"{options.server}" is looked up by the resolver of this machine, at the start, and not by '
            f'"{options.dial.domain_resolver.server}"',
        )
    match options:
        case SocksOptions():
            _check_credentials(options, report)
            found.configs.append(_socks(tag, options, dial(options.dial, route, report, machine)))
        case HttpOptions():
            proxy = ProxyConfig("http", options.server, options.server_port, options.username, options.password)
            found.configs.append(ProxyOutbound(tag=tag, proxy=proxy, dial=dial(options.dial, route, report, machine)))
        case DirectOptions():
            found.configs.append(DirectOutbound(tag=tag, dial=dial(options.dial, route, report, machine)))
            if options.override_address or options.override_port:
                key = "override_address" if options.override_address else "override_port"
                report.warning(
                    (*options.where, key),
                    f'"{key}" of an outbound is the form before sing-box 1.11: read as {key} of the rules that lead here',
                    of_key=True,
                )
                found.overrides[tag] = RouteOptionsAction(
                    override_address=options.override_address, override_port=options.override_port
                )
        case BlockOptions():
            found.configs.append(BlockOutbound(tag=tag))
        case DnsOutboundOptions():
            report.warning(
                (*options.where, "type"),
                'an outbound of type "dns" is the form before sing-box 1.11: read as "action": "hijack-dns" of the rules '
                "that lead here",
            )
            found.dns.add(tag)
        case SelectorOptions():
            found.configs.append(
                SelectorOutbound(
                    tag=tag,
                    outbounds=options.outbounds,
                    default=options.default,
                    interrupt_exist_connections=options.interrupt_exist_connections,
                )
            )
        case UrltestOptions():
            found.configs.append(
                UrltestOutbound(
                    tag=tag,
                    outbounds=options.outbounds,
                    url=options.url or "https://www.gstatic.com/generate_204",
                    interval=options.interval or 180.0,
                    tolerance=options.tolerance / 1000,
                    idle_timeout=options.idle_timeout or 1800.0,
                    interrupt_exist_connections=options.interrupt_exist_connections,
                )
            )
        case FallbackOptions():
            found.configs.append(
                FallbackOutbound(
                    tag=tag, outbounds=options.outbounds, failures=max(options.failures, 1), retry=options.retry
                )
            )


def _socks(tag: str, options: SocksOptions, dial: DialConfig) -> ProxyOutbound:
    kind: Literal["socks5", "socks4"] = "socks5" if options.version == "5" else "socks4"
    password = options.password if kind == "socks5" else None  # SOCKS4 has a user name only
    proxy = ProxyConfig(kind, options.server, options.server_port, options.username or None, password or None)
    return ProxyOutbound(tag=tag, proxy=proxy, network=options.network, dial=dial)


def _check_credentials(options: SocksOptions, report: Report) -> None:
    if options.version != "5":
        if options.password:
            report.warning(
                (*options.where, "password"), f"SOCKS{options.version} has no password: it is not sent", of_key=True
            )
        return
    if options.username and not options.password:
        report.error(
            (*options.where, "username"), "SOCKS5 wants a password with the user name (RFC 1929): write password"
        )
    elif options.password and not options.username:
        report.error(
            (*options.where, "password"), "SOCKS5 wants a user name with the password (RFC 1929): write username"
        )


def dial(options: DialOptions, route: RouteOptions, report: Report, machine: Machine) -> DialConfig:
    """Return how sockets are made, with what `route` says for all."""
    name, path = options.bind_interface, (*options.where, "bind_interface")
    if name is None and route.default_interface is not None:
        name, path = route.default_interface, (*route.where, "default_interface")
    if name is not None and name not in machine.interfaces:
        there = ", ".join(sorted(machine.interfaces - {"lo"})) or "only lo"
        missing = f'this machine has no interface "{name}"'
        if name.startswith("en") and name[2:].isdecimal():
            report.warning(
                path,
                f"{missing} (en0 and the like are names of macOS), but {there}: the default interface is used instead",
            )
            name = None
        else:
            report.warning(path, f"{missing} at present, but {there}: the outbound fails until it appears")
    if options.domain_strategy is not None:
        report.warning(
            (*options.where, "domain_strategy"),
            '"domain_strategy" is the form before sing-box 1.12: read as "strategy" of domain_resolver',
            of_key=True,
        )
    resolver: Resolver = options.domain_resolver or route.default_domain_resolver
    return DialConfig(
        bind_interface=name,
        routing_mark=options.routing_mark if options.routing_mark is not None else route.default_mark,
        connect_timeout=options.connect_timeout or 10.0,
        keep_alive=not options.disable_tcp_keep_alive,
        keep_alive_idle=_keep_alive(options, "tcp_keep_alive", options.tcp_keep_alive or 30.0, report),
        keep_alive_interval=_keep_alive(
            options, "tcp_keep_alive_interval", options.tcp_keep_alive_interval or 10.0, report
        ),
        domain_resolver=options.domain_resolver.server if options.domain_resolver else None,
        strategy=(resolver.strategy if resolver else None) or options.domain_strategy,
    )


def _keep_alive(options: DialOptions, key: str, seconds: float, report: Report) -> int:
    """Return whole seconds, as the kernel takes them."""
    if seconds > KEEP_ALIVE_MAX:
        report.error(
            (*options.where, key), f"{key} is too long: write at most {KEEP_ALIVE_MAX}s, the most that the kernel takes"
        )
    return max(1, min(math.ceil(seconds), KEEP_ALIVE_MAX))


def _check_members(group: Group, found: Outbounds, report: Report) -> None:
    path = (*group.where, "outbounds")
    if not group.outbounds and "outbounds" not in group.given:
        report.error(path, "outbounds is missing: write the tags of the members")
    elif not group.outbounds:
        report.error(path, "the group has no member: write the tags of at least one outbound")
    for index, tag in enumerate(group.outbounds):
        if found.knows(tag, (*path, index), report) and tag in found.dns:
            report.error((*path, index), f'"{tag}" is the DNS service and cannot be a member of a group')
    if isinstance(group, SelectorOptions) and group.default is not None and group.default not in group.outbounds:
        report.error(
            (*group.where, "default"),
            f'"{group.default}" is no member of this group{nearest(group.default, group.outbounds)}',
        )


def _check_circles(groups: dict[str, Group], report: Report) -> None:
    """Report each circle of groups once, at the member that closes it."""
    done: set[str] = set()

    def visit(tag: str, chain: list[str]) -> None:
        chain.append(tag)
        for index, member in enumerate(groups[tag].outbounds):
            if member in chain:
                circle = " -> ".join([*chain[chain.index(member) :], member])
                report.error((*groups[tag].where, "outbounds", index), f"the groups form a circle: {circle}")
            elif member in groups and member not in done:
                visit(member, chain)
        chain.pop()
        done.add(tag)

    for tag in groups:
        if tag not in done:
            visit(tag, [])
