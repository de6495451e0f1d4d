"""A configuration in the making: the local proxy, its servers, the rules that carry over, and DNS.

Rules keep their order. One that cannot be carried over leaves a gap, and what comes after must not take flows that it would have
taken: the other program still decides about those, as long as they reach it. So after a gap only rules to the same target, and
those that lead to the other program itself, are carried over. Rules about private addresses are the exception.
"""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from engine.config.names import looks_masked
from engine.config.problems import Problems

__all__ = ["Draft", "Target"]

_NAME = re.compile(r"(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?")
Target = Literal["proxy", "direct", "reject", "drop"]
"""Where a rule leads; `proxy`: to the other program, which decides."""

TUN = {
    "type": "tun",
    "tag": "tun-in",
    "address": ["198.18.0.1/30", "fdfe:dcba:9876::1/126"],
    "auto_route": True,
    "strict_route": True,
}
FAKEIP_TUN_ADDRESS = ["172.19.0.1/30", "fdfe:dcba:9876::1/126"]
"""Where 198.18.0.0/15 is taken by fake addresses."""


class Draft:
    """What an importer fills in."""

    def __init__(self, problems: Problems, file: Path) -> None:
        self.problems = problems
        self.file = file
        self.outbounds: list[dict[str, Any]] = []
        self.tun: dict[str, Any] = dict(TUN)
        self.dns: dict[str, Any] | None = None
        self.final = "proxy"
        self.has_core = True
        """The other program goes on running and decides about what reaches it; False: the engine does all of it alone."""
        self.log_level: str | None = None
        self.resolver: str | None = None
        """Tag of the DNS server that finds the servers of outbounds."""
        self.rule_sets: list[dict[str, Any]] = []
        self.experimental: dict[str, Any] = {}
        self._rules: list[dict[str, Any]] = []
        self._gaps: list[tuple[Target, str]] = []
        self._addresses: list[str] = []
        self._names: list[str] = []

    def leave(self, at: int, sentence: str) -> None:
        """Tell of something that is not carried over."""
        self.problems.warning(at, sentence)

    def refuse(self, at: int, sentence: str) -> None:
        """Tell why nothing can be made of the file."""
        self.problems.error(at, sentence)

    def proxy(
        self, kind: str, server: str, port: int, username: str = "", password: str = "", tag: str = "proxy"
    ) -> None:
        """Name the local proxy: `kind` is socks or http."""
        outbound = {"type": kind, "tag": tag, "server": server, "server_port": port}
        if username:
            outbound |= {"username": username, "password": password}
        self.outbounds.append(outbound)

    def bypass(self, server: str, at: int) -> None:
        """Keep a server that the other program connects to out of the tun."""
        server = server.strip("[]")
        if not server:
            return
        try:
            address = ip_address(server)
        except ValueError:
            if looks_masked(server):
                self.leave(at, f"{server!r} is no real address of a server, so that it cannot be kept out of the tun")
            elif server not in self._names and server != "localhost":
                if _NAME.fullmatch(server):
                    self._names.append(server)
                else:
                    self.leave(at, f"{server!r} is no name or address of a server")
            return
        if address.is_loopback or address.is_unspecified:
            return
        prefix = f"{address}/{address.max_prefixlen}"
        if prefix not in self._addresses:
            self._addresses.append(prefix)

    def rule(self, conditions: dict[str, Any], target: Target, at: int, *, always: bool = False) -> None:
        """Carry a rule over. `always`: also after a gap."""
        if not always and target != "proxy":
            for gap_target, place in self._gaps:
                if gap_target != target:
                    self.leave(
                        at,
                        f"not carried over: a rule before it ({place}) could not be; the local proxy decides about both",
                    )
                    return
        action: dict[str, Any] = {"outbound": target} if target in ("proxy", "direct") else {"action": "reject"}
        if target == "drop":
            action["method"] = "drop"
        self._rules.append({**conditions, **action})

    def step(self, rule: dict[str, Any]) -> None:
        """Add a rule that is written out already, as a sniff is."""
        self._rules.append(rule)

    def gap(self, target: Target, at: int, why: str) -> None:
        """Leave a rule out: the other program goes on deciding about its flows."""
        if self.has_core:
            self._gaps.append((target, f"line {self.problems.sources.place(at).line}"))
        self.leave(at, f"{why}: {'left to the local proxy' if self.has_core else 'the rule is left out'}")

    def end(self, target: Target, at: int) -> None:
        """Say where flows go that no rule takes."""
        if target != "proxy" and any(gap != target for gap, _ in self._gaps):
            place = next(place for gap, place in self._gaps if gap != target)
            self.leave(
                at,
                f"what no rule takes goes to the local proxy, which decides, as a rule ({place}) was not carried over",
            )
            target = "proxy"
        if target in ("reject", "drop"):
            self._rules.append({"action": "reject", **({"method": "drop"} if target == "drop" else {})})
            target = "proxy"
        self.final = target

    def config(self) -> dict[str, Any]:
        """Return the whole configuration."""
        made: dict[str, Any] = {}
        if self.log_level is not None:
            made["log"] = {"level": self.log_level}
        rules = [*self._bypass_rules(), *self._rules]
        names = (
            {"reverse_mapping": True}
            if any(map(_asks_for_names, rules)) and not any("sniff" in r.values() for r in rules)
            else {}
        )
        if self.dns is not None or names:
            made["dns"] = {**(self.dns or {}), **names}
        tun = {**self.tun, "route_exclude_address": self._addresses} if self._addresses else self.tun
        made["inbounds"] = [tun]
        direct = {"type": "direct", "tag": "direct"}
        made["outbounds"] = [
            *self.outbounds,
            *([direct] if not any(o["tag"] == "direct" for o in self.outbounds) else []),
        ]
        route: dict[str, Any] = {"rules": rules}
        if self.rule_sets:
            route["rule_set"] = self.rule_sets
        made["route"] = {**route, "final": self.final, "auto_detect_interface": True}
        if self.resolver is not None and self.dns is not None:
            made["route"]["default_domain_resolver"] = self.resolver
        if self.experimental:
            made["experimental"] = self.experimental
        return made

    def _bypass_rules(self) -> list[dict[str, Any]]:
        servers: dict[str, Any] = {}
        if self._addresses:
            servers["ip_cidr"] = self._addresses
        if self._names:
            servers["domain"] = self._names
        return [{**servers, "outbound": "direct"}] if servers else []


def _asks_for_names(rule: dict[str, Any]) -> bool:
    """Whether a rule needs the name of the destination, which the DNS answers tell (dns.reverse_mapping)."""
    return any(key.startswith("domain") for key in rule) or any(map(_asks_for_names, rule.get("rules", ())))
