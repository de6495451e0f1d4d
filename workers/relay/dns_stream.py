"""DNS over TCP with an application (RFC 1035 4.2.2, RFC 7766): each message behind its length, answers in any order."""

import asyncio
from time import monotonic

from shared.rules.flow import Ends
from workers.relay.services import DnsService
from workers.stack import CloseReason, TcpHandler
from workers.stack.tcp.connection import TcpConnection

__all__ = ["DnsStream"]

PENDING_MAX = 64
"""Questions of one connection without an answer; reading stops until some are answered."""
INPUT_MAX = 2 + 65535
"""Bytes of questions that are not asked yet, of which one at least is whole; reading stops beyond it."""
OUTPUT_MAX = 256 * 1024
"""Bytes of answers that the application has not taken; reading stops beyond it."""
IDLE_TIMEOUT = 15.0
"""Seconds without question or answer after which we close: some seconds (RFC 7766 6.2.3), and more than a question takes."""


class DnsStream(TcpHandler):
    """The handler of a connection whose questions the DNS service answers, in place of `flow`, which is told of its end."""

    def __init__(self, connection: TcpConnection, flow: TcpHandler, ends: Ends, dns: DnsService) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._flow = flow
        self._ends = ends
        self._dns = dns
        self._received = bytearray()
        self._answers = bytearray()
        self._pending = 0
        self._holds_back = False  # `on_data` has refused bytes
        self._goes_on = False  # `_go_on` is scheduled
        self._eof = False
        self._closed = False
        self._used_at = monotonic()
        connection.handler = self
        connection.accept(self._used_at)
        self._idle = self._loop.call_later(IDLE_TIMEOUT, self._check_idle)

    # questions

    def on_data(self, data: memoryview, /) -> int:
        """TcpHandler: give every whole message to the service."""
        if self._is_full() or len(self._received) > INPUT_MAX:
            self._holds_back = True
            return 0
        self._received += data
        self._used_at = monotonic()
        self._ask_all()
        return len(data)

    def _is_full(self) -> bool:
        return self._pending >= PENDING_MAX or len(self._answers) >= OUTPUT_MAX or self._closed

    def _ask_all(self) -> None:
        received = self._received
        at = 0
        while len(received) - at >= 2 and not self._is_full():
            end = at + 2 + int.from_bytes(received[at : at + 2], "big")
            if len(received) < end:
                break
            message = bytes(received[at + 2 : end])
            at = end
            self._pending += 1
            self._dns.ask(message, self._ends, self._answer)
        del received[:at]

    def on_eof(self) -> None:
        """TcpHandler: no more questions; the answers still go out."""
        self._eof = True
        self._finish()

    # answers

    def _answer(self, answer: bytes) -> None:
        if self._closed:
            return
        self._pending -= 1
        self._used_at = monotonic()
        self._answers += len(answer).to_bytes(2, "big") + answer
        self._write()

    def on_send_space(self) -> None:
        """TcpHandler: go on writing."""
        self._write()

    def _write(self) -> None:
        answers = self._answers
        now = monotonic()
        while answers and (space := self._connection.send_buffer()) is not None:
            size = min(len(space), len(answers))
            space[:size] = answers[:size]
            del answers[:size]
            self._connection.commit(size, now)
        if (self._holds_back or self._received) and not self._goes_on and not self._is_full():
            self._goes_on = True
            self._loop.call_soon(self._go_on)
        self._finish()

    def _go_on(self) -> None:
        """There is room for more questions. In a turn of its own: an answer may be given within the call that asks."""
        self._goes_on = self._holds_back = False
        if not self._closed:
            self._ask_all()
            self._connection.resume(monotonic())

    # the end

    def _finish(self) -> None:
        if self._eof and not self._pending and not self._answers and not self._closed:
            self._connection.shutdown(monotonic())

    def _check_idle(self) -> None:
        idle_for = monotonic() - self._used_at
        if idle_for < IDLE_TIMEOUT:
            self._idle = self._loop.call_later(IDLE_TIMEOUT - idle_for, self._check_idle)
        else:
            self._connection.shutdown(monotonic())

    def on_closed(self, reason: CloseReason, /) -> None:
        """TcpHandler: answers that still come are for nobody."""
        self._closed = True
        self._idle.cancel()
        self._flow.on_closed(reason)
