"""Datagrams of questions through an outbound: the tickets that udp.py asks for, over the legs that outbounds give.

Through a proxy all questions share a leg, since each costs a connection to the proxy and a round trip. A direct question has
one, and so a port, of its own (RFC 5452 section 9.2).
"""

import asyncio
import secrets
from collections.abc import Callable
from time import monotonic

from workers.dns.servers.udp import Accepts, Ticket
from workers.upstream import Leg, Outbound, ProxyFailed, Trail
from workers.upstream.sockets import pack_address

__all__ = ["LegPath"]

IDLE_TIMEOUT = 30.0
"""Seconds without a question after which a shared leg is closed."""
AGE_MAX = 300.0
"""Seconds after which a shared leg takes no more questions: a group may have chosen another member meanwhile."""
IDENTIFIERS = 65536
TICKETS_MAX = IDENTIFIERS // 4
"""Questions under way over a leg; identifiers are to stay hard to guess."""


class LegPath:
    """The way through one outbound (a DatagramPath). `on_silence` is told of servers that answer over TCP alone."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbound: Outbound, on_silence: Callable[[], object] = lambda: None
    ) -> None:
        self._loop = loop
        self._outbound = outbound
        self._on_silence = on_silence
        self._shared: dict[str, _Questions] = {}  # by the server's name, or the IP version of its address
        self._opening = asyncio.Lock()

    async def open(self, host: str, port: int, accepts: Accepts) -> Ticket:
        """See DatagramPath. Raises UpstreamError when there is no way for UDP."""
        packed = pack_address(host)
        key = host if packed is None else str(len(packed))
        async with self._opening:
            questions = self._shared.get(key)
            if questions is None or not questions.takes_more:
                questions = _Questions(self._loop, bytes(len(packed or b"") or 4), alone=packed is None)
                await questions.open(self._outbound, None if packed is not None else host)
                if not questions.is_direct:
                    self._shared[key] = questions
        return questions.ticket(packed or host, port, accepts)

    def note_silence(self) -> None:
        """See DatagramPath."""
        self._on_silence()

    def close(self) -> None:
        """Close the shared legs; whoever waits for an answer over one is told."""
        for questions in self._shared.values():
            questions.end()
        self._shared.clear()


class _Questions:
    """One leg, and the questions under way over it (its LegOwner). `alone`: it leads to one name, whoever that is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, any_address: bytes, *, alone: bool) -> None:
        self.source = (any_address, 0)
        self.is_direct = False
        self._loop = loop
        self._alone = alone
        self._opened_at = monotonic()
        self._leg: Leg | None = None
        self._tickets: dict[int, _LegTicket] = {}
        self._idle: asyncio.TimerHandle | None = None

    async def open(self, outbound: Outbound, host: str | None) -> None:
        """Raises UpstreamError."""
        trail: Trail = []
        self._leg = await outbound.open_udp(self, host, trail)
        self.is_direct = trail[-1].kind == "direct"

    @property
    def takes_more(self) -> bool:
        return self._leg is not None and len(self._tickets) < TICKETS_MAX and monotonic() - self._opened_at < AGE_MAX

    def ticket(self, host: bytes | str, port: int, accepts: Accepts) -> "_LegTicket":
        if self._leg is None:
            raise ProxyFailed("the association ended as soon as it was open")
        ident = secrets.randbelow(IDENTIFIERS)
        while ident in self._tickets:
            ident = secrets.randbelow(IDENTIFIERS)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        peer = None if self._alone or isinstance(host, str) else (host, port)
        ticket = self._tickets[ident] = _LegTicket(self, self._loop, self._leg, ident, peer, accepts, (host, port))
        return ticket

    def give_back(self, ticket: "_LegTicket") -> None:
        self._tickets.pop(ticket.ident, None)
        if self._tickets or self._leg is None:
            return
        if self.is_direct or not self.takes_more:
            self.end()
        else:
            self._idle = self._loop.call_later(IDLE_TIMEOUT, self.end)

    def end(self) -> None:
        """Close the leg; whoever waits is told."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._leg is not None:
            self._leg.close()
            self._leg = None
        for ticket in self._tickets.values():
            ticket.fail(ConnectionResetError("the association has ended"))

    # LegOwner

    def deliver(self, peer: bytes, port: int, payload: memoryview | bytearray, /) -> None:
        """A datagram: to the question with its identifier, if that was asked of this peer."""
        ticket = self._tickets.get(int.from_bytes(payload[:2], "big"))
        if ticket is not None and ticket.peer in (None, (peer, port)):
            ticket.take(bytes(payload))

    def unreachable(self, peer: bytes, port: int, payload: bytes, /) -> None:
        """Nobody is at the server's port."""
        ticket = self._tickets.get(int.from_bytes(payload[:2], "big"))
        if ticket is not None:
            ticket.fail(ConnectionRefusedError("nobody is at that port"))

    def on_leg_end(self, leg: Leg, /) -> None:
        """The proxy has ended the association."""
        self.end()


class _LegTicket:
    """See Ticket. `peer`: who may answer; None: the leg leads nowhere else."""

    __slots__ = ("_accepts", "_leg", "_questions", "_target", "answer", "ident", "peer")

    def __init__(
        self,
        questions: _Questions,
        loop: asyncio.AbstractEventLoop,
        leg: Leg,
        ident: int,
        peer: tuple[bytes, int] | None,
        accepts: Accepts,
        target: tuple[bytes | str, int],
    ) -> None:
        self.ident = ident
        self.peer = peer
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self._questions = questions
        self._accepts = accepts
        self._leg = leg
        self._target = target

    def send(self, message: bytes) -> None:
        try:
            self._leg.to(*self._target)(memoryview(message))
        except ValueError as error:
            raise OSError(f"the way does not lead there: {error}") from error

    def take(self, datagram: bytes) -> None:
        if not self.answer.done() and self._accepts(datagram):
            self.answer.set_result(datagram)

    def fail(self, error: OSError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def close(self) -> None:
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # looked at, whoever has given up
        self._questions.give_back(self)
