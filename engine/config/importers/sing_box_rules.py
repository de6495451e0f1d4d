"""What a rule, a DNS server or a tag of sing-box's file becomes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.config.decode import decode, fields_of
from engine.config.dialect import Array, Object
from engine.config.fields import Ignored, Required, Unsupported
from engine.config.importers.draft import Draft, Target
from engine.config.importers.tree import each, text_of
from engine.config.options.dns import DNS_SERVER
from engine.config.options.rule import DNS_RULE, ROUTE_RULE
from engine.config.problems import Problems, Report

__all__ = ["HIDE", "Context", "clean_tag", "import_rules", "kept_keys", "objects"]

HIDE = "§hide§"
"""Mark of Hiddify in the tags of outbounds that its window does not show."""


def objects(items: Any) -> Iterator[Object]:
    """Yield the objects of a list."""
    if isinstance(items, Array):
        yield from (item for item in items if isinstance(item, Object))


def clean_tag(tag: str) -> str:
    """Return a tag without Hiddify's mark."""
    return tag.replace(HIDE, "").strip()


@dataclass
class Context:
    """The file, as far as rules refer to it."""

    tree: Object
    draft: Draft
    outbounds: dict[str, Object]
    foreign: set[str]
    """Tags of outbounds that only sing-box speaks."""
    tun: Object | None
    dns_tags: set[str] = field(default_factory=set)
    rule_sets: set[str] = field(default_factory=set)


def import_rules(context: Context) -> None:
    """Carry rule-sets, DNS and rules over."""
    importer = _Rules(context)
    importer.take_rule_sets()
    importer.take_dns()
    importer.take_rules()


def kept_keys(draft: Draft, tree: Object, struct: Any, what: str) -> dict[str, Any]:
    """Return the keys of an object that mean something here and can be read; the others are told."""
    problems = Problems(draft.problems.sources)
    report = Report(problems, tree)
    options = decode(struct, tree, (), report)
    fields = fields_of(struct)
    wrong = {error.at for error in problems.errors}
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        field = fields.get(key)
        marks = () if field is None else field.marks
        if field is None or any(isinstance(mark, Unsupported) for mark in marks):
            if value:
                draft.leave(tree.key_at[key], f'"{key}" of the {what} is not carried over')
        elif any(isinstance(mark, Ignored) for mark in marks) or value is None:
            continue
        elif {tree.value_at[key], tree.key_at[key]} & wrong and not _partly(value, options, field.name):
            draft.leave(
                tree.value_at[key],
                next(e.sentence for e in problems.errors if e.at in (tree.value_at[key], tree.key_at[key])),
            )
        else:
            kept[key] = value
    return kept


def _partly(value: Any, options: Any, name: str) -> bool:
    return isinstance(value, Array) and bool(getattr(options, name, None))


class _Rules:
    def __init__(self, context: Context) -> None:
        self.context = context

    def _target(self, tag: str) -> Target | str:
        """Return where a tag leads: one of ours by its tag, or proxy, reject, hijack-dns."""
        kind = text_of(self.context.outbounds.get(tag), "type")
        if kind == "block":
            return "reject"
        if kind == "dns":
            return "hijack-dns"
        if tag in self.context.foreign or tag not in self.context.outbounds:
            return "proxy" if self.context.draft.has_core else self._first()
        return clean_tag(tag)

    def _first(self) -> str:
        return next((outbound["tag"] for outbound in self.context.draft.outbounds), "direct")

    def take_rule_sets(self) -> None:
        for rule_set in objects(
            (self.context.tree.get("route") or Object()).get("rule_set")
            if isinstance(self.context.tree.get("route"), Object)
            else None
        ):
            tag, kind = text_of(rule_set, "tag"), text_of(rule_set, "type") or "inline"
            made = {key: value for key, value in rule_set.items() if value is not None}
            if kind == "local":
                path = (self.context.draft.file.parent / text_of(rule_set, "path")).resolve()
                if not path.is_file():
                    self.context.draft.leave(
                        rule_set.at, f"the rule-set {tag!r} is not carried over: {path} is not there"
                    )
                    continue
                made["path"] = str(path)
            elif kind != "inline":
                self.context.draft.leave(
                    rule_set.at, f"the rule-set {tag!r} is not carried over: its file must be fetched first"
                )
                continue
            self.context.rule_sets.add(tag)
            self.context.draft.rule_sets.append(made)

    def take_rules(self) -> None:
        tun = self.context.tun
        if tun is not None and tun.get("sniff"):
            self.context.draft.step(
                {"action": "sniff", **({"override_destination": True} if tun.get("sniff_override_destination") else {})}
            )
        if tun is not None and tun.get("domain_strategy"):
            self.context.draft.step({"action": "resolve", "strategy": tun["domain_strategy"]})
        route = self.context.tree.get("route")
        route = route if isinstance(route, Object) else Object(self.context.tree.at)
        for rule in objects(route.get("rules")):
            self._rule(rule)
        final = text_of(route, "final") or next(iter(self.context.outbounds), "direct")
        target = self._target(final)
        if target in ("proxy", "direct", "reject"):
            self.context.draft.end(target, route.value_at.get("final", route.at))  # type: ignore[arg-type]
        else:
            self.context.draft.final = target
        for key in ("default_interface", "default_mark"):
            if route.get(key) is not None:
                self.context.draft.leave(
                    route.key_at[key], f'"{key}" is not carried over: the engine finds the interface itself'
                )

    def _rule(self, rule: Object) -> None:
        tag = text_of(rule, "outbound")
        target = self._target(tag) if tag else "proxy" if rule.get("action") in (None, "route") else "reject"
        place: Target = "direct" if self._is_direct(tag) else "reject" if target == "reject" else "proxy"
        own_tag = text_of(self.context.tun, "tag") if self.context.tun is not None else "tun-in"
        inbounds = {str(item) for item, _ in each(rule, "inbound", split=False)}
        if inbounds and own_tag not in inbounds:
            self.context.draft.leave(
                rule.at,
                f"the rule about the inbound {', '.join(sorted(inbounds))} is not carried over: our flows come by another",
            )
            return
        if rule.get("clash_mode") is not None:
            self.context.draft.leave(
                rule.at, "the rule is not carried over: it holds only in another mode (clash_mode)"
            )
            return
        why = self._why_not(rule)
        if why:
            self.context.draft.gap(place, rule.at, why)
            return
        made = {key: value for key, value in rule.items() if value is not None and key not in ("inbound", "outbound")}
        if target == "hijack-dns":
            self.context.draft.step(
                {**{key: value for key, value in made.items() if key != "action"}, "action": "hijack-dns"}
            )
        elif not tag or text_of(rule, "action") not in ("", "route", "bypass"):
            self.context.draft.step({**made, "outbound": target} if tag else made)
        elif target in ("proxy", "direct", "reject"):
            conditions = {key: value for key, value in made.items() if key != "action"}
            self.context.draft.rule(conditions, target, rule.at, always=set(conditions) <= {"ip_is_private"})  # type: ignore[arg-type]
        else:
            self.context.draft.step({**made, "outbound": target})

    def _is_direct(self, tag: str) -> bool:
        return text_of(self.context.outbounds.get(tag), "type") == "direct"

    def _why_not(self, rule: Object) -> str:
        """Return why a rule cannot be carried over; empty when it can."""
        problems = Problems(self.context.draft.problems.sources)
        wrapper = Array(rule.at)
        wrapper.add(rule, rule.at)
        holder = Object(rule.at)
        holder.put("rules", wrapper, key_at=rule.at, value_at=rule.at)
        struct = ROUTE_RULE.structs.get(text_of(rule, "type") or "default")
        if struct is None:
            return f"type {text_of(rule, 'type')!r} is not known here"
        decode(struct, rule, (), Report(problems, rule))
        if problems.errors:
            return problems.errors[0].sentence
        missing = sorted(tag for tag in self._sets_of(rule) if tag not in self.context.rule_sets)
        if missing:
            return f"it uses the rule-set {missing[0]!r}"
        if text_of(rule, "server") and text_of(rule, "server") not in self.context.dns_tags:
            return f"there is no DNS server {text_of(rule, 'server')!r}"
        if not text_of(rule, "outbound") and text_of(rule, "action") in ("", "route", "bypass"):
            return "it names no outbound"
        return ""

    def _sets_of(self, rule: Object) -> set[str]:
        found = {str(tag) for tag, _ in each(rule, "rule_set", split=False)}
        for part in objects(rule.get("rules")):
            found |= self._sets_of(part)
        return found

    def take_dns(self) -> None:
        dns = self.context.tree.get("dns")
        if not isinstance(dns, Object):
            return
        servers = [server for server in map(self._dns_server, objects(dns.get("servers"))) if server is not None]
        self.context.dns_tags = {server["tag"] for server in servers}
        rules = [rule for rule in map(self._dns_rule, objects(dns.get("rules"))) if rule is not None]
        usable = [server["tag"] for server in servers if server["type"] not in ("fakeip", "rcode")]
        if not usable:
            if servers or dns.get("servers"):
                self.context.draft.leave(
                    dns.at, "no DNS server could be carried over: each question goes to whom it is asked"
                )
            return
        final = text_of(dns, "final")
        made: dict[str, Any] = {"servers": servers, "rules": rules, "final": final if final in usable else usable[0]}
        for key in (
            "strategy",
            "disable_cache",
            "disable_expire",
            "cache_capacity",
            "reverse_mapping",
            "client_subnet",
        ):
            if dns.get(key):
                made[key] = dns[key]
        self.context.draft.dns = made

    def _dns_server(self, server: Object) -> dict[str, Any] | None:
        kind = text_of(server, "type")
        struct = DNS_SERVER.structs.get(kind)
        if struct is None:
            self.context.draft.leave(
                server.at,
                f"the DNS server {text_of(server, 'tag')!r} is not carried over: its type is {kind or 'not named'}",
            )
            return None
        made = {
            **kept_keys(self.context.draft, server, struct, "DNS server"),
            "type": kind,
            "tag": text_of(server, "tag") or str(len(self.context.dns_tags)),
        }
        required = [f.key for f in fields_of(struct).values() if any(isinstance(m, Required) for m in f.marks)]
        if any(not made.get(key) for key in required):
            self.context.draft.leave(
                server.at, f"the DNS server {made['tag']!r} is not carried over: it names no server"
            )
            return None
        if made.get("detour"):
            target = self._target(str(made["detour"]))
            made["detour"] = target
            if target in ("reject", "hijack-dns", "direct"):
                del made["detour"]
        made.pop("domain_resolver", None)
        return made

    def _dns_rule(self, rule: Object) -> dict[str, Any] | None:
        server = text_of(rule, "server")
        if "outbound" in rule:  # who finds the servers of outbounds: default_domain_resolver today
            if server in self.context.dns_tags:
                self.context.draft.resolver = server
            return None
        problems = Problems(self.context.draft.problems.sources)
        struct = DNS_RULE.structs.get(text_of(rule, "type") or "default")
        if struct is not None:
            decode(struct, rule, (), Report(problems, rule))
        missing = sorted(tag for tag in self._sets_of(rule) if tag not in self.context.rule_sets)
        why = ""
        if problems.errors:
            why = problems.errors[0].sentence
        elif missing:
            why = f"it uses the rule-set {missing[0]!r}"
        elif rule.get("clash_mode") is not None:
            why = "clash_mode"
        elif rule.get("ip_cidr") or rule.get("ip_is_private"):
            why = "ip_cidr and ip_is_private are about the answer"
        elif server not in self.context.dns_tags and text_of(rule, "action") in ("", "route"):
            why = f"its server {server!r} is not"
        elif rule.get("inbound"):
            why = "it names an inbound"
        if why or struct is None:
            self.context.draft.leave(
                rule.at, f"the DNS rule is not carried over: {why or 'its type is not known here'}"
            )
            return None
        return {key: value for key, value in rule.items() if value is not None}
