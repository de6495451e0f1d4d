"""DNS over UDP: sent again when it is lost, hard to forge, and over TCP when UDP does not do (RFC 1035 4.2, RFC 5452).

A forged answer must have the port (of a direct question), the identifier, and the spelling of the name: its letters are sent in
random case, which servers repeat (draft-vixie-dnsext-dns0x20).
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from typing import Protocol

from workers.dns import Server
from workers.dns.wire import TC, BadReply, parse_reply
from workers.stack import Refusal
from workers.upstream import UpstreamError

__all__ = ["DatagramPath", "DirectPath", "Ticket", "UdpServer", "in_random_case"]

SEND_AGAIN_AFTER = (1.0, 2.0)
"""Seconds that each sending has; after the last, TCP has what is left of the time. Longer than the way through most proxies."""
MESSAGE_MAX = 65535


class Ticket(Protocol):
    """The right to ask one question of one server over UDP.

    ident   the identifier that the question is to have
    answer  done with the first datagram that has this identifier and comes from that server
    """

    ident: int
    answer: "asyncio.Future[bytes]"

    def send(self, message: bytes) -> None:
        """Send a datagram. Raises OSError."""

    def renew(self) -> None:
        """The answer was none: wait for another one."""

    def close(self) -> None:
        """The question is over."""


class DatagramPath(Protocol):
    """A way for datagrams: directly, or through a proxy."""

    async def open(self, address: str, port: int) -> Ticket:
        """Raises UpstreamError when there is no way for UDP."""

    def close(self) -> None:
        """Release everything."""


class UdpServer:
    """One server at an address. `tcp` is the same one over TCP."""

    def __init__(self, name: str, path: DatagramPath, tcp: Server, address: str, port: int) -> None:
        self._name = name
        self._path = path
        self._tcp = tcp
        self._address = address
        self._port = port

    async def exchange(self, message: bytes) -> bytes:
        """Return the answer to a message. Raises ServerFailed."""
        answer = await self._over_udp(message)
        return answer if answer is not None else await self._tcp.exchange(message)

    async def _over_udp(self, message: bytes) -> bytes | None:
        """Return the answer; None: to be asked over TCP."""
        try:
            ticket = await self._path.open(self._address, self._port)
        except UpstreamError:
            return None
        try:
            end = message.index(0, 12) + 5
            question = in_random_case(message[12 : end - 4]) + message[end - 4 : end]
            sent = ticket.ident.to_bytes(2, "big") + message[2:12] + question + message[end:]
            for patience in SEND_AGAIN_AFTER:
                ticket.send(sent)
                answer = await _first_answer(ticket, question, patience)
                if answer is not None:
                    return answer if not int.from_bytes(answer[2:4], "big") & TC else None
        except OSError:  # ICMP: nobody is there; or the network is down
            return None
        finally:
            ticket.close()
        return None

    def close(self) -> None:
        """Close the TCP connection. The path belongs to whoever made it."""
        self._tcp.close()


async def _first_answer(ticket: Ticket, question: bytes, patience: float) -> bytes | None:
    """Return the first answer to `question` within `patience` seconds; None without one. Raises OSError.

    What only differs in case is no forgery, but what a server sends that does not repeat the case: TCP will tell.
    """
    try:
        async with asyncio.timeout(patience):
            while True:
                answer = await ticket.answer
                try:
                    reply = parse_reply(answer)
                except BadReply:
                    reply = None
                if reply is not None and (reply.question == question or (not reply.question and not reply.records)):
                    return answer
                if reply is not None and reply.question.lower() == question.lower():
                    return None
                ticket.renew()
    except TimeoutError:
        ticket.renew()  # who stops waiting for a future cancels it
        return None


def in_random_case(name: bytes) -> bytes:
    """Return a wire name with the case of each letter at random."""
    lower = name.lower()
    bits = secrets.randbits(len(lower))
    # 0x20 is what tells a letter from its capital.
    return bytes(
        byte ^ 0x20 if 0x61 <= byte <= 0x7A and bits >> place & 1 else byte for place, byte in enumerate(lower)
    )


class DirectPath:
    """Datagrams past the proxy: each question from a socket, and so a port, of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make_socket: Callable[[int, int], socket.socket]) -> None:
        """`make_socket`, given family and kind, returns a non-blocking socket that is exempt from the tun."""
        self._loop = loop
        self._make_socket = make_socket

    async def open(self, address: str, port: int) -> Ticket:
        """Raises UpstreamError when there is no route."""
        try:
            sock = self._make_socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.connect((address, port))
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise UpstreamError(f"{address} cannot be reached: {error.strerror}", Refusal.NET_UNREACHABLE) from error
        return _DirectTicket(self._loop, sock)

    def close(self) -> None:
        """There is nothing to release: sockets end with their tickets."""


class _DirectTicket:
    """A connected socket: the kernel takes datagrams of the server alone, and tells of ICMP errors."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.ident = secrets.randbelow(65536)
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self._loop = loop
        self._socket = sock
        loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def renew(self) -> None:
        self.answer = self._loop.create_future()

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # looked at, whoever has given up

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            if not self.answer.done():
                self.answer.set_exception(error)
            return
        if not self.answer.done() and int.from_bytes(data[:2], "big") == self.ident:
            self.answer.set_result(data)
