"""UDP of one worker: what becomes of a datagram (endpoint-independent mapping and filtering: RFC 4787, REQ-1 and REQ-8).

    application -> outbound   on_datagram -> the endpoint's UdpFlow -> its Target -> send: into the leg, where the payload lies
    outbound -> application   leg -> Carrier.deliver -> Stack.send_datagram, whoever the remote peer is

The first datagram to a destination is decided by the rules. Those that come until the leg is open wait in a bounded queue. What
is rejected, or answered by the DNS service, leaves nothing behind.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from shared.config import HijackDns, Reject, Sniff, UdpConfig
from shared.metrics import Cell, Counters
from shared.rules.flow import Ends
from shared.rules.matcher import NeedProcess
from workers.relay.accounts import Accounts
from workers.relay.askers import Askers
from workers.relay.facts import FlowFacts
from workers.relay.loops import LoopWatch
from workers.relay.policy import PolicyInForce
from workers.relay.router import Ask, Decision, Verdict
from workers.relay.udp_flow import Carrier, Endpoint, Target, UdpFlow
from workers.sniff import SNIFFERS, DatagramSniffer, Incomplete
from workers.stack import Refusal
from workers.stack.stack import Stack
from workers.upstream import Outbound, ProxyFailed, UpstreamError

__all__ = ["UdpRelay"]

log = logging.getLogger(__name__)

DNS_PORT = 53
SWEEPS_PER_TIMEOUT = 8
"""Sweeps in one idle timeout: an endpoint lives up to an eighth longer than it should."""
SWEEP_INTERVAL_MAX = 5.0  # seconds: rules and protocols may ask for less than the usual timeout
PROTOCOL_TIMEOUTS = {"dns": 10.0, "ntp": 10.0, "stun": 10.0, "quic": 30.0, "dtls": 30.0}
"""Seconds without a datagram after which an endpoint is forgotten that was sniffed to speak this (as sing-box)."""


class UdpRelay:
    """The endpoints of one worker. `stack` is assigned by the composition root before the first datagram.

    `on_failed` is told of outbounds that do not work.
    """

    stack: Stack

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: PolicyInForce,
        config: UdpConfig,
        counters: Counters,
        accounts: Accounts,
        on_failed: Callable[[ProxyFailed], None],
        loops: LoopWatch,
    ) -> None:
        self._loops = loops
        self.counters = counters
        self.accounts = accounts
        self.flows: dict[Endpoint, UdpFlow] = {}
        self._loop = loop
        self._policy = policy
        self._config = config
        self._on_failed = on_failed
        self._askers = Askers(loop, counters, policy.is_own)
        self._sweep_timer: asyncio.TimerHandle | None = None

    def on_datagram(
        self,
        version: int,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        payload: memoryview,
    ) -> None:
        """Stack: a datagram of the application."""
        flow = self.flows.get((source, source_port))
        if destination_port == DNS_PORT and self._policy.hijacks(destination, DNS_PORT):
            if not self._policy.guards or self._askers.knows((source, source_port), self.stack.now):
                self._ask(version, source, source_port, destination, payload)
                return
            if flow is None:
                ends = Ends("udp", source, source_port, destination, destination_port)
                self._askers.hold(ends, bytes(payload), self._ask_or_carry)
                return
        if flow is not None:
            target = flow.targets.get((destination, destination_port))
            if target is not None:
                flow.used_at = self.stack.now
                target.up += len(payload)
                target.send(payload)
                return
        self._begin(flow, Ends("udp", source, source_port, destination, destination_port), payload)

    def _ask_or_carry(self, ends: Ends, query: bytes, is_own: bool) -> None:
        """It has been found out whose question it is; the local proxy's own is carried by a flow like any other."""
        _, source, source_port, destination, _ = ends
        payload = memoryview(query)
        if not is_own:
            self._ask(4 if len(source) == 4 else 6, source, source_port, destination, payload)
            return
        flow = self.flows.get(ends[1:3])
        target = flow.targets.get(ends[3:]) if flow is not None else None
        if target is None:
            self._begin(flow, ends, payload)
        else:
            target.send(payload)

    def _ask(self, version: int, source: bytes, source_port: int, destination: bytes, payload: memoryview) -> None:
        """A question for the DNS service: nothing of it is kept here."""
        query = bytes(payload)
        stack, dns = self.stack, self._policy.dns
        answer = dns.answer_at_once(query, destination, stack.now)
        if answer is not None:
            stack.send_datagram(version, destination, DNS_PORT, source, source_port, answer)
            return
        ends = Ends("udp", source, source_port, destination, DNS_PORT)
        dns.ask(query, ends, _Answer(self, ends))

    def refuse(self, source: Endpoint, destination: Endpoint, payload: bytes | memoryview) -> None:
        """Answer one datagram with ICMP port unreachable, and count it.

        Whatever the reason: of the codes that fit, it alone is an error to a UDP socket (Linux, net/ipv4/icmp.c,
        icmp_err_convert: not `fatal`), and an application that hears nothing waits in vain.
        """
        self.counters[Cell.UDP_REFUSED] += 1
        version = 4 if len(source[0]) == 4 else 6
        self.stack.send_unreachable(Refusal.PORT_UNREACHABLE, version, *source, *destination, payload)

    def close(self) -> None:
        """Close every leg."""
        self._askers.close()
        for flow in tuple(self.flows.values()):
            self.remove(flow)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    def targets(self) -> Iterator[Target]:
        """All destinations of all endpoints."""
        for flow in self.flows.values():
            yield from flow.targets.values()

    def close_those(self, wanted: Callable[[FlowFacts], bool]) -> None:
        """Close the legs that carry what `wanted` says, and forget it; the next datagram is decided anew."""
        for flow in list(self.flows.values()):
            for target in [target for target in flow.targets.values() if wanted(target.facts)]:
                if target.carrier is not None and len(target.carrier.targets) == 1:
                    flow.drop_carrier(target.carrier)
                else:
                    self._drop_target(flow, target)

    # a new destination

    def _begin(self, flow: UdpFlow | None, ends: Ends, payload: memoryview) -> None:
        facts = self._policy.begin(ends)
        now = self.stack.now
        if flow is not None and flow.owner is not None:
            facts.decision.take_owner(flow.owner.decision)
        step = _sniff_one(facts.decision, facts.decision.advance(now), payload, now)
        if isinstance(step, Verdict):
            facts.rule = step.rule
            action = step.action
            if isinstance(action, Reject | HijackDns):
                self._answer(facts, action, (payload,))
                return
            known = action.refuses_udp()
            if known is not None:
                log.debug("%s is not carried: %s", facts, known)
                self.refuse(ends[1:3], ends[3:], payload)
                return
        if flow is None:
            flow = self._open(ends[1:3], now)
        flow.used_at = now
        target = flow.add(facts)
        target.up = len(payload)
        target.hold(payload)
        if isinstance(step, Verdict):
            self._settle(flow, target, step)
        else:
            target.task = self._loop.create_task(self._decide(flow, target, step), name="udp decision")

    async def _decide(self, flow: UdpFlow, target: Target, step: Verdict | Ask) -> None:
        """Answer what the rules ask until they are through."""
        decision = target.facts.decision
        try:
            while not isinstance(step, Verdict):
                if isinstance(step, Sniff):
                    decision.note_sniffed(step, await target.sniff(step.sniffer or SNIFFERS, step.timeout))
                elif isinstance(step, NeedProcess):
                    await self._policy.find_process(target.facts)
                    flow.owner = target.facts
                else:
                    await self._policy.resolve(decision.flow, step)
                step = decision.advance(monotonic())
        except UpstreamError as error:
            log.debug("%s is not carried: %s", target.facts, error)
            target.task = None
            self._refuse_target(flow, target)
        except Exception:
            self.counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("%s", target.facts)
            target.task = None
            self._refuse_target(flow, target)
        else:
            target.task = None
            self._settle(flow, target, step)

    def _settle(self, flow: UdpFlow, target: Target, verdict: Verdict) -> None:
        facts, action = target.facts, verdict.action
        facts.rule = verdict.rule
        if isinstance(action, Reject | HijackDns):
            held = target.release()
            self._drop_target(flow, target)
            self._answer(facts, action, map(memoryview, held))
        else:
            self._attach(flow, target, action)

    def _answer(self, facts: FlowFacts, action: Reject | HijackDns, payloads: Iterable[memoryview]) -> None:
        """Datagrams that no outbound carries."""
        ends = facts.ends
        for payload in payloads:
            if isinstance(action, HijackDns):
                self._policy.dns.ask(bytes(payload), ends, _Answer(self, ends))
            elif action.method == "drop":
                self.counters[Cell.DROP_RULE] += 1
            else:
                self.counters[Cell.REJECTED] += 1
                self.refuse(ends[1:3], ends[3:], payload)

    # legs

    def _attach(self, flow: UdpFlow, target: Target, outbound: Outbound) -> None:
        """Have the target carried by the endpoint's leg through `outbound`."""
        if outbound.kind != "direct" and not self._loops.admits(
            target.facts, len(self.flows), self.targets(), monotonic()
        ):
            self._refuse_target(flow, target)
            return
        decision = target.facts.decision
        protocol = decision.flow.protocol or ("dns" if target.endpoint[1] == DNS_PORT else "")
        timeout = decision.udp_timeout or PROTOCOL_TIMEOUTS.get(protocol)
        flow.idle_timeout = max(flow.idle_timeout, timeout or self._config.idle_timeout)
        host = decision.targets()[0] if decision.stands_alone(target.facts.ends) else None
        carrier, is_new = flow.carrier(outbound, host, target.endpoint if host is not None else None)
        target.carrier = carrier
        carrier.targets.append(target)
        if is_new:
            carrier.task = self._loop.create_task(self._open_leg(flow, carrier), name="udp leg")
        elif carrier.leg is not None:
            self._start(flow, target, carrier)

    async def _open_leg(self, flow: UdpFlow, carrier: Carrier) -> None:
        try:
            carrier.leg = await carrier.outbound.open_udp(carrier, carrier.host, carrier.trail)
        except UpstreamError as error:
            if isinstance(error, ProxyFailed):
                self.counters[Cell.CONNECT_FAILED] += 1
                self._on_failed(error)
            self._refuse_carrier(flow, carrier)
        except Exception:
            self.counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("opening UDP through %s", carrier.outbound.tag)
            self._refuse_carrier(flow, carrier)
        else:
            carrier.task = None
            for target in list(carrier.targets):
                self._start(flow, target, carrier)

    def _start(self, flow: UdpFlow, target: Target, carrier: Carrier) -> None:
        """The leg is open: send what has waited."""
        if carrier.leg is None:
            return  # it has ended while the target before this one was started
        facts = target.facts
        facts.trail = carrier.trail
        try:
            send = carrier.leg.to(carrier.host or facts.ends.destination, facts.decision.flow.destination_port)
        except ValueError as error:
            log.debug("%s is not carried: %s", facts, error)
            self._refuse_target(flow, target)
            return
        self.accounts.opened(facts)
        target.send = send
        for payload in target.release():
            send(memoryview(payload))

    def _refuse_carrier(self, flow: UdpFlow, carrier: Carrier) -> None:
        """There is no leg: answer what has waited."""
        carrier.task = None
        waited = [(target.endpoint, target.release()) for target in carrier.targets]
        flow.drop_carrier(carrier)
        for destination, held in waited:
            for payload in held:
                self.refuse(flow.source, destination, payload)

    def _refuse_target(self, flow: UdpFlow, target: Target) -> None:
        held = target.release()
        self._drop_target(flow, target)
        for payload in held:
            self.refuse(flow.source, target.endpoint, payload)

    def _drop_target(self, flow: UdpFlow, target: Target) -> None:
        flow.drop_target(target)
        if not flow.targets and not flow.carriers:
            self.remove(flow)

    # endpoints

    def _open(self, source: Endpoint, now: float) -> UdpFlow:
        if len(self.flows) >= self._config.max_associations:
            # A scan, but next to the round trips of the leg that makes it necessary; no datagram pays for an order.
            self.remove(min(self.flows.values(), key=lambda flow: flow.used_at))
            self.counters[Cell.UDP_EVICTED] += 1
        flow = self.flows[source] = UdpFlow(self, source, now)
        self.counters[Cell.UDP_OPENED] += 1
        self.counters[Cell.UDP_ACTIVE] += 1
        if self._sweep_timer is None:
            self._schedule_sweep()
        return flow

    def remove(self, flow: UdpFlow) -> None:
        """Close an endpoint's legs and forget it; its next datagram opens others."""
        if self.flows.get(flow.source) is not flow:
            return
        del self.flows[flow.source]
        flow.close()
        self.counters[Cell.UDP_CLOSED] += 1
        self.counters[Cell.UDP_ACTIVE] -= 1

    def _schedule_sweep(self) -> None:
        interval = min(self._config.idle_timeout / SWEEPS_PER_TIMEOUT, SWEEP_INTERVAL_MAX)
        self._sweep_timer = self._loop.call_later(interval, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long. One timer a worker: a datagram only notes the time."""
        now = monotonic()
        default = self._config.idle_timeout
        for flow in [flow for flow in self.flows.values() if flow.used_at <= now - (flow.idle_timeout or default)]:
            self.remove(flow)
        if self.flows:
            self._schedule_sweep()
        else:
            self._sweep_timer = None


def _sniff_one(decision: Decision, step: Verdict | Ask, payload: memoryview, now: float) -> Verdict | Ask:
    """Go on with a decision that asks for sniffing, as long as the first datagram alone says enough."""
    while isinstance(step, Sniff):
        result = DatagramSniffer(step.sniffer or SNIFFERS).feed(payload)
        if isinstance(result, Incomplete):
            break
        decision.note_sniffed(step, result)
        step = decision.advance(now)
    return step


class _Answer:
    """Gives the DNS service's answer to the application, as from the server that it has asked."""

    __slots__ = ("_ends", "_relay")

    def __init__(self, relay: UdpRelay, ends: Ends) -> None:
        self._relay = relay
        self._ends = ends

    def __call__(self, answer: bytes) -> None:
        _, source, source_port, destination, destination_port = self._ends
        version = 4 if len(source) == 4 else 6
        self._relay.stack.send_datagram(version, destination, destination_port, source, source_port, answer)
