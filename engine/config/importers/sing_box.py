"""sing-box of any version, and Hiddify, whose files are sing-box's with more kinds of outbounds and `§hide§` in tags.

Where the file has outbounds that only sing-box speaks (vmess, hysteria2, ...), sing-box goes on running, and all of them become
its local port. Where it has none, as the article's, the engine needs no sing-box at all: the file is brought to the form of
today, and what cannot be used is left out and told.
"""

from engine.config.decode import fields_of
from engine.config.dialect import Object
from engine.config.fields import Required
from engine.config.importers.draft import Draft
from engine.config.importers.sing_box_rules import HIDE, Context, clean_tag, import_rules, kept_keys, objects
from engine.config.importers.tree import each, text_of, whole_number
from engine.config.legacy import migrate
from engine.config.options.inbound import TunOptions
from engine.config.options.outbound import OUTBOUND
from engine.config.problems import Report

__all__ = ["import_sing_box"]

HIDDIFY_PORT = 12334
"""Where Hiddify's mixed port is since 2024-07."""
_GROUPS = ("selector", "urltest", "fallback")
_TOP = {"log", "dns", "inbounds", "outbounds", "route", "experimental", "engine", "endpoints", "$schema"}
_LEGACY_SNIFF = (
    "sniff",
    "sniff_override_destination",
    "sniff_timeout",
    "domain_strategy",
    "udp_disable_domain_unmapping",
)


def import_sing_box(tree: Object, draft: Draft) -> None:
    """Fill in a draft from a tree with keys in lower case."""
    outbounds = list(objects(tree.get("outbounds")))
    if not outbounds and "inbounds" not in tree:
        draft.refuse(tree.at, "this is no configuration of sing-box: it has neither inbounds nor outbounds")
        return
    if outbounds and all("protocol" in outbound and "type" not in outbound for outbound in outbounds):
        draft.refuse(tree.at, "this is a configuration of V2Ray: use `engine import v2ray`")
        return
    migrate(tree, Report(draft.problems, tree))
    _Import(tree, outbounds, draft).run()


class _Import:
    def __init__(self, tree: Object, outbounds: list[Object], draft: Draft) -> None:
        self.tree = tree
        self.draft = draft
        self.outbounds = {text_of(outbound, "tag") or str(index): outbound for index, outbound in enumerate(outbounds)}
        self.foreign = {tag for tag, outbound in self.outbounds.items() if not self._is_ours(tag, set())}
        endpoints = list(objects(tree.get("endpoints")))
        self.foreign |= {text_of(endpoint, "tag") for endpoint in endpoints}
        self.draft.has_core = bool(self.foreign)
        self.tun: Object | None = None

    def _is_ours(self, tag: str, seen: set[str]) -> bool:
        """Whether an outbound needs no sing-box: of groups, whether no member does."""
        outbound = self.outbounds.get(tag)
        if outbound is None or tag in seen:
            return True
        kind = text_of(outbound, "type")
        if kind in _GROUPS:
            return all(
                self._is_ours(str(member), seen | {tag}) for member, _ in each(outbound, "outbounds", split=False)
            )
        return kind in ("socks", "http", "direct", "block", "dns") and not outbound.get("detour")

    def run(self) -> None:
        self._log()
        self._inbounds()
        if self.draft.problems.errors:
            return
        self._outbounds()
        import_rules(Context(self.tree, self.draft, self.outbounds, self.foreign, self.tun))
        self._experimental()
        for key in self.tree:
            if key not in _TOP:
                self.draft.leave(self.tree.key_at[key], f'"{key}" is not carried over')

    def _log(self) -> None:
        log = self.tree.get("log")
        if isinstance(log, Object) and text_of(log, "level") in (
            "trace",
            "debug",
            "info",
            "warn",
            "error",
            "fatal",
            "panic",
        ):
            self.draft.log_level = text_of(log, "level")

    # Inbounds: the tun is ours, a local port is sing-box's

    def _inbounds(self) -> None:
        doors = []
        for inbound, at in each(self.tree, "inbounds", split=False):
            if not isinstance(inbound, Object):
                continue
            kind = text_of(inbound, "type")
            if kind == "tun" and self.tun is None:
                self._take_tun(inbound)
            elif kind in ("mixed", "socks", "http"):
                doors.append((inbound, at))
            else:
                self.draft.leave(at, f"the inbound of type {kind!r} is not carried over")
        if not self.foreign:
            for _, at in doors:
                self.draft.leave(at, "this inbound is not carried over: the engine listens on no port")
            return
        self._take_door(doors)

    def _take_door(self, doors: list[tuple[Object, int]]) -> None:
        doors.sort(key=lambda door: text_of(door[0], "type") == "http")
        for inbound, at in doors[:1]:
            port = whole_number(inbound.get("listen_port"))
            if port is None or not 0 < port < 65536:
                self.draft.refuse(
                    inbound.value_at.get("listen_port", at), "the local inbound has no listen_port that could be used"
                )
                return
            users = list(objects(inbound.get("users")))
            user = (text_of(users[0], "username"), text_of(users[0], "password")) if users else ("", "")
            listen = text_of(inbound, "listen").strip("[]")
            server = "127.0.0.1" if listen in ("", "0.0.0.0", "::", "localhost") else listen
            self.draft.proxy("http" if text_of(inbound, "type") == "http" else "socks", server, port, *user)
        for _, at in doors[1:]:
            self.draft.leave(at, "this inbound is not used: it is another door to the same proxy")
        if doors:
            return
        first = min(
            (self.outbounds[tag] for tag in self.foreign if tag in self.outbounds),
            key=lambda outbound: outbound.at,
            default=self.tree,
        )
        if any(HIDE in tag for tag in self.outbounds):
            self.draft.proxy("socks", "127.0.0.1", HIDDIFY_PORT)
            self.draft.leave(first.at, f"the file names no local port: Hiddify's own, {HIDDIFY_PORT}, is taken")
            return
        kind = text_of(first, "type")
        self.draft.refuse(
            first.at,
            f"only sing-box speaks {kind}, and the file has no inbound of type mixed or socks by which it could be reached: add "
            '{"type": "mixed", "listen": "127.0.0.1", "listen_port": 2080} to the file that sing-box runs with',
        )

    def _take_tun(self, inbound: Object) -> None:
        self.tun = inbound
        if self.foreign:
            self.draft.leave(
                inbound.at,
                "take this tun out of the file that sing-box runs with: two of them would lead each other's traffic in a circle",
            )
        kept = kept_keys(self.draft, inbound, TunOptions, "tun")
        for key in _LEGACY_SNIFF:
            kept.pop(key, None)
        kept.setdefault("tag", "tun-in")
        if kept.get("address"):
            self.draft.tun = {"type": "tun", **{key: value for key, value in kept.items() if key != "type"}}

    # Outbounds

    def _outbounds(self) -> None:
        for tag, outbound in self.outbounds.items():
            kind = text_of(outbound, "type")
            if tag in self.foreign:
                for server, at in each(outbound, "server"):
                    self.draft.bypass(str(server), at)
                continue
            if kind in ("block", "dns") or (
                kind == "direct" and clean_tag(tag) == "direct" and not set(outbound) - {"type", "tag"}
            ):
                continue
            struct = OUTBOUND.structs[kind]
            made = {**kept_keys(self.draft, outbound, struct, "outbound"), "type": kind, "tag": clean_tag(tag)}
            if kind in _GROUPS:
                made["outbounds"] = [
                    clean_tag(str(member)) for member in made.get("outbounds", ()) if str(member) in self.outbounds
                ]
                if made.get("default") is not None:
                    made["default"] = clean_tag(str(made["default"]))
            missing = [
                f.key
                for f in fields_of(struct).values()
                if any(isinstance(m, Required) for m in f.marks) and not made.get(f.key)
            ]
            if missing or (kind in _GROUPS and not made["outbounds"]):
                self.draft.leave(
                    outbound.at,
                    f"the outbound {clean_tag(tag)!r} is not carried over: {', '.join(missing) or 'it has no member'}",
                )
                self.foreign.add(tag)
                continue
            self.draft.outbounds.append(made)
        for endpoint in objects(self.tree.get("endpoints")):
            for peer in objects(endpoint.get("peers")):
                self.draft.bypass(text_of(peer, "address"), peer.at)

    def _experimental(self) -> None:
        experimental = self.tree.get("experimental")
        if not isinstance(experimental, Object):
            return
        for key, value in experimental.items():
            if key == "cache_file" and isinstance(value, Object) and value.get("enabled"):
                self.draft.experimental["cache_file"] = {
                    "enabled": True,
                    **({"store_fakeip": True} if value.get("store_fakeip") else {}),
                }
            elif key == "clash_api" and isinstance(value, Object) and not self.draft.has_core:
                kept = {
                    name: value[name] for name in ("external_controller", "secret", "external_ui") if value.get(name)
                }
                if kept:
                    self.draft.experimental["clash_api"] = kept
            elif value:
                self.draft.leave(experimental.key_at[key], f'"{key}" is not carried over')
