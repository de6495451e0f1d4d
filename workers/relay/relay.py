"""All flows of one worker, and the policy that they follow.

SYN       Stack -> TcpRelay.on_syn          datagram  Stack -> UdpRelay.on_datagram
both ask the policy in force (policy.py, router.py) for an outbound (workers/upstream), or reject, or give to the DNS service
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from time import monotonic, time

import msgspec

from shared import control
from shared.config import Policy, Resolve, WorkerConfig
from shared.metrics import Counters
from shared.rules.matcher import Compiler
from workers.relay.accounts import Accounts
from workers.relay.facts import FlowFacts
from workers.relay.loops import LoopWatch
from workers.relay.owners import Owners
from workers.relay.policy import PolicyInForce
from workers.relay.processes import Processes
from workers.relay.services import DnsService
from workers.relay.tcp_flow import TcpFlow
from workers.relay.tcp_relay import TcpRelay
from workers.relay.udp_flow import Target
from workers.relay.udp_relay import UdpRelay
from workers.stack.stack import Stack
from workers.upstream import ProxyFailed, UpstreamError
from workers.upstream.build import Outbounds, Surroundings
from workers.upstream.egress import Egress
from workers.upstream.fetch import FetchFailed, measure
from workers.upstream.group import ChosenMember
from workers.upstream.sockets import address_text, networks
from workers.upstream.urltest import Urltest

__all__ = ["Relay"]

log = logging.getLogger(__name__)

LOG_INTERVAL = 10.0
"""Seconds between two lines about proxies that fail: they fail for every flow."""
TELL_INTERVAL = 1.0
"""Seconds between two messages to the master about them."""
COUNT_INTERVAL = 5.0
"""Seconds between two additions of flows' bytes to those of their outbounds and programs."""
CLOSED_AT_ONCE = 20
"""Flows that are reset in one turn of the loop: each takes a packet and the close of a socket."""
COUNTED_AT_ONCE = 500
"""Flows whose bytes are counted in one turn of the loop: a millisecond at most."""
FLOWS_IN_MESSAGE = 50
"""Flows told of in one message: some 20 KB at most."""


class Relay:
    """Owns the flows. Load a policy, give `on_syn` and `on_datagram` to the Stack, then set `stack`.

    `tell` sends a message to the master, and says whether it could. `dns` answers what rules hand over.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: WorkerConfig,
        counters: Counters,
        dns: DnsService,
        tell: Callable[[control.FromWorker], bool],
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._tell = tell
        self._dns = dns
        self._default_resolver: str | None = None
        self.processes = Processes(loop, counters, tell)
        self._egress = Egress(*config.egress) if config.egress is not None else None
        self._outbounds = Outbounds(
            Surroundings(
                loop=loop,
                counters=counters,
                mark=self._egress or config.mark,
                tun=networks(config.tun_addresses),
                measures=config.measures,
                look_up=self._look_up,
                on_udp_support=self._on_udp_support,
                on_used=lambda tag: tell(control.Used(tag)),
                on_measured=self._on_measured,
                on_passed_over=tell,
            )
        )
        self.pass_over = self._outbounds.take
        self.measure_now = self._outbounds.measure_now
        self.policy = PolicyInForce(self._outbounds, dns, self.processes, config.index)
        self._owners = Owners(self.policy.find_owner, config.workers)
        self._accounts = Accounts(counters, tell)
        self._tcp = TcpRelay(loop, self.policy, counters, self._accounts, self._log_failure, LoopWatch(counters, tell))
        self._udp = UdpRelay(
            loop, self.policy, config.udp, counters, self._accounts, self._log_failure, LoopWatch(counters, tell)
        )
        self.on_syn = self._tcp.on_syn
        self.on_datagram = self._udp.on_datagram
        self._log_again_at = 0.0
        self._tell_again_at = 0.0
        self._failures_unsaid = 0
        self._tls: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._schedule_count()

    @property
    def stack(self) -> Stack:
        """The stack that the datagrams of the internet go to."""
        return self._udp.stack

    @stack.setter
    def stack(self, stack: Stack) -> None:
        self._udp.stack = stack

    def load(self, policy: Policy, compiler: Compiler) -> None:
        """New flows follow `policy` from now on; those that are there keep their outbounds.

        Raises ValueError for a wrong address or regular expression in a rule; then the policy before it stays in force.
        """
        take_dns = self._dns.prepare(policy, compiler)
        self.policy.load(policy, compiler)
        self._default_resolver = policy.route.default_domain_resolver
        take_dns(self._outbounds.by_tag, self._outbounds.own_direct, self.policy.final)

    def _on_udp_support(self, tag: str, supported: bool, reason: str) -> None:
        self._tell(control.UdpSupport(supported, reason, tag))
        self._loop.call_soon(self._dns.note_outbounds)

    def close(self) -> None:
        """Reset every flow, close every leg and every outbound. Tasks are cancelled; they end in the loop's next turn."""
        self._count_timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._tcp.close()
        self._udp.close()
        self._outbounds.close()

    async def _look_up(self, name: str, how: Resolve) -> Sequence[bytes]:
        """Look up the name of a direct flow."""
        if how.server is None and self._default_resolver is not None:
            how = msgspec.structs.replace(how, server=self._default_resolver)
        return await self._dns.look_up(name, how)

    def keys(self) -> set[bytes]:
        """All flows that packets may come for, as the master's keys (shared.control.Keys)."""
        endpoints = (source + port.to_bytes(2, "big") for source, port in self._udp.flows)
        return {*self.stack.connections, *endpoints}

    # what the master asks

    def move(self, v4: int, v6: int) -> None:
        """New connections leave by these interfaces."""
        if self._egress is not None:
            self._egress.move(v4, v6)

    def select(self, group: str, member: str) -> None:
        """Have a selector or urltest group use a member from now on."""
        outbound = self._outbounds.by_tag.get(group)
        if isinstance(outbound, ChosenMember) and outbound.choose(member):
            self._interrupt(outbound)

    def note_use(self, group: str) -> None:
        """Another worker's flows take a urltest group."""
        outbound = self._outbounds.by_tag.get(group)
        if isinstance(outbound, Urltest):
            outbound.note_use()

    def _on_measured(self, group: Urltest, delays: dict[str, float | None], has_changed: bool) -> None:
        if has_changed:
            self._interrupt(group)
        self._tell(control.Measured(group.tag, group.chosen.tag, delays))

    def _interrupt(self, group: ChosenMember) -> None:
        self._dns.note_outbounds()
        if group.interrupts:
            # By its tag: a reload may have made the group anew since.
            self._tcp.close_those(lambda facts: any(taken.tag == group.tag for taken in facts.trail))
            self._udp.close_those(lambda facts: any(taken.tag == group.tag for taken in facts.trail))

    def close_flow(self, number: int | None) -> None:
        """Reset one flow; or all that there are now, with packets served in between."""
        if number is None:
            self._start(self._close(tuple(self._tcp.flows)))
        else:
            self._tcp.close_those(lambda facts: facts.id == number)
        self._udp.close_those(lambda facts: number in (None, facts.id))

    async def _close(self, flows: Sequence[TcpFlow]) -> None:
        for number, flow in enumerate(flows, 1):
            if flow in self._tcp.flows:  # it has not ended since
                flow.abort()
            if number % CLOSED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def list_flows(self, question: control.ListFlows) -> None:
        """Tell the master of all flows, part by part, with the loop's turns between."""
        self._start(self._list_flows(question))

    async def _list_flows(self, question: control.ListFlows) -> None:
        if question.owners:
            await self._owners.seek(self._facts())
        part: list[control.FlowView] = []
        for view in self._views():
            part.append(view)
            if len(part) == FLOWS_IN_MESSAGE:
                self._tell(control.Flows(question.id, msgspec.Raw(control.encode(part)), last=False))
                part.clear()
                await asyncio.sleep(0)
        self._tell(control.Flows(question.id, msgspec.Raw(control.encode(part)), last=True))

    def _views(self) -> Iterator[control.FlowView]:
        """Yield the flows, one when it is asked for: making them all at once would keep the packets waiting."""
        unix_offset = time() - monotonic()
        for flow in tuple(self._tcp.flows):
            if flow not in self._tcp.flows:  # it has ended since
                continue
            yield flow.facts.view(flow.up, flow.down, flow.state, unix_offset, flow.rtt, flow.upstream_rtt)
        for target in tuple(self._udp.targets()):
            yield target.facts.view(target.up, target.down, target.state, unix_offset, None, None)

    def _facts(self) -> Iterator[FlowFacts]:
        yield from (flow.facts for flow in self._tcp.flows)
        yield from (target.facts for target in self._udp.targets())

    def test_delay(self, question: control.TestDelay) -> None:
        """Fetch a URL through an outbound and tell the master how long it took."""
        self._start(self._test_delay(question))

    async def _test_delay(self, question: control.TestDelay) -> None:
        outbound = self._outbounds.by_tag.get(question.outbound)
        if outbound is None:
            self._tell(control.Delay(question.id, None, f"there is no outbound {question.outbound}"))
            return
        if self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            seconds = await measure(outbound, question.url, question.timeout, self._tls)
        except FetchFailed as error:
            self._tell(control.Delay(question.id, None, str(error)))
        else:
            self._tell(control.Delay(question.id, seconds))

    def look_up(self, question: control.LookUp) -> None:
        """Look a name up past all proxies and tell the master."""
        self._start(self._answer_look_up(question))

    async def _answer_look_up(self, question: control.LookUp) -> None:
        try:
            found = await self._dns.look_up_directly(question.name)
        except UpstreamError as error:
            self._tell(control.LookedUp(question.id, (), str(error)))
        else:
            self._tell(control.LookedUp(question.id, tuple(map(address_text, found))))

    # housekeeping

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _schedule_count(self) -> None:
        self._count_timer = self._loop.call_later(COUNT_INTERVAL, lambda: self._start(self._count_bytes()))

    async def _count_bytes(self) -> None:
        """Count what flows have carried: a look at each now and then, nothing per packet."""
        await self._owners.seek(self._facts())
        everybody: list[TcpFlow | Target] = [*self._tcp.flows, *self._udp.targets()]
        for number, flow in enumerate(everybody, 1):
            self._accounts.count(flow.facts, flow.up, flow.down)
            if number % COUNTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._accounts.flush()
        self._schedule_count()

    def _log_failure(self, error: ProxyFailed) -> None:
        now = monotonic()
        if now >= self._tell_again_at:
            self._tell_again_at = now + TELL_INTERVAL
            self._tell(control.ProxyFailing())
        if now < self._log_again_at:
            self._failures_unsaid += 1
            return
        more = f" ({self._failures_unsaid} more like this)" if self._failures_unsaid else ""
        log.warning("%s%s", error, more)
        self._failures_unsaid = 0
        self._log_again_at = now + LOG_INTERVAL
