"""What becomes of a flow: the rules, one after the other, until one is final. Sans-IO: whoever drives a Decision answers it.

decision = router.begin(flow)
step = decision.advance()     Sniff, Resolve or NeedProcess: do it, change decision.flow, and advance again
                              Verdict: the end
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from shared.config import HijackDns, Logical, Policy, Reject, Resolve, Route, RouteOptions, Rule, Sniff, set_fields
from shared.rules.flow import Ends, Flow
from shared.rules.matcher import NeedProcess, Rules
from workers.sniff import Sniffed
from workers.upstream import Outbound
from workers.upstream.sockets import address_text, pack_address

__all__ = ["LOST", "OWN_FLOW", "SERVER_SPEAKS_FIRST", "Ask", "Decision", "Router", "Verdict"]

REJECTS_MAX = 50
REJECTS_WITHIN = 30.0
"""So many flows a rule rejects within so many seconds; the next are dropped in silence (as sing-box, unless `no_drop`)."""

DESTINATIONS_MAX = 4096
"""Destinations of which it is remembered whether they are for the DNS service; then they are found out anew."""

_OF_THE_DESTINATION = frozenset(("network", "port", "port_range", "ip_cidr", "ip_is_private", "ip_version", "inbound"))

SERVER_SPEAKS_FIRST = frozenset((25, 110, 143, 465, 587, 993, 995))
"""TCP ports of mail, where a client says nothing until it was greeted: not sniffed, as in sing-box."""

OWN_FLOW = "the proxy's own connection"
"""In the place of a rule: why a flow goes out directly."""

LOST = "the address stands for no name any more"
"""In the place of a rule: why a flow is refused, so that the program asks for the name again."""

_DROP = Reject(method="drop")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a decision: an outbound, or HijackDns, or Reject (whose `method` says how, the limit applied)."""

    action: Outbound | HijackDns | Reject
    rule: str
    """Where the rule stands that decided; empty: none did."""


Ask = Sniff | Resolve | NeedProcess
"""What must be known before the next rule can be tried."""


class Router:
    """The rules of the policy in force.

    `guards`: the master is asked about every flow, for the local proxy's own must go out directly.
    """

    def __init__(self, policy: Policy, rules: Rules[Rule], outbounds: dict[str, Outbound]) -> None:
        """`rules` are those of `policy`, compiled."""
        self.rules = rules
        self._outbounds = outbounds
        self.final = outbounds[policy.route.final or policy.outbounds[0].tag]
        self.guards = policy.loop_guard
        self._by_destination = _rules_by_destination(policy)
        self._hijacked: dict[tuple[bytes, int], bool] = {}
        self._rejected: dict[int, deque[float]] = {}

    def begin(self, flow: Flow) -> "Decision":
        """Return the decision about a new flow."""
        return Decision(self, flow)

    def hijacks(self, destination: bytes, port: int) -> bool:
        """Whether datagrams to this destination are for the DNS service, whichever application sends them; False: not always,
        at least. The local proxy's own are not, where the router `guards`.

        Remembered, so that a question from a port of its own, as most are, is not decided as a flow of its own.
        """
        found = self._hijacked.get((destination, port))
        if found is None:
            if len(self._hijacked) >= DESTINATIONS_MAX:
                self._hijacked.clear()
            flow = Flow(network="udp", source=b"", source_port=0, destination=destination, destination_port=port)
            step = self.rules.match(flow) if self._by_destination else None
            found = self._hijacked[destination, port] = (
                step is not None
                and not isinstance(step, NeedProcess)
                and step.index < self._by_destination
                and isinstance(step.rule.action, HijackDns)
            )
        return found

    def outbound(self, tag: str) -> Outbound:
        """Return an outbound that a rule names."""
        return self._outbounds[tag]

    def limit(self, index: int, reject: Reject, now: float) -> Reject:
        """Return how a flow is rejected by rule `index`, which may have done so too often."""
        if reject.method == "drop" or reject.no_drop:
            return reject
        times = self._rejected.setdefault(index, deque(maxlen=REJECTS_MAX + 1))
        times.append(now)
        return _DROP if len(times) > REJECTS_MAX and now - times[0] <= REJECTS_WITHIN else reject


def _rules_by_destination(policy: Policy) -> int:
    """Return how many of the first rules look at nothing but where a flow goes to."""
    count = 0
    for rule in policy.route.rules:
        if isinstance(rule.match, Logical) or set_fields(rule.match) - _OF_THE_DESTINATION:
            break
        count += 1
    return count


class Decision:
    """One flow's way through the rules.

    flow         what is known of it; rules' actions and whoever answers an Ask change it
    settled      the verdict, whatever the rules say
    udp_timeout, udp_connect   what a rule has said
    """

    __slots__ = ("_next", "_router", "flow", "settled", "udp_connect", "udp_timeout")

    def __init__(self, router: Router, flow: Flow) -> None:
        self._router = router
        self._next = 0
        self.flow = flow
        self.settled: Verdict | None = None
        self.udp_timeout: float | None = None
        self.udp_connect = False

    def advance(self, now: float) -> Verdict | Ask:
        """Go on to the end, or to what must be known first."""
        flow, router = self.flow, self._router
        if self.settled is not None:
            return self.settled
        if router.guards and flow.process is None:
            return NeedProcess(0)
        while (step := router.rules.match(flow, self._next)) is not None:
            if isinstance(step, NeedProcess):
                self._next = step.index
                return step
            self._next = step.index + 1
            action = step.rule.action
            match action:
                case Route():
                    if action.options is not None:
                        self._apply(action.options)
                    return Verdict(router.outbound(action.outbound), step.rule.origin)
                case Reject():
                    return Verdict(router.limit(step.index, action, now), step.rule.origin)
                case HijackDns():
                    return Verdict(action, step.rule.origin)
                case RouteOptions():
                    self._apply(action)
                case Sniff():
                    if self._is_worth_sniffing():
                        return action
                case Resolve():
                    if not flow.destination:
                        return action
        return Verdict(router.final, "")

    def _is_worth_sniffing(self) -> bool:
        flow = self.flow
        return not flow.sniffed and not (flow.network == "tcp" and flow.destination_port in SERVER_SPEAKS_FIRST)

    def _apply(self, options: RouteOptions) -> None:
        flow = self.flow
        if options.override_address is not None:
            flow.resolved = ()
            flow.destination = pack_address(options.override_address) or b""
            flow.destination_name = None if flow.destination else options.override_address
        if options.override_port is not None:
            flow.destination_port = options.override_port
        if options.udp_timeout is not None:
            self.udp_timeout = options.udp_timeout
        self.udp_connect = self.udp_connect or options.udp_connect

    def note_sniffed(self, sniff: Sniff, result: Sniffed | None) -> None:
        """The first bytes have told this, or nothing."""
        flow = self.flow
        flow.sniffed = True
        if result is None:
            return
        flow.protocol, flow.client = result.protocol, result.client
        if result.domain is not None:
            flow.domain = result.domain
            if sniff.override_destination:
                flow.destination, flow.destination_name, flow.resolved = b"", result.domain, ()

    def take_owner(self, other: "Decision") -> None:
        """The process is the same as that of another flow."""
        self.flow.process, self.settled = other.flow.process, other.settled

    def stands_alone(self, ends: Ends) -> bool:
        """Whether datagrams have a leg of their own: they go elsewhere than they are addressed to, or a rule says so."""
        flow = self.flow
        return (
            self.udp_connect or flow.destination != ends.destination or flow.destination_port != ends.destination_port
        )

    def targets(self) -> Sequence[str]:
        """Return what the outbound is to connect to: addresses to be tried in order, or one name."""
        flow = self.flow
        addresses = (flow.destination,) if flow.destination else flow.resolved
        if addresses:
            return [address_text(address) for address in addresses]
        assert flow.destination_name is not None, "a flow without an address has a name"
        return (flow.destination_name,)
