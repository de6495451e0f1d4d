"""DNS over UDP: sent again when it is lost, hard to forge, and over TCP when UDP does not do (RFC 1035 4.2, RFC 5452).

A forged answer must have the port (of a direct question), the identifier, and the spelling of the name: its letters are sent in
random case, which servers repeat (draft-vixie-dnsext-dns0x20).
"""

import asyncio
import secrets
from collections.abc import Callable
from functools import partial
from typing import Protocol

from workers.dns import Server
from workers.dns.wire import HEADER, TC, BadReply, parse_reply
from workers.upstream import UpstreamError

__all__ = ["Accepts", "DatagramPath", "Ticket", "UdpServer", "in_random_case"]

SEND_AGAIN_AFTER = (1.0, 2.0)
"""Seconds that each sending has; after the last, TCP has what is left of the time. Longer than the way through most proxies."""


Accepts = Callable[[bytes], bool]
"""Tells whether a datagram is an answer to the question; others are passed over."""


class Ticket(Protocol):
    """The right to ask one question of one server over UDP.

    ident   the identifier that the question is to have
    answer  done with the first datagram of that server that has this identifier and is accepted
    """

    ident: int
    answer: "asyncio.Future[bytes]"

    def send(self, message: bytes) -> None:
        """Send a datagram. Raises OSError."""

    def close(self) -> None:
        """The question is over."""


class DatagramPath(Protocol):
    """A way for datagrams: directly, or through a proxy."""

    async def open(self, host: str, port: int, accepts: Accepts) -> Ticket:
        """Return a ticket for a server at an address or name. Raises UpstreamError when there is no way for UDP."""

    def note_silence(self) -> None:
        """A server that answers over TCP has not over UDP."""


class UdpServer:
    """One server at an address or name. `tcp` is the same one over TCP."""

    def __init__(self, path: DatagramPath, tcp: Server, host: str, port: int) -> None:
        self._path = path
        self._tcp = tcp
        self._host = host
        self._port = port

    async def exchange(self, message: bytes) -> bytes:
        """Return the answer to a message. Raises ServerFailed."""
        try:
            answer = await self._over_udp(message)
        except TimeoutError:
            answer = await self._tcp.exchange(message)
            self._path.note_silence()
            return answer
        return answer if answer is not None else await self._tcp.exchange(message)

    async def _over_udp(self, message: bytes) -> bytes | None:
        """Return the answer; None: to be asked over TCP. Raises TimeoutError when there is none."""
        end = message.index(0, 12) + 5
        question = in_random_case(message[12 : end - 4]) + message[end - 4 : end]
        try:
            ticket = await self._path.open(self._host, self._port, partial(_is_answer, question.lower()))
        except UpstreamError:
            return None
        try:
            sent = ticket.ident.to_bytes(2, "big") + message[2:12] + question + message[end:]
            for patience in SEND_AGAIN_AFTER:
                ticket.send(sent)
                await asyncio.wait((ticket.answer,), timeout=patience)
                if ticket.answer.done():
                    return _whole_answer(ticket.answer.result(), question)
        except OSError:  # ICMP: nobody is there; or the network is down
            return None
        finally:
            ticket.close()
        raise TimeoutError

    def close(self) -> None:
        """Close the TCP connection. The path belongs to whoever made it."""
        self._tcp.close()


def _is_answer(question: bytes, datagram: bytes) -> bool:
    """`question` in lower case. Errors may come without the question (RFC 1035 4.1.2 allows for none)."""
    try:
        reply = parse_reply(datagram)
    except BadReply:
        return False
    return reply.question.lower() == question or (not reply.question and not reply.records)


def _whole_answer(answer: bytes, question: bytes) -> bytes | None:
    """None: TCP is to tell. It is truncated; or spelt otherwise: not forged surely, but by a server that does not repeat case."""
    is_truncated = int.from_bytes(answer[2:4], "big") & TC
    is_spelt_so = answer[12 : 12 + len(question)] == question or len(answer) == HEADER.size
    return answer if is_spelt_so and not is_truncated else None


def in_random_case(name: bytes) -> bytes:
    """Return a wire name with the case of each letter at random."""
    lower = name.lower()
    bits = secrets.randbits(len(lower))
    # 0x20 is what tells a letter from its capital.
    return bytes(
        byte ^ 0x20 if 0x61 <= byte <= 0x7A and bits >> place & 1 else byte for place, byte in enumerate(lower)
    )
