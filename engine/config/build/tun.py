"""The tun: which one, and what is led into it."""

import re
from ipaddress import ip_address, ip_interface

from engine.config.build.machine import Machine
from engine.config.decode import nearest
from engine.config.model import TunConfig, UidRange
from engine.config.options.engine import EngineOptions
from engine.config.options.inbound import ListenerOptions, TunOptions
from engine.config.problems import Report
from shared.config import Logical, Match, RuleSet

__all__ = ["build_tun", "dns_addresses", "the_tun"]

DEFAULT_TUN = TunConfig()


def the_tun(inbounds: tuple[TunOptions | ListenerOptions, ...], report: Report) -> TunOptions | None:
    """Return the one tun of a file; None: it names none. Tells of what does not listen here."""
    tuns = [inbound for inbound in inbounds if isinstance(inbound, TunOptions)]
    for inbound in inbounds:
        if isinstance(inbound, ListenerOptions):
            port = f" {inbound.listen_port}" if inbound.listen_port else ""
            report.warning(
                (*inbound.where, "type"),
                f'nothing listens on port{port}: the engine has no inbound of type "{inbound.type}", only tun',
            )
    tags: set[str] = set()
    for inbound in inbounds:
        if inbound.tag and inbound.tag in tags:
            report.error((*inbound.where, "tag"), f'two inbounds have the tag "{inbound.tag}": rename one of them')
        tags.add(inbound.tag)
    for extra in tuns[1:]:
        report.error(
            extra.where, "there can be only one tun: start a second engine with a --run-dir of its own for another"
        )
    return tuns[0] if tuns else None


def dns_addresses(options: TunOptions | None) -> tuple[str, ...]:
    """Return the addresses at which the DNS service answers: the one after each of the tun's own."""
    if options is None:
        return tuple(filter(None, map(_next_address, DEFAULT_TUN.addresses)))
    if options.dns_mode == "disabled":
        return ()
    return options.dns_address or tuple(filter(None, map(_next_address, options.address)))


def _next_address(text: str) -> str | None:
    own = ip_interface(text)
    following = ip_address(int(own.ip) + 1) if int(own.ip) + 1 < 2**own.max_prefixlen else None
    return str(following) if following is not None and following in own.network else None


def build_tun(
    options: TunOptions | None, engine: EngineOptions, rule_sets: dict[str, RuleSet], report: Report, machine: Machine
) -> TunConfig:
    """Return what the tun is; None: as without a file."""
    if options is None:
        return TunConfig(offload=engine.offload, dns_addresses=dns_addresses(None))
    _check_name(options, report, machine)
    _check_families(options, report)
    if options.strict_route and not options.auto_route:
        report.warning((*options.where, "strict_route"), "strict_route has no effect without auto_route", of_key=True)
    for key in ("include_interface", "exclude_interface"):
        for index, name in enumerate(getattr(options, key)):
            if name not in machine.interfaces:
                report.warning((*options.where, key, index), f'this machine has no interface "{name}" at present')
    if options.include_interface and options.exclude_interface:
        report.error(
            (*options.where, "exclude_interface"), "include_interface and exclude_interface exclude each other"
        )
    return TunConfig(
        tag=options.tag,
        interface_name=options.interface_name or "",
        mtu=options.mtu,
        offload=engine.offload,
        addresses=options.address,
        auto_route=options.auto_route,
        strict_route=options.strict_route,
        route_address=(*options.route_address, *_addresses(options, "route_address_set", rule_sets, report)),
        route_exclude_address=(
            *options.route_exclude_address,
            *_addresses(options, "route_exclude_address_set", rule_sets, report),
        ),
        include_interface=options.include_interface,
        exclude_interface=options.exclude_interface,
        include_uid=_uids(options.include_uid, options.include_uid_range),
        exclude_uid=_uids(options.exclude_uid, options.exclude_uid_range),
        table=options.iproute2_table_index,
        priority=options.iproute2_rule_index,
        dns_addresses=dns_addresses(options),
    )


def _check_name(options: TunOptions, report: Report, machine: Machine) -> None:
    name, path = options.interface_name, (*options.where, "interface_name")
    if name is None:
        return
    if name in machine.interfaces:
        report.warning(
            path, f'an interface named "{name}" is there already: the engine cannot start while another program has it'
        )
    elif machine.named_utun:
        if not re.fullmatch(r"utun\d{1,3}", name):
            report.error(
                path, f'macOS names tun devices utunN: write "utun8" in place of "{name}", or leave the key out'
            )
    elif name.startswith("utun"):
        report.warning(path, f'"{name}" is a name as macOS gives them; Linux takes any name, and the tun is named so')


def _check_families(options: TunOptions, report: Report) -> None:
    families = {ip_interface(text).version for text in options.address}
    for key in ("route_address", "route_exclude_address"):
        for index, text in enumerate(getattr(options, key)):
            version = ip_interface(text).version
            if families and version not in families:
                report.warning(
                    (*options.where, key, index),
                    f"{text} has no effect: the tun has no IPv{version} address, so that IPv{version} is not captured",
                )


def _uids(single: tuple[int, ...], ranges: tuple[UidRange, ...]) -> tuple[UidRange, ...]:
    return (*((uid, uid) for uid in single), *ranges)


def _addresses(options: TunOptions, key: str, rule_sets: dict[str, RuleSet], report: Report) -> list[str]:
    """Return the addresses of rule-sets. Ranges that are no prefix stay as `first-last`."""
    found: list[str] = []
    for index, tag in enumerate(getattr(options, key)):
        rule_set = rule_sets.get(tag)
        if rule_set is None:
            report.error((*options.where, key, index), f'no rule-set has the tag "{tag}"{nearest(tag, rule_sets)}')
            continue
        here = [text for rule in rule_set.rules for text in _cidrs(rule)]
        if not here:
            report.warning((*options.where, key, index), f'the rule-set "{tag}" has no addresses')
        found += here
    return found


def _cidrs(rule: Match | Logical) -> tuple[str, ...]:
    if isinstance(rule, Logical) or rule.invert:
        return ()
    return rule.ip_cidr
