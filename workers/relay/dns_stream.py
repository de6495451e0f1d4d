"""DNS over TCP with an application (RFC 1035 4.2.2, RFC 7766): each message behind its length, answers in any order."""

from time import monotonic

from shared.rules.flow import Ends
from workers.relay.services import DnsService
from workers.stack import CloseReason, TcpHandler
from workers.stack.tcp.connection import TcpConnection

__all__ = ["DnsStream"]

PENDING_MAX = 64
"""Questions of one connection without an answer; reading stops until some are answered."""


class DnsStream(TcpHandler):
    """The handler of a connection whose questions the DNS service answers, in place of `flow`, which is told of its end."""

    def __init__(self, connection: TcpConnection, flow: TcpHandler, ends: Ends, dns: DnsService) -> None:
        self._connection = connection
        self._flow = flow
        self._ends = ends
        self._dns = dns
        self._received = bytearray()
        self._answers = bytearray()
        self._pending = 0
        self._asking = self._holds_back = False
        self._eof = False
        self._closed = False
        connection.handler = self
        connection.accept(monotonic())

    def on_data(self, data: memoryview, /) -> int:
        """TcpHandler: give every whole message to the service."""
        if self._pending >= PENDING_MAX:
            self._holds_back = True
            return 0
        self._received += data
        self._ask_all()
        return len(data)

    def _ask_all(self) -> None:
        """Ask what has come whole. An answer may come at once, within the call: then `_answer` leaves the rest to us."""
        received = self._received
        self._asking = True
        while self._pending < PENDING_MAX and len(received) >= 2:
            end = 2 + int.from_bytes(received[:2], "big")
            if len(received) < end:
                break
            message = bytes(received[2:end])
            del received[:end]
            self._pending += 1
            self._dns.ask(message, self._ends, self._answer)
        self._asking = False

    def _answer(self, answer: bytes) -> None:
        if self._closed:
            return
        self._pending -= 1
        self._answers += len(answer).to_bytes(2, "big") + answer
        self._write()
        if not self._asking and not self._closed:
            self._ask_all()
            if self._holds_back and self._pending < PENDING_MAX:
                self._holds_back = False
                self._connection.resume(monotonic())
            self._finish()

    def _write(self) -> None:
        now = monotonic()
        while self._answers and (space := self._connection.send_buffer()) is not None:
            size = min(len(space), len(self._answers))
            space[:size] = self._answers[:size]
            del self._answers[:size]
            self._connection.commit(size, now)

    def on_send_space(self) -> None:
        """TcpHandler: go on writing."""
        self._write()
        self._finish()

    def on_eof(self) -> None:
        """TcpHandler: no more questions; the answers still go out."""
        self._eof = True
        self._finish()

    def _finish(self) -> None:
        if self._eof and not self._pending and not self._answers:
            self._connection.shutdown(monotonic())

    def on_closed(self, reason: CloseReason, /) -> None:
        """TcpHandler: answers that still come are for nobody."""
        self._closed = True
        self._flow.on_closed(reason)
