"""Sockets in a namespace: one test function holds both ends of a flow and reads as a script.

A socket belongs for ever to the namespace in which it was made, so that only its making needs the namespace. All of them
have a timeout, which turns a hang into a failure.
"""

import hashlib
import socket
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.netns import Namespace, Topology

__all__ = [
    "Endpoint",
    "close_sockets",
    "connect",
    "flow",
    "listening",
    "pseudo_random",
    "reaches",
    "receive",
    "receive_until_eof",
    "reset",
    "tcp_server",
    "udp_socket",
]

TIMEOUT = 20.0  # seconds

Endpoint = tuple[str, int]

_made: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_sockets() -> None:
    """Close every socket that was made here, so that a failed test tells of its failure and not of sockets left open."""
    for sock in _made:
        sock.close()
    _made.clear()


def _prepared(sock: socket.socket) -> socket.socket:
    sock.settimeout(TIMEOUT)
    if sock.type is socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _made.add(sock)
    return sock


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def tcp_server(namespace: Namespace, host: str, port: int = 0, *, backlog: int = 128) -> socket.socket:
    """Return a listening socket; port 0: any free one."""
    with namespace.entered():
        return _prepared(socket.create_server((host, port), family=_family(host), backlog=backlog))


def connect(namespace: Namespace, endpoint: Endpoint) -> socket.socket:
    """Return a connected TCP socket. Raises OSError as the application sees it."""
    with namespace.entered():
        return _prepared(socket.create_connection(endpoint[:2], timeout=TIMEOUT))


def flow(net: Topology, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Open one flow from the client to `server`; return both ends: the application's and the peer's."""
    app = connect(net.client, server.getsockname())
    return app, _prepared(server.accept()[0])


def reaches(net: Topology, server: socket.socket) -> bool:
    """Whether a new flow from the client comes to `server`, and what is sent on it."""
    try:
        app, peer = flow(net, server)
    except OSError:
        return False
    with app, peer:
        app.sendall(b"hello")
        return receive(peer, 5) == b"hello"


@contextmanager
def listening(net: Topology, host: str) -> Iterator[socket.socket]:
    """A TCP server on the internet's address `host`."""
    with tcp_server(net.internet, host) as server:
        yield server


def udp_socket(namespace: Namespace, host: str, port: int = 0) -> socket.socket:
    """Return a UDP socket bound to `host`, which may be a wildcard: `0.0.0.0` or `::`."""
    with namespace.entered():
        sock = _prepared(socket.socket(_family(host), socket.SOCK_DGRAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    sock.bind((host, port))
    return sock


def receive(sock: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes, fewer only at the end of file."""
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)


def receive_until_eof(sock: socket.socket) -> bytes:
    """Return everything up to the peer's FIN."""
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with RST (tcp(7), SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def pseudo_random(size: int, seed: object = 0) -> bytes:
    """Return `size` bytes of which no two stretches are alike; the same for the same seed."""
    return hashlib.shake_128(repr(seed).encode()).digest(size)
