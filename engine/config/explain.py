"""What the engine would do with a flow: every rule that is tried, why it does not hold, and the one that decides.

The rules are compiled and asked by the very code that the workers use (shared/rules). What a worker learns on the way is
assumed here, and said: a name is known from the first `sniff` on, or at once where DNS answers tell it.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from typing import Literal

import msgspec

from engine.config.build.conditions import NEVER
from engine.config.model import EngineConfig
from engine.config.modes import in_mode
from engine.config.rule_text import action_text, conditions_text
from shared.config import (
    FallbackOutbound,
    HijackDns,
    OutboundConfig,
    ProxyOutbound,
    Reject,
    Resolve,
    Route,
    RouteOptions,
    Rule,
    SelectorOutbound,
    Sniff,
    UrltestOutbound,
)
from shared.process import ProcessInfo
from shared.rules.flow import Flow
from shared.rules.matcher import Compiler, NeedProcess, Step, Trial

__all__ = ["Explanation", "Question", "Tried", "explain"]

SOURCE_PORT = 50000
"""Of the flow that is asked about, where none is said: one of those that the kernel gives to programs."""
_SERVER_SPEAKS_FIRST = frozenset((25, 110, 143, 465, 587, 993, 995))
"""As in workers/relay/router.py."""
_GUESSES = {("tcp", 443): "tls", ("tcp", 80): "http", ("udp", 443): "quic", ("tcp", 22): "ssh", ("udp", 123): "ntp"}
"""What is spoken at a port, as far as nobody says otherwise."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """The flow that is asked about."""

    host: str
    """Name or address of the destination."""
    port: int
    network: Literal["tcp", "udp"] = "tcp"
    source: str | None = None
    """Address; None: the tun's own."""
    process: ProcessInfo = ProcessInfo()
    protocol: str | None = None
    """What sniffing finds; None: what the port suggests."""
    mode: str | None = None
    """Of the Clash API; None: the configuration's."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that was tried."""

    origin: str
    """Where it stands."""
    conditions: str
    """As JSON."""
    action: str
    holds: bool
    reason: str
    """Why it does not hold, or what it did."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    flow: str
    """The flow in one line."""
    notes: tuple[str, ...]
    """What was assumed, and what comes before the rules."""
    tried: tuple[Tried, ...]
    decided_by: str
    """Origin of the rule that decides; empty: none does, so that the default outbound is taken."""
    action: str
    """route, reject, drop or hijack-dns."""
    outbound: str | None
    """Tag, where the action is route."""
    path: tuple[str, ...]
    """From the outbound to where packets leave: groups with the member they begin with."""


def explain(config: EngineConfig, question: Question, look_up: Callable[[str], Sequence[str]]) -> Explanation:
    """Return what becomes of a flow. `look_up` returns the addresses of a name, none when there are none."""
    return _Explainer(config, question, look_up).run()


class _Explainer:
    def __init__(self, config: EngineConfig, question: Question, look_up: Callable[[str], Sequence[str]]) -> None:
        self.mode = question.mode or config.mode
        self.written = config.policy.route.rules
        """The rules as they stand in the file: what they mean in the mode is in `config`."""
        self.config = msgspec.structs.replace(config, policy=in_mode(config.policy, self.mode))
        self.question = question
        self.look_up = look_up
        self.notes = [f"the mode is {self.mode}"] if question.mode is not None else []
        self.tried: list[Tried] = []
        self.name: str | None = None
        """The name that sniffing would find."""
        self.flow = self._flow()

    def _flow(self) -> Flow:
        question = self.question
        host = question.host.rstrip(".").lower()
        destination, known, faked = "", None, False
        try:
            destination = str(ip_address(host))
        except ValueError:
            self.name = host
            faked = self._gets_a_fake_address(host)
            destination = "" if faked else self._resolved(host)
            known = host if self.config.policy.dns.reverse_mapping and not faked else None
            if known is None and not faked:
                self.notes.append(
                    "the engine sees an address, not a name: rules about names hold only behind a rule with the action sniff"
                )
        version = 6 if ":" in destination else 4
        return Flow(
            network=question.network,
            source=ip_address(question.source or self._own_address(version)).packed,
            source_port=SOURCE_PORT,
            destination=ip_address(destination).packed if destination else b"",
            destination_port=question.port,
            destination_name=host if faked else None,
            inbound=self.config.tun.tag,
            domain=known,
            process=question.process,
        )

    def _resolved(self, host: str) -> str:
        addresses = self.look_up(host)
        if not addresses:
            self.notes.append(f"{host} cannot be resolved here: rules about addresses do not hold")
            return ""
        self.notes.append(f"{host} is taken to be {addresses[0]}, as this machine resolves it now")
        return addresses[0]

    def _gets_a_fake_address(self, host: str) -> bool:
        """Whether the DNS service answers with an address that stands for the name."""
        dns, route = self.config.policy.dns, self.config.policy.route
        kinds = {server.tag: server.kind for server in dns.servers}
        if "fakeip" not in kinds.values():
            return False
        rules = Compiler(route.rule_sets).compile(dns.rules)
        asked = Flow(
            network="udp",
            source=ip_address(self._own_address(4)).packed,
            source_port=SOURCE_PORT,
            destination=b"",
            destination_port=53,
            domain=host,
            process=self.question.process,
            query_type=1,
        )
        start = 0
        while isinstance(step := rules.match(asked, start), Step):
            if step.rule.action == "route":
                if kinds.get(step.rule.server or "") == "fakeip":
                    self.notes.append(
                        f"{host} gets a fake address: rules about addresses hold only behind the action resolve"
                    )
                    return True
                return False
            if step.rule.action != "route-options":
                return False
            start = step.index + 1
        return False

    def _own_address(self, version: int) -> str:
        own = [address.partition("/")[0] for address in self.config.tun.addresses]
        return next((text for text in own if ip_address(text).version == version), own[0] if own else "198.18.0.1")

    def run(self) -> Explanation:
        self._note_what_comes_before_the_rules()
        policy = self.config.policy
        rules = Compiler(policy.route.rule_sets).compile(policy.route.rules)
        flow_text = self._flow_text()
        start = 0
        while True:
            trials, step = rules.trace(self.flow, start)
            assert not isinstance(step, NeedProcess), "the question says which program it is"
            for trial in trials:
                if step is None or trial.index != step.index:
                    self._add(trial.index, trial.rule, holds=False, reason=self._why_not(trial))
            if step is None:
                return self._end(flow_text, "", Route(outbound=policy.route.final or policy.outbounds[0].tag))
            action = step.rule.action
            match action:
                case Route() | Reject() | HijackDns():
                    self._add(step.index, step.rule, holds=True, reason="it decides")
                    return self._end(flow_text, step.rule.origin, action)
                case Sniff():
                    self._add(step.index, step.rule, holds=True, reason=self._sniff(action))
                case Resolve():
                    self._add(step.index, step.rule, holds=True, reason=self._resolve())
                case RouteOptions():
                    self._add(step.index, step.rule, holds=True, reason=self._change(action))
            start = step.index + 1

    def _add(self, index: int, rule: Rule, *, holds: bool, reason: str) -> None:
        self.tried.append(
            Tried(
                origin=rule.origin,
                conditions=conditions_text(self.written[index].match),
                action=action_text(rule.action),
                holds=holds,
                reason=reason,
            )
        )

    def _why_not(self, trial: Trial[Rule]) -> str:
        failed = trial.failed
        if trial.rule.match != self.written[trial.index].match and trial.rule.match == NEVER:
            return f"clash_mode: the mode is {self.mode}"
        if failed == "invert":
            return "its conditions hold, and it has invert"
        unknown = self.flow.domain is None and self.flow.destination_name is None
        if failed.startswith(("domain", "and: domain")) and unknown and self.name is not None:
            return f"{failed}: the name is not known yet"
        if "process" in failed or failed in ("user", "user_id"):
            return f"{failed}: the program is {self._program()}"
        return f"{failed}: does not hold"

    def _program(self) -> str:
        process = self.question.process
        return process.path or process.name or "not known (say --process NAME)"

    def _sniff(self, action: Sniff) -> str:
        question = self.question
        protocol = question.protocol or _GUESSES.get((question.network, question.port))
        if question.network == "tcp" and question.port in _SERVER_SPEAKS_FIRST:
            return "nothing is looked for: at this port the server speaks first"
        if protocol is None or (action.sniffer and protocol not in action.sniffer):
            return "nothing is found"
        self.flow.sniffed = True
        self.flow.protocol = protocol
        found = f"it is taken for {protocol}" if question.protocol is None else f"it finds {protocol}"
        if self.name is None or protocol not in ("tls", "http", "quic"):
            return found
        self.flow.domain = self.name
        return f"{found}, and the name {self.name}"

    def _resolve(self) -> str:
        name = self.flow.domain or self.flow.destination_name
        if name is None or self.flow.destination:
            return "there is an address already"
        addresses = self.look_up(name)
        self.flow.resolved = tuple(ip_address(text).packed for text in addresses)
        return f"{name} is {', '.join(addresses)}" if addresses else f"{name} cannot be resolved here"

    def _change(self, options: RouteOptions) -> str:
        if options.override_port is not None:
            self.flow.destination_port = options.override_port
        if options.override_address is not None:
            try:
                self.flow.destination = ip_address(options.override_address).packed
            except ValueError:
                self.flow.destination, self.flow.destination_name = b"", options.override_address
        return f"from here on it is a flow to {self._flow_text().partition(' to ')[2]}"

    def _flow_text(self) -> str:
        flow = self.flow
        address = str(ip_address(flow.destination)) if flow.destination else ""
        bracketed = f"[{address}]" if ":" in address else address
        name = flow.destination_name or flow.domain or self.name
        shown = f"{name} ({address})" if name and address else bracketed or name
        return f"{flow.network} from {ip_address(flow.source)} to {shown}:{flow.destination_port}"

    def _note_what_comes_before_the_rules(self) -> None:
        tun, flow = self.config.tun, self.flow
        if not flow.destination:
            return
        address = ip_address(flow.destination)
        if address.is_loopback:
            self.notes.append(f"{address} never enters the tun: the kernel delivers it on this machine")
        for text in tun.route_exclude_address:
            if "-" not in text and address in ip_network(text, strict=False):
                self.notes.append(f"it does not enter the tun: {address} is in {text} of route_exclude_address")
        if tun.route_address and not any(address in ip_network(text) for text in tun.route_address):
            self.notes.append(f"it does not enter the tun: {address} is in no prefix of route_address")
        if not any(ip_address(own.partition("/")[0]).version == address.version for own in tun.addresses):
            told = "is closed (strict_route)" if tun.strict_route else "goes past the tun"
            self.notes.append(
                f"it does not enter the tun, which has no IPv{address.version} address: IPv{address.version} {told}"
            )
        for outbound in self.config.policy.outbounds:
            if isinstance(outbound, ProxyOutbound) and str(address) in (outbound.proxy.host, *outbound.proxy.addresses):
                self.notes.append(f"{address} is the proxy {outbound.tag} itself: it leaves beside the tun")

    def _end(self, flow: str, decided_by: str, action: Route | Reject | HijackDns) -> Explanation:
        outbound = action.outbound if isinstance(action, Route) else None
        kind = "route" if outbound is not None else "hijack-dns" if isinstance(action, HijackDns) else "reject"
        if isinstance(action, Reject) and action.method == "drop":
            kind = "drop"
        return Explanation(
            flow=flow,
            notes=tuple(self.notes),
            tried=tuple(self.tried),
            decided_by=decided_by,
            action=kind,
            outbound=outbound,
            path=self._path(outbound) if outbound is not None else (),
        )

    def _path(self, tag: str) -> tuple[str, ...]:
        outbounds = {outbound.tag: outbound for outbound in self.config.policy.outbounds}
        path: list[str] = []
        while True:
            outbound = outbounds[tag]
            path.append(_outbound_text(outbound))
            if not isinstance(outbound, SelectorOutbound | UrltestOutbound | FallbackOutbound):
                return tuple(path)
            default = outbound.default if isinstance(outbound, SelectorOutbound) else None
            tag = default or outbound.outbounds[0]


def _outbound_text(outbound: OutboundConfig) -> str:
    match outbound:
        case ProxyOutbound():
            return f"{outbound.tag} ({outbound.proxy})"
        case SelectorOutbound():
            return f"{outbound.tag} (selector, until another is chosen)"
        case UrltestOutbound():
            return f"{outbound.tag} (urltest, until it is measured)"
        case FallbackOutbound():
            return f"{outbound.tag} (fallback, while its first member works)"
        case _:
            kind = type(outbound).__name__.removesuffix("Outbound").lower()
            return outbound.tag if outbound.tag == kind else f"{outbound.tag} ({kind})"
