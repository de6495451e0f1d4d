"""Where sockets are let out beside the tun by being bound to an interface (macOS, which has neither marks nor rules)."""

import socket

from shared.system import bind_to_interface

__all__ = ["Egress"]


class Egress:
    """Indexes of the interfaces by which IPv4 and IPv6 leave the machine by themselves; 0 while they do not."""

    def __init__(self, v4: int, v6: int) -> None:
        self.v4 = v4
        self.v6 = v6

    def move(self, v4: int, v6: int) -> None:
        """The machine is in another network: sockets made from now on leave by these."""
        self.v4 = v4
        self.v6 = v6

    def bind(self, sock: socket.socket) -> None:
        """Bind a socket that is not connected yet. Raises OSError: unbound, it would come back out of the tun."""
        bind_to_interface(sock, self.v4 if sock.family == socket.AF_INET else self.v6)
