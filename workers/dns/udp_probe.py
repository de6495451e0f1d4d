"""Whether a proxy relays UDP: shown by a question to a DNS server, at the start and whenever there is doubt.

    an answer over UDP                    it does
    no association                        it does not
    none over UDP, but one over TCP       it opens associations and relays nothing: it does not
    none at all                           the server is not there: it does as far as is known ("not verified")

Where UDP does not work, or is not sure to, the question is asked again after a while.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from time import monotonic

from shared.config import DnsConfig
from workers.dns import ConnectionLost
from workers.dns.servers.framed import FramedConnection
from workers.dns.wire import HEADER, QR, RD
from workers.upstream import Leg, Outbound, UdpUnsupported, UpstreamError
from workers.upstream.proxy import UNVERIFIED, ProxyUpstream
from workers.upstream.sockets import pack_address

__all__ = ["UdpProbe", "proxy_behind", "server_to_ask"]

log = logging.getLogger(__name__)

SEND_AGAIN_AFTER = (1.0, 2.0, 2.0)
"""Seconds that each datagram has."""
TCP_TIMEOUT = 5.0
"""Seconds for the answer over TCP, after the proxy has connected."""
FAILED_AGAIN_AFTER = 5.0
"""Seconds until a proxy is tried again that could not be used at all."""
AGAIN_AFTER, AGAIN_AFTER_MAX = 60.0, 900.0
"""Seconds until one is asked again that does not relay UDP, or is not sure to; doubled each time."""
DOUBT_INTERVAL = 10.0
"""Seconds between two probes because of doubt."""
PUBLIC_SERVER, DNS_PORT = "1.1.1.1", 53
_QUESTION = b"\0\0\2\0\1"
"""The root's name servers (., NS, IN): every resolver knows them, and the question tells nothing about anybody."""


class UdpProbe:
    """Keeps asking about one proxy. `server`: address and port of a DNS server; `on_known` is called after each judgement."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        proxy: ProxyUpstream,
        server: tuple[str, int],
        on_known: Callable[[], object],
    ) -> None:
        self.proxy = proxy
        self._loop = loop
        self._server = server
        self._on_known = on_known
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked_at = 0.0
        self._again_after = AGAIN_AFTER
        self._start()

    def doubt(self) -> None:
        """Something has shown that UDP may not work, or may work now."""
        if self._task is None and monotonic() - self._asked_at >= DOUBT_INTERVAL:
            self._start()

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None:
            self._asked_at = monotonic()
            self._task = self._loop.create_task(self._run(), name="udp probe")
            self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None

    def _again(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._start)

    async def _run(self) -> None:
        try:
            works = await self._judge()
        except UdpUnsupported:
            works = False
        except UpstreamError as error:
            log.debug("UDP through %s: %s", self.proxy.tag, error)
            self._again(FAILED_AGAIN_AFTER)
            return
        self._on_known()
        if works:
            self._again_after = AGAIN_AFTER
        else:
            self._again(self._again_after)
            self._again_after = min(2 * self._again_after, AGAIN_AFTER_MAX)

    async def _judge(self) -> bool:
        """Return whether UDP is sure to work. Raises UpstreamError when there is no association."""
        host, port = self._server
        if await self._answers_over_udp(host, port):
            self.proxy.judge_udp(True, "")
            return True
        if await self._answers_over_tcp(host, port):
            self.proxy.judge_udp(False, f"it opens associations, but no answer of {host} comes through them")
        else:
            self.proxy.judge_udp(True, UNVERIFIED)
        return False

    async def _answers_over_udp(self, host: str, port: int) -> bool:
        question = _Question(self._loop, host)
        leg = await self.proxy.try_udp(question)
        try:
            send = leg.to(host, port)
            for patience in SEND_AGAIN_AFTER:
                send(memoryview(question.message))
                await asyncio.wait((question.ended,), timeout=patience)
                if question.ended.done():
                    return question.ended.result()
        finally:
            leg.close()
        return False

    async def _answers_over_tcp(self, host: str, port: int) -> bool:
        try:
            sock = await self.proxy.connect(host, port, [])
            _, connection = await self._loop.create_connection(lambda: FramedConnection(self._loop), sock=sock)
        except (UpstreamError, OSError):
            return False
        try:
            async with asyncio.timeout(TCP_TIMEOUT):
                await connection.ask(_message(0))
        except (ConnectionLost, TimeoutError):
            return False
        finally:
            connection.abort()
        return True


class _Question:
    """One question over an association (its LegOwner). `ended`: with True when the answer comes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str) -> None:
        self.source = (bytes(len(pack_address(host) or bytes(4))), 0)
        self.ended: asyncio.Future[bool] = loop.create_future()
        ident = secrets.randbelow(65536)
        self.message = _message(ident)

    def _end(self, answered: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(answered)

    def deliver(self, peer: bytes, port: int, payload: memoryview | bytearray, /) -> None:
        if len(payload) >= HEADER.size and bytes(payload[:2]) == self.message[:2] and payload[2] & (QR >> 8):
            self._end(True)

    def unreachable(self, peer: bytes, port: int, payload: bytes, /) -> None:
        self._end(False)

    def on_leg_end(self, leg: Leg, /) -> None:
        self._end(False)


def _message(ident: int) -> bytes:
    return HEADER.pack(ident, RD, 1, 0, 0, 0) + _QUESTION


def proxy_behind(outbound: Outbound) -> ProxyUpstream | None:
    """Return the proxy that an outbound stands for at present, through groups; None when it is none."""
    while (chosen := getattr(outbound, "chosen", None)) is not None:
        outbound = chosen
    return outbound if isinstance(outbound, ProxyUpstream) else None


def server_to_ask(config: DnsConfig) -> tuple[str, int]:
    """Return address and port of a server that is likely to answer: that of the policy, or else a public one."""
    servers = sorted(config.servers, key=lambda server: server.tag != config.final)
    for server in servers:
        if server.kind in ("udp", "tcp", "addressee") and pack_address(server.server) is not None:
            return server.server, server.port
    return PUBLIC_SERVER, DNS_PORT
