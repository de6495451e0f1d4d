"""The servers that the demo's traffic is meant for: `python -m engine.demo.targets ADDRESS...`.

On each address: a bulk server (engine/demo/bulk.py), a TCP echo, a small HTTP server and a UDP echo. Prints `listening`
once all of them do, and runs until SIGTERM. The port REFUSED_PORT is left without a server on purpose.
"""

import asyncio
import hashlib
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import cast

import uvloop

from engine.demo import bulk

__all__ = [
    "BULK_PORT",
    "DATAGRAM_MAX",
    "ECHO_PORT",
    "HTTP_PORT",
    "RECEIVE_BUFFER",
    "REFUSED_PORT",
    "http_request",
    "http_response",
]

ECHO_PORT = 7
REFUSED_PORT = 9
HTTP_PORT = 80
BULK_PORT = 5001

DATAGRAM_MAX = 65_535
"""Bytes that hold any datagram."""
RECEIVE_BUFFER = 4 * 1024 * 1024
"""Bytes asked for with SO_RCVBUF on UDP sockets; the kernel may grant fewer."""
BACKLOG = 1024

_REQUEST = re.compile(rb"GET (/\w*) HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*\r\n")


def http_request(path: str) -> bytes:
    """Return a GET request for `path` on a connection that stays open."""
    return f"GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n".encode()


def http_response(path: str) -> bytes:
    """Return the answer to a request for `path`; each path has its own, so a mixed-up answer is noticed."""
    body = hashlib.sha256(path.encode()).hexdigest()
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class TcpEcho(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour, not by inheritance

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Http(asyncio.Protocol):
    """Answers GET requests (RFC 9112), keep-alive and pipelined; anything else closes the connection."""

    REQUEST_MAX = 8192

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour, not by inheritance
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while request := _REQUEST.match(self._received):
            self._transport.write(http_response(request[1].decode()))
            self._received = self._received[request.end() :]
        if b"\r\n\r\n" in self._received or len(self._received) > self.REQUEST_MAX:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self._transport.close()


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=BACKLOG)


def _udp(address: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    bound.bind((address, port))
    return bound


def _serve_bulk(listener: socket.socket) -> None:
    while True:
        flow, _ = listener.accept()
        _in_background(_serve_flow, flow)


def _serve_flow(flow: socket.socket) -> None:
    with flow:
        try:
            bulk.serve(flow)
        except OSError as error:
            # The client sees its flow break and reports it; this line tells the side of the server.
            print(f"bulk flow: {error}", file=sys.stderr, flush=True)


def _echo_datagrams(bound: socket.socket) -> None:
    """Send every datagram back, one of length zero too (which asyncio's transports of Python 3.11 do not)."""
    while True:
        try:
            payload, peer = bound.recvfrom(DATAGRAM_MAX)
            bound.sendto(payload, peer)
        except OSError as error:  # an ICMP error about an earlier datagram: its sender is gone
            print(f"UDP echo: {error}", file=sys.stderr, flush=True)


def _in_background(serve: Callable[[socket.socket], None], argument: socket.socket) -> None:
    threading.Thread(target=serve, args=(argument,), daemon=True).start()


async def run(addresses: Sequence[str]) -> None:
    """Serve on all `addresses` until SIGTERM. Raises OSError when one of them cannot be bound."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    servers = []
    for address in addresses:
        servers.append(await loop.create_server(TcpEcho, sock=_listen(address, ECHO_PORT), backlog=BACKLOG))
        servers.append(await loop.create_server(Http, sock=_listen(address, HTTP_PORT), backlog=BACKLOG))
        _in_background(_serve_bulk, _listen(address, BULK_PORT))
        _in_background(_echo_datagrams, _udp(address, ECHO_PORT))
    print("listening", flush=True)
    await stop.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1:]))
