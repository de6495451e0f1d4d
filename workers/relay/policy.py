"""The policy in force, and what flows ask of it: swapped as a whole by a reload."""

from itertools import count
from time import time

from shared.config import Policy, Reject, Resolve
from shared.rules.flow import Ends, Flow
from shared.rules.matcher import Compiler
from workers.relay.facts import FlowFacts
from workers.relay.router import LOST, OWN_FLOW, Router, Verdict
from workers.relay.services import DnsService, ProcessService
from workers.upstream import Outbound
from workers.upstream.build import Outbounds

__all__ = ["PolicyInForce"]

_LOST = Verdict(Reject(no_drop=True), LOST)


class PolicyInForce:
    """`dns` and `processes` are the services of the worker with number `worker`."""

    def __init__(self, outbounds: Outbounds, dns: DnsService, processes: ProcessService, worker: int = 0) -> None:
        self.outbounds = outbounds
        self.dns = dns
        self._processes = processes
        self._router: Router | None = None
        self._inbound = ""
        self._worker = worker
        # Flows of the worker's successors get other numbers: less than a million begin in a second.
        self._numbers = count(int(time()) << 20)

    def load(self, policy: Policy, compiler: Compiler) -> None:
        """Take `policy` from now on. Raises ValueError for a wrong address or regular expression; then nothing changes."""
        rules = compiler.compile(policy.route.rules)
        self.outbounds.load(policy)
        self._router = Router(policy, rules, self.outbounds.by_tag)
        self._inbound = policy.inbound

    @property
    def final(self) -> Outbound:
        """The outbound of flows that no rule takes."""
        assert self._router is not None, "a policy is loaded before packets flow"
        return self._router.final

    def hijacks(self, destination: bytes, port: int) -> bool:
        """Whether datagrams to this destination are for the DNS service, whichever application sends them."""
        assert self._router is not None, "a policy is loaded before packets flow"
        return self._router.hijacks(destination, port)

    @property
    def guards(self) -> bool:
        """Whether a flow may be the local proxy's own, to which no rule applies."""
        assert self._router is not None, "a policy is loaded before packets flow"
        return self._router.guards

    async def is_own(self, ends: Ends) -> tuple[bool, bool]:
        """See ProcessService."""
        return await self._processes.is_own(ends)

    def begin(self, ends: Ends) -> FlowFacts:
        """Return what is known of a new flow, its decision not yet made."""
        assert self._router is not None, "a policy is loaded before packets flow"
        name, is_fake = self.dns.name_of(ends.destination)
        flow = Flow(
            network=ends.network,
            source=ends.source,
            source_port=ends.source_port,
            destination=b"" if is_fake else ends.destination,
            destination_port=ends.destination_port,
            inbound=self._inbound,
            destination_name=name if is_fake else None,
            domain=None if is_fake else name,
        )
        facts = FlowFacts(self._worker, next(self._numbers), ends, self._router.begin(flow))
        if is_fake and name is None:
            facts.decision.settled = _LOST
        return facts

    async def find_process(self, facts: FlowFacts) -> None:
        """Answer NeedProcess."""
        decision = facts.decision
        decision.flow.process, is_own = await self._processes.of(facts.ends)
        if is_own:
            decision.settled = Verdict(self.outbounds.own_direct, OWN_FLOW)

    async def find_owner(self, facts: FlowFacts) -> None:
        """Find out whose flow it is, for views; once a flow."""
        facts.owner_sought = True
        process, _ = await self._processes.of(facts.ends, for_view=True)
        if process.uid is not None:
            facts.decision.flow.process = process

    async def resolve(self, flow: Flow, how: Resolve) -> None:
        """Answer Resolve. Raises UpstreamError."""
        assert flow.destination_name is not None, "only names are resolved"
        flow.resolved = tuple(await self.dns.look_up(flow.destination_name, how))
