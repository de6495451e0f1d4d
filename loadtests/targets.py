"""What the load is sent to: `python -m loadtests.targets ADDRESS...`, behind the proxy.

The demo's servers (engine/demo/targets.py: HTTP, TCP and UDP echo, checked bulk transfers), and on each address as well a DNS
server and a WebSocket echo. Prints `listening` once all of them do, and runs until SIGTERM.
"""

import asyncio
import hashlib
import socket
import struct
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address

import dns.flags
import dns.message
import dns.rrset
import uvloop
from aiohttp import WSMsgType, web

from engine.demo import targets

__all__ = ["DNS_PORT", "WEBSOCKET_PORT", "address_of"]

DNS_PORT = 53
WEBSOCKET_PORT = 8080
ANSWER_TTL = 60  # seconds
MESSAGE_MAX = 1024 * 1024  # bytes


def address_of(name: str) -> str:
    """Return the address that the DNS server gives for `name`: each name has its own, so a mixed-up answer is noticed."""
    (number,) = struct.unpack("!I", hashlib.sha256(name.rstrip(".").lower().encode()).digest()[:4])
    return str(IPv4Address(number))


class DnsServer(asyncio.DatagramProtocol):
    """Answers every question for an A record with `address_of` its name, everything else with no record."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        try:
            query = dns.message.from_wire(data)
            response = dns.message.make_response(query, recursion_available=True)
            (question,) = query.question
        except (dns.exception.DNSException, ValueError):
            return
        name = question.name.to_text()
        if question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(name, ANSWER_TTL, "IN", "A", address_of(name)))
        self._transport.sendto(response.to_wire(), address)  # type: ignore[attr-defined]


async def echo_messages(request: web.Request) -> web.WebSocketResponse:
    """A WebSocket that sends back what comes."""
    answers = web.WebSocketResponse(max_msg_size=MESSAGE_MAX)
    await answers.prepare(request)
    async for message in answers:
        if message.type == WSMsgType.BINARY:
            await answers.send_bytes(message.data)
        elif message.type == WSMsgType.TEXT:
            await answers.send_str(message.data)
    return answers


async def run(addresses: Sequence[str]) -> None:
    """Serve on all `addresses` until SIGTERM. Raises OSError when one of them cannot be bound."""
    loop = asyncio.get_running_loop()
    app = web.Application()
    app.router.add_get("/", echo_messages)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        await loop.create_datagram_endpoint(DnsServer, (address, DNS_PORT), family=family)
        await web.TCPSite(runner, address, WEBSOCKET_PORT).start()
    await targets.run(addresses)
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1:]))
