"""The asyncio side of all flows of one worker: what becomes of a SYN and of a datagram.

SYN       Stack -> on_syn -> TcpFlow, and a task that dials through the proxy -> accept (SYN-ACK), or refuse (RST, ICMP)
datagram  Stack -> on_datagram -> UdpRelay -> the source endpoint's UdpFlow
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from shared.config import ProxyOutbound, WorkerConfig
from shared.metrics import Cell, Counters
from workers.relay.tcp_flow import TcpFlow
from workers.relay.udp_flow import UdpRelay
from workers.stack import Refusal
from workers.stack.stack import Stack
from workers.stack.tcp.connection import TcpConnection
from workers.upstream import ProxyFailed, UpstreamError
from workers.upstream.socks import Dialer, SocksUpstream

__all__ = ["Relay"]

log = logging.getLogger(__name__)

LOG_INTERVAL = 10.0
"""Seconds between two lines about a proxy that fails: it fails for every flow."""


class Relay:
    """Owns the flows. Give `on_syn` and `on_datagram` to the Stack, then set `stack`.

    `on_udp_support` is told whether the upstream relays UDP, with a reason, when that is first known and when it changes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: WorkerConfig,
        counters: Counters,
        on_udp_support: Callable[[bool, str], None],
    ) -> None:
        self._loop = loop
        self._counters = counters
        outbound = config.policy.outbounds[0]
        assert isinstance(outbound, ProxyOutbound), "the command line names a proxy"
        timeout = outbound.dial.connect_timeout
        dialer = Dialer(loop, outbound.proxy, timeout=timeout, mark=config.mark)
        self._upstream = SocksUpstream(dialer, timeout=timeout)
        self._flows: set[TcpFlow] = set()
        self._udp = UdpRelay(
            dialer,
            config.udp,
            counters,
            timeout=timeout,
            on_support=on_udp_support,
            on_proxy_failed=self._log_failure,
        )
        self.on_datagram = self._udp.on_datagram
        self._log_again_at = 0.0
        self._failures_unsaid = 0

    @property
    def stack(self) -> Stack:
        """The stack that the datagrams of the internet go to."""
        return self._udp.stack

    @stack.setter
    def stack(self, stack: Stack) -> None:
        self._udp.stack = stack

    def close(self) -> None:
        """Reset every flow and close every association. Tasks that dial are cancelled; they end in the loop's next turn."""
        for flow in tuple(self._flows):
            flow.abort()
        self._udp.close()

    def on_syn(self, connection: TcpConnection) -> None:
        """Stack: a new flow. The application's SYN is answered when the proxy has connected."""
        flow = TcpFlow(self._loop, connection, self._flows.discard)
        connection.handler = flow
        self._flows.add(flow)
        flow.task = self._loop.create_task(self._dial(flow), name="dial")

    async def _dial(self, flow: TcpFlow) -> None:
        try:
            sock = await self._upstream.connect(*flow.destination)
        except UpstreamError as error:
            self._counters[Cell.CONNECT_FAILED] += 1
            if isinstance(error, ProxyFailed):
                self._log_failure(error)
            else:
                log.debug("%s:%d not connected: %s", *flow.destination, error)
            flow.refuse(error.refusal)
        except Exception:
            self._counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("dialing %s:%d", *flow.destination)
            flow.refuse(Refusal.NET_UNREACHABLE)
        else:
            flow.start(sock)

    def _log_failure(self, error: ProxyFailed) -> None:
        now = monotonic()
        if now < self._log_again_at:
            self._failures_unsaid += 1
            return
        more = f" ({self._failures_unsaid} more like this)" if self._failures_unsaid else ""
        log.warning("%s%s", error, more)
        self._failures_unsaid = 0
        self._log_again_at = now + LOG_INTERVAL
