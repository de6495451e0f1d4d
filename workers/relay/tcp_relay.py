"""TCP flows of one worker: what becomes of a SYN.

SYN -> on_syn -> TcpFlow, and a task:
1  decide: the rules; a sniff rule completes the application's handshake first, since it would send nothing before
2  an outbound: dial -> SYN-ACK, or RST or ICMP as the failure says; HijackDns: DnsStream; Reject: RST, or silence
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from time import monotonic

from shared.config import HijackDns, Reject, Sniff
from shared.metrics import Cell, Counters
from shared.rules.flow import Ends
from shared.rules.matcher import NeedProcess
from workers.relay.accounts import Accounts
from workers.relay.dns_stream import DnsStream
from workers.relay.facts import FlowFacts
from workers.relay.first_bytes import FirstBytes
from workers.relay.loops import LoopWatch
from workers.relay.policy import PolicyInForce
from workers.relay.router import Verdict
from workers.relay.tcp_flow import TcpFlow
from workers.sniff import SNIFFERS, STREAM_MAX, Incomplete, sniff_stream
from workers.stack import Refusal
from workers.stack.tcp.connection import TcpConnection
from workers.upstream import DestinationRefused, Outbound, ProxyFailed, UpstreamError

__all__ = ["TcpRelay"]

log = logging.getLogger(__name__)

SEND_TIMEOUT = 30.0  # seconds for the outbound to take the first bytes, 16 KiB at most


class TcpRelay:
    """Owns the TCP flows. `on_failed` is told of outbounds that do not work; `loops` is asked about each flow."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        policy: PolicyInForce,
        counters: Counters,
        accounts: Accounts,
        on_failed: Callable[[ProxyFailed], None],
        loops: LoopWatch,
    ) -> None:
        self._loops = loops
        self._loop = loop
        self._policy = policy
        self._counters = counters
        self._accounts = accounts
        self._on_failed = on_failed
        self.flows: set[TcpFlow] = set()

    def close(self) -> None:
        """Reset every flow. Tasks that dial are cancelled; they end in the loop's next turn."""
        for flow in tuple(self.flows):
            flow.abort()

    def close_those(self, wanted: Callable[[FlowFacts], bool]) -> None:
        """Reset the flows that `wanted` says."""
        for flow in [flow for flow in self.flows if wanted(flow.facts)]:
            flow.abort()

    def on_syn(self, connection: TcpConnection) -> None:
        """Stack: a new flow. The application's SYN is answered when the outbound has connected."""
        ends = Ends(
            "tcp", connection.source, connection.source_port, connection.destination, connection.destination_port
        )
        flow = TcpFlow(self._loop, connection, self._policy.begin(ends), self._on_closed)
        connection.handler = flow
        self.flows.add(flow)
        flow.task = self._loop.create_task(self._carry(flow), name="tcp flow")

    def _on_closed(self, flow: TcpFlow) -> None:
        self.flows.discard(flow)
        self._accounts.closed(flow.facts, flow.up, flow.down)

    async def _carry(self, flow: TcpFlow) -> None:
        first: FirstBytes | None = None
        try:
            decision = flow.facts.decision
            while not isinstance(step := decision.advance(monotonic()), Verdict):
                if isinstance(step, Sniff):
                    first = await self._sniff(flow, step, first)
                elif isinstance(step, NeedProcess):
                    await self._policy.find_process(flow.facts)
                else:
                    await self._policy.resolve(decision.flow, step)
            flow.facts.rule = step.rule
            await self._settle(flow, step, first)
        except UpstreamError as error:
            self._counters[Cell.CONNECT_FAILED] += 1
            if isinstance(error, ProxyFailed):
                self._on_failed(error)
            else:
                log.debug("%s is not carried: %s", flow.facts, error)
            flow.refuse(error.refusal)
        except Exception:
            self._counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("%s", flow.facts)
            flow.refuse(Refusal.NET_UNREACHABLE)

    async def _sniff(self, flow: TcpFlow, sniff: Sniff, first: FirstBytes | None) -> FirstBytes:
        """Look at the first bytes; note what they tell."""
        wanted = sniff.sniffer or SNIFFERS
        first = first or FirstBytes(flow.connection, flow, STREAM_MAX)
        result = sniff_stream(bytes(first.data), wanted) if first.data else Incomplete()
        try:
            async with asyncio.timeout(sniff.timeout):
                while isinstance(result, Incomplete) and not first.is_complete:
                    await first.grown_to(max(result.needed, len(first.data) + 1))
                    result = sniff_stream(bytes(first.data), wanted)
        except TimeoutError:
            pass
        if isinstance(result, Incomplete):
            result = result.so_far
        flow.facts.decision.note_sniffed(sniff, result)
        return first

    async def _settle(self, flow: TcpFlow, verdict: Verdict, first: FirstBytes | None) -> None:
        action = verdict.action
        if isinstance(action, Reject):
            if action.method == "drop":
                self._counters[Cell.DROP_RULE] += 1
                flow.drop()
            else:
                self._counters[Cell.REJECTED] += 1
                flow.refuse(Refusal.REFUSED)
        elif isinstance(action, HijackDns):
            flow.task = None
            stream = DnsStream(flow.connection, flow, flow.facts.ends, self._policy.dns)
            if first is not None:
                stream.on_data(memoryview(first.take()))
                first.hand_to(stream)
        else:
            sock = await self._dial(flow, action)
            if first is not None:
                await self._send_first(sock, first)
            self._accounts.opened(flow.facts)
            flow.start(sock)
            if first is not None:
                first.hand_to(flow)

    async def _dial(self, flow: TcpFlow, outbound: Outbound) -> socket.socket:
        """Return a socket to the first target that can be had. Raises UpstreamError."""
        if outbound.kind != "direct" and not self._loops.admits(flow.facts, len(self.flows), self.flows, monotonic()):
            raise DestinationRefused("it leads in a circle", Refusal.NET_UNREACHABLE)
        decision, trail = flow.facts.decision, flow.facts.trail
        port = decision.flow.destination_port
        *others, last = decision.targets()
        for host in others:  # of a name that a rule has resolved
            trail.clear()
            try:
                return await outbound.connect(host, port, trail)
            except DestinationRefused:
                continue
        trail.clear()
        return await outbound.connect(last, port, trail)

    async def _send_first(self, sock: socket.socket, first: FirstBytes) -> None:
        """Send what was taken for sniffing. Raises UpstreamError."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                while data := first.take():
                    await self._loop.sock_sendall(sock, data)
        except OSError as error:
            sock.close()
            raise DestinationRefused(f"the connection was lost: {error}", Refusal.REFUSED) from error
        except BaseException:
            sock.close()
            raise
