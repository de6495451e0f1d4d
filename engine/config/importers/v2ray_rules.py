"""Rules of V2Ray and Xray -> ours. Those by geosite and geoip stay with V2Ray, which has the databases."""

from ipaddress import ip_network
from typing import Any

from engine.config.dialect import Object
from engine.config.importers.draft import Draft, Target
from engine.config.importers.tree import each, text_of, whole_number
from shared.rules.regex import compile_regex

__all__ = ["import_domains", "import_rules"]

_CGNAT = "100.64.0.0/10"
"""Part of geoip:private, and not of ip_is_private (RFC 6598)."""
_UNSUPPORTED = (
    "protocol",
    "attrs",
    "localip",
    "localport",
    "vlessroute",
    "useragent",
    "user",
    "useremail",
    "sourcegeoip",
    "webhook",
)
"""Conditions that only V2Ray can judge."""
_PLAIN = {
    "type", "ruletag", "outboundtag", "balancertag", "domainmatcher", "domain", "domains", "ip", "ips", "port", "portlist",
    "sourceport", "sourceportlist", "network", "networks", "source", "sourceip", "inboundtag", "process", "enabled", "tag",
    "balancingtag", "geodomain", "geoip", "name",
}  # fmt: skip


class _NotCarried(Exception):
    """A condition that cannot be carried over; the text says which."""


def import_rules(tree: Object, tags: set[str], targets: dict[str, Target], draft: Draft) -> None:
    """Carry the rules over, in their order. `tags`: of the inbound that our flows come to; `targets`: of outbounds."""
    routing = tree.get("routing") if isinstance(tree.get("routing"), Object) else tree.get("router")
    rules: list[tuple[Any, int]] = []
    if isinstance(routing, Object):
        settings = routing.get("settings")
        rules = list(each(routing, "rules", "rule")) or (
            list(each(settings, "rules")) if isinstance(settings, Object) else []
        )
        for key in ("balancers", "balancingrule"):
            if routing.get(key):
                draft.leave(routing.key_at[key], f'"{key}" is not carried over: V2Ray itself balances')
    for rule, at in rules:
        if isinstance(rule, Object) and rule.get("enabled", True) is not False:
            _rule(rule, at, tags, targets, draft)
    draft.end(targets.get("", "proxy"), tree.at)


def _rule(rule: Object, at: int, tags: set[str], targets: dict[str, Target], draft: Draft) -> None:
    inbound_tags = {str(tag) for tag, _ in each(rule, "inboundtag")}
    if inbound_tags and not inbound_tags & tags:
        draft.leave(
            at,
            f"the rule about the inbound {', '.join(sorted(inbound_tags))} is not carried over: our flows come by another",
        )
        return
    balanced = text_of(rule, "balancertag") or text_of(rule, "balancingtag")
    tag = text_of(rule, "outboundtag") or ("" if balanced else text_of(rule, "tag"))
    target: Target = "proxy" if balanced else targets.get(tag, "proxy")
    if not balanced and tag not in targets:
        draft.leave(
            rule.value_at.get("outboundtag", at), f"no outbound has the tag {tag!r}: the rule leads to the local proxy"
        )
    try:
        conditions = _conditions(rule, draft)
    except _NotCarried as error:
        draft.gap(target, at, str(error))
        return
    if not conditions:
        if target != "proxy" and not inbound_tags:
            draft.rule({}, target, at)
        return
    private = set(conditions) <= {"ip_is_private", "ip_cidr"} and conditions.get("ip_cidr", [_CGNAT]) == [_CGNAT]
    draft.rule(conditions, target, at, always=private)


def _conditions(rule: Object, draft: Draft) -> dict[str, Any]:
    """Return conditions of ours. Raises _NotCarried when one of them cannot be."""
    for key in rule:
        if key in _UNSUPPORTED:
            raise _NotCarried(f'the condition "{key}"')
        if key not in _PLAIN:
            raise _NotCarried(f'"{key}", which is not known here')
    names = _names(rule)
    addresses = _addresses(rule)
    found: dict[str, Any] = {}
    found |= _ports(rule, "port", "portlist", name="port")
    found |= _ports(rule, "sourceport", "sourceportlist", name="source_port")
    networks = sorted({str(network).lower() for network, _ in each(rule, "network", "networks")} & {"tcp", "udp"})
    if len(networks) == 1:
        found["network"] = networks
    sources = [_prefix(str(text)) for text, _ in each(rule, "source", "sourceip")]
    if sources:
        found["source_ip_cidr"] = sources
    found |= _processes(rule)
    if names and addresses:  # both must hold, whereas in a rule of ours they are alternatives
        return {"type": "logical", "mode": "and", "rules": [names, {**addresses, **found}]}
    return {**names, **addresses, **found}


def _names(rule: Object) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for key in ("domain", "domains"):
        for item, _ in each(rule, key):
            kind, name = _domain(item)
            found.setdefault(kind, []).append(name)
    for item, _ in each(rule, "geodomain"):
        codes = text_of(item, "code")
        inner = list(each(item, "domain")) if isinstance(item, Object) else []
        if codes or not inner:
            raise _NotCarried(f"geosite:{codes}")
        for domain, _ in inner:
            kind, name = _domain(domain)
            found.setdefault(kind, []).append(name)
    return dict(found)


_KINDS = {
    "full": "domain", "domain": "domain_suffix", "keyword": "domain_keyword", "regexp": "domain_regex",
    "plain": "domain_keyword", "regex": "domain_regex", "rootdomain": "domain_suffix", "subdomain": "domain_suffix",
}  # fmt: skip


def _domain(item: Any) -> tuple[str, str]:
    """Return the field and the text of a domain. Raises _NotCarried."""
    if isinstance(item, Object):  # jsonv5: {"type": "Full", "value": "example.com"}
        prefix, text = text_of(item, "type").lower() or "plain", text_of(item, "value") or text_of(item, "domain")
    else:
        prefix, colon, text = str(item).partition(":")
        if not colon:
            prefix, text = "keyword", str(item)  # a bare name is any part of a name
    prefix = prefix.lower()
    if prefix == "dotless":
        return "domain_regex", f"^[^.]*{text.replace('.', '')}[^.]*$"
    kind = _KINDS.get(prefix)
    if kind is None or not text:
        raise _NotCarried(str(item) if not isinstance(item, Object) else prefix)
    if kind == "domain_regex":
        try:
            compile_regex(text)
        except ValueError as error:
            raise _NotCarried(str(error)) from None
        return kind, text
    return kind, text.lower()


def import_domains(tree: Object, draft: Draft, *keys: str) -> dict[str, Any]:
    """Return the names of a list as conditions; those that cannot be carried over are told one by one."""
    found: dict[str, list[str]] = {}
    for item, at in each(tree, *keys):
        try:
            kind, name = _domain(item)
        except _NotCarried as error:
            draft.leave(at, f"{error} is not carried over: V2Ray has the database")
            continue
        found.setdefault(kind, []).append(name)
    return dict(found)


def _addresses(rule: Object) -> dict[str, Any]:
    cidrs: list[str] = []
    private = False
    for item, _ in [*each(rule, "ip"), *each(rule, "ips")]:
        text = str(item).strip()
        if text.lower() == "geoip:private":
            private = True
        else:
            cidrs.append(_prefix(text))
    for item, _ in each(rule, "geoip"):
        if text_of(item, "code").lower() == "private" and not item.get("inversematch"):
            private = True
            continue
        inner = list(each(item, "cidr")) if isinstance(item, Object) else []
        if not inner or item.get("inversematch"):
            raise _NotCarried(f"geoip:{text_of(item, 'code')}")
        cidrs += [_prefix(f"{text_of(cidr, 'ipaddr')}/{text_of(cidr, 'prefix')}") for cidr, _ in inner]
    found: dict[str, Any] = {}
    if private:
        found["ip_is_private"] = True
        cidrs.append(_CGNAT)
    if cidrs:
        found["ip_cidr"] = cidrs
    return found


def _prefix(text: str) -> str:
    try:
        return str(ip_network(text.strip("[]"), strict=False))
    except ValueError:
        raise _NotCarried(text) from None


def _ports(rule: Object, *keys: str, name: str) -> dict[str, Any]:
    single, ranges = [], []
    for item, _ in each(rule, *keys):
        first, dash, last = str(item).strip().partition("-")
        low, high = whole_number(first), whole_number(last) if dash else whole_number(first)
        if low is None or high is None or not 0 <= low <= high <= 65535:
            raise _NotCarried(f"the port {item!r}")
        if dash and low != high:
            ranges.append(f"{low}:{high}")
        else:
            single.append(low)
    return {**({name: single} if single else {}), **({f"{name}_range": ranges} if ranges else {})}


def _processes(rule: Object) -> dict[str, Any]:
    names, paths, patterns = [], [], []
    for item, _ in each(rule, "process"):
        text = str(item)
        if text in ("self/", "xray/", "v2ray/"):
            raise _NotCarried(f"the process {text!r}")
        if text.endswith("/"):
            patterns.append(f"^{_quoted(text)}")
        elif text.startswith("/"):
            paths.append(text)
        else:
            names.append(text)
    kinds = [
        (key, value)
        for key, value in (("process_name", names), ("process_path", paths), ("process_path_regex", patterns))
        if value
    ]
    if len(kinds) > 1:  # of these fields all must hold
        raise _NotCarried("names and paths of processes in one rule")
    return dict(kinds)


def _quoted(text: str) -> str:
    """Return a text as a regular expression that matches it alone."""
    return "".join(character if character.isalnum() or character in "/_-" else f"\\{character}" for character in text)
