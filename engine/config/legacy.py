"""Forms of sing-box 1.8 to 1.13 in the tree, rewritten to those of 1.14; each is told in one warning.

Only what can be rewritten within one object is done here. What becomes a rule of its own (`sniff` of an inbound, outbounds
of type dns, domain_strategy, override_address) is done where rules and outbounds are built (engine/config/build).
"""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from engine.config.dialect import Array, Object, Path
from engine.config.problems import Report

__all__ = ["fold_keys", "migrate", "migrate_rules"]

_OPEN_MAPS = frozenset({"predefined", "headers"})
"""Objects whose keys are the user's own words."""


def fold_keys(tree: Any, report: Report, path: Path = ()) -> None:
    """Make keys lower-case, since sing-box does not mind the case, and warn of keys that stand twice in one object."""
    if isinstance(tree, Array):
        if tree and isinstance(tree[0], Object | Array):
            for index, item in enumerate(tree):
                fold_keys(item, report, (*path, index))
        return
    if not isinstance(tree, Object):
        return
    if not path or path[-1] not in _OPEN_MAPS:
        for key in [key for key in tree if key != key.lower()]:
            tree.put(key.lower(), tree.pop(key), key_at=tree.key_at[key], value_at=tree.value_at[key])
    for key, at in tree.repeated:
        report.problems.warning(at, f'"{key}" stands twice in this object: only the last one counts', path)
    for key, value in tree.items():
        fold_keys(value, report, (*path, key))


def migrate(tree: Object, report: Report) -> None:
    """Rewrite a whole configuration."""
    for index, inbound in _objects(tree.get("inbounds")):
        if inbound.get("type") == "tun":
            _tun(inbound, ("inbounds", index), report)
    dns = tree.get("dns")
    if isinstance(dns, Object):
        _dns(dns, _default_outbound(tree), report)
    route = tree.get("route")
    for section, name in ((dns, "dns"), (route, "route")):
        if isinstance(section, Object):
            migrate_rules(section.get("rules"), (name, "rules"), report)
    if isinstance(route, Object):
        for index, rule_set in _objects(route.get("rule_set")):
            migrate_rules(rule_set.get("rules"), ("route", "rule_set", index, "rules"), report)
    experimental = tree.get("experimental")
    if isinstance(experimental, Object):
        _clash_api(experimental, report)


def _objects(items: Any) -> Iterator[tuple[int, Object]]:
    if isinstance(items, Array):
        for index, item in enumerate(items):
            if isinstance(item, Object):
                yield index, item


def _told(report: Report, at: int, path: Path, old: str, version: str, new: str) -> None:
    report.problems.warning(at, f'"{old}" is the form before sing-box {version}: read as {new}', path)


# Tun addresses: before 1.10 one key for each family

_FAMILIES = {
    "address": ("inet4_address", "inet6_address"),
    "route_address": ("inet4_route_address", "inet6_route_address"),
    "route_exclude_address": ("inet4_route_exclude_address", "inet6_route_exclude_address"),
}


def _tun(tun: Object, path: Path, report: Report) -> None:
    for new, olds in _FAMILIES.items():
        for old in olds:
            if old not in tun:
                continue
            key_at, at = tun.key_at[old], tun.value_at[old]
            items = _as_array(tun.pop(old), at)
            merged = _as_array(tun.get(new), tun.value_at.get(new, at))
            for item, item_at in zip(items, items.item_at, strict=True):
                merged.add(item, item_at)
            tun.put(new, merged, key_at=tun.key_at.get(new, key_at), value_at=tun.value_at.get(new, at))
            _told(report, key_at, path, old, "1.10", f'"{new}"')


def _as_array(value: Any, at: int) -> Array:
    if isinstance(value, Array):
        return value
    made = Array(at)
    if value is not None:
        made.add(value, at)
    return made


# DNS servers: before 1.12 an address with a scheme


def _default_outbound(tree: Object) -> str | None:
    """Return the tag of the outbound of flows that no rule takes, unless it goes out directly anyway."""
    outbounds = [outbound for _, outbound in _objects(tree.get("outbounds"))]
    route = tree.get("route")
    final = route.get("final") if isinstance(route, Object) else None
    for index, outbound in enumerate(outbounds):
        tag = outbound.get("tag") or str(index)  # as sing-box names those without tag
        if tag == final or not final:
            return tag if isinstance(tag, str) and outbound.get("type") != "direct" else None
    return None


def _dns(dns: Object, default: str | None, report: Report) -> None:
    ranges = dns.pop("fakeip", None)
    if ranges is not None:
        _told(report, dns.key_at["fakeip"], ("dns",), "fakeip", "1.12", 'ranges of the server of type "fakeip"')
    for index, server in _objects(dns.get("servers")):
        if "address" in server and server.get("type") in (None, "legacy", ""):
            _dns_server(server, ("dns", "servers", index), default, ranges, report)


def _dns_server(server: Object, path: Path, default: str | None, ranges: Any, report: Report) -> None:
    key_at, at = server.key_at["address"], server.value_at["address"]
    address = server["address"]
    if not isinstance(address, str):
        report.error((*path, "address"), "the address of a DNS server is a string in quotation marks")
        return
    try:
        new = _typed(address)
    except ValueError as error:
        report.error((*path, "address"), str(error))
        new = {"type": "local"}  # so that nothing more is said of it
    server.pop("address")
    if new["type"] == "fakeip" and isinstance(ranges, Object):
        new |= {key: ranges[key] for key in ("inet4_range", "inet6_range") if key in ranges}
    for old, key in (("address_resolver", "domain_resolver"), ("address_strategy", "")):
        if old in server:
            value = server.pop(old)
            if key:
                server.put(key, value, key_at=server.key_at[old], value_at=server.value_at[old])
    server.pop("address_fallback_delay", None)
    if "detour" not in server and "server" in new and default is not None:
        new["detour"] = default
    for key, value in new.items():
        server.put(key, value, key_at=key_at, value_at=at)
    shown = ", ".join(f'"{key}": {_json(value)}' for key, value in new.items())
    _told(report, key_at, path, "address", "1.12", f"{{{shown}}}")


def _json(value: str | int) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


_RCODES = {
    "success": "NOERROR", "format_error": "FORMERR", "server_failure": "SERVFAIL", "name_error": "NXDOMAIN",
    "not_implemented": "NOTIMP", "refused": "REFUSED",
}  # fmt: skip


def _typed(address: str) -> dict[str, str | int]:
    """Return the new form of a DNS server's old address. Raises ValueError."""
    if address in ("local", "fakeip"):
        return {"type": address}
    if "://" not in address:
        try:
            ip_address(address.strip("[]"))
            return {"type": "udp", "server": address.strip("[]")}
        except ValueError:
            address = f"udp://{address}"
    try:
        parts = urlsplit(address)
    except ValueError:
        raise ValueError(
            f"{address!r} is no DNS server: an IPv6 address stands in brackets, as in udp://[2001:db8::1]"
        ) from None
    scheme = parts.scheme.lower()
    if scheme == "rcode":
        rcode = _RCODES.get(parts.netloc)
        if rcode is None:
            raise ValueError(f"{address!r} is not known; known: {', '.join(f'rcode://{name}' for name in _RCODES)}")
        return {"type": "rcode", "rcode": rcode}
    if scheme == "dhcp":
        return {"type": "dhcp"}
    if scheme not in ("udp", "tcp", "tls", "https", "quic", "h3"):
        raise ValueError(f"{address!r} is no DNS server: write one such as udp://8.8.8.8, tls://1.1.1.1 or local")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ValueError(f"{address!r} is no DNS server: write one such as udp://8.8.8.8, tls://1.1.1.1 or local")
    new: dict[str, str | int] = {"type": scheme, "server": host}
    if port is not None:
        new["server_port"] = port
    if scheme in ("https", "h3") and parts.path not in ("", "/dns-query"):
        new["path"] = parts.path
    return new


# Rules


def migrate_rules(rules: Any, path: Path, report: Report) -> None:
    """Rewrite the rules of a list, and those within logical ones."""
    for index, rule in _objects(rules):
        here = (*path, index)
        _networks(rule, here, report)
        _geoip(rule, here, report)
        if "rule_set_ipcidr_match_source" in rule:
            old, new = "rule_set_ipcidr_match_source", "rule_set_ip_cidr_match_source"
            _rename(rule, old, new, lambda value: value)
            _told(report, rule.key_at[new], here, old, "1.10", f'"{new}"')
        if isinstance(rule.get("rules"), Array):
            migrate_rules(rule["rules"], (*here, "rules"), report)


def _networks(rule: Object, path: Path, report: Report) -> None:
    """`"tcp,udp"` is Xray's form; sing-box takes it for one network of that name, which no flow has."""
    value = rule.get("network")
    if isinstance(value, str) and "," in value:
        at = rule.value_at["network"]
        names = Array(at)
        for name in value.split(","):
            names.add(name.strip(), at)
        rule["network"] = names
        listed = ", ".join(f'"{name}"' for name in names)
        report.warning(
            (*path, "network"),
            f'"{value}" in one string is a network that sing-box never finds: read as meant, [{listed}]',
        )


_GEOIP = {"geoip": "ip_is_private", "source_geoip": "source_ip_is_private"}


def _geoip(rule: Object, path: Path, report: Report) -> None:
    for old, new in _GEOIP.items():
        value = rule.get(old)
        codes = [value] if isinstance(value, str) else value
        if not isinstance(codes, list) or "private" not in codes:
            continue
        key_at, at = rule.key_at[old], rule.value_at[old]
        rest = Array(at)
        for code in codes:
            if code != "private":
                rest.add(code, at)
        rule.pop(old)
        if rest:
            rule.put(old, rest, key_at=key_at, value_at=at)
        rule.put(new, True, key_at=key_at, value_at=at)
        report.problems.warning(
            key_at, f'"{old}": "private" is the form before sing-box 1.12: read as "{new}": true', path
        )


def _rename(where: Object, old: str, new: str, change: Callable[[Any], Any]) -> None:
    where.put(new, change(where.pop(old)), key_at=where.key_at[old], value_at=where.value_at[old])


# Cache file: before 1.8 keys of the Clash API


def _clash_api(experimental: Object, report: Report) -> None:
    clash_api = experimental.get("clash_api")
    if not isinstance(clash_api, Object):
        return
    cache = experimental.get("cache_file")
    for old, new in (("cache_file", "path"), ("cache_id", "cache_id"), ("store_fakeip", "store_fakeip"),
                     ("store_selected", ""), ("store_mode", "")):  # fmt: skip
        if old not in clash_api:
            continue
        key_at, at = clash_api.key_at[old], clash_api.value_at[old]
        value = clash_api.pop(old)
        if not isinstance(cache, Object):
            cache = Object(key_at)
            cache.put("enabled", True, key_at=key_at, value_at=key_at)
            experimental.put("cache_file", cache, key_at=key_at, value_at=key_at)
        if new:
            cache.put(new, value, key_at=key_at, value_at=at)
        told = f'"{new}" of experimental.cache_file' if new else '"enabled" of experimental.cache_file'
        _told(report, key_at, ("experimental", "clash_api"), old, "1.8", told)
