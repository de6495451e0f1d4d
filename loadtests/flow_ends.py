"""The two ends of a flow: by them the engine knows it, and so do users who tell what became of it."""

import socket
from typing import NamedTuple, Self

__all__ = ["FlowEnds"]


class FlowEnds(NamedTuple):
    """Addresses are text."""

    network: str
    """tcp or udp"""
    source: str
    source_port: int
    destination: str
    destination_port: int

    @classmethod
    def of(cls, sock: socket.socket) -> Self:
        """Return the ends of a connected socket. Raises OSError when it is connected no more."""
        network = "udp" if sock.type == socket.SOCK_DGRAM else "tcp"
        return cls(network, *sock.getsockname()[:2], *sock.getpeername()[:2])
