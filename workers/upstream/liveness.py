"""Connections to proxies notice that their other end has vanished: a machine without power sends no FIN.

Without it they would be held for ever when they are idle, and for a quarter of an hour under load. The kernel's keep-alive and
TCP_USER_TIMEOUT (tcp(7), RFC 5482) do it, on one clock: where a user time-out is set, Linux ends an idle connection by that
time rather than by a number of questions (tcp_keepalive_timer in net/ipv4/tcp_timer.c), so both are set to the same.
"""

import socket

from shared.config import DialConfig

__all__ = ["QUESTIONS", "Liveness"]

QUESTIONS = 3
"""That remain without an answer until a silent connection is given up."""
UNANSWERED_MAX = 60
"""Seconds for which sent data may wait for its acknowledgment where no questions are asked."""


class Liveness:
    """How the sockets of one outbound are watched."""

    def __init__(self, dial: DialConfig) -> None:
        patience = UNANSWERED_MAX
        options = {}
        if dial.keep_alive:
            patience = dial.keep_alive_idle + QUESTIONS * dial.keep_alive_interval
            options = {
                "TCP_KEEPIDLE": dial.keep_alive_idle,
                "TCP_KEEPALIVE": dial.keep_alive_idle,  # its name on macOS
                "TCP_KEEPINTVL": dial.keep_alive_interval,
                "TCP_KEEPCNT": QUESTIONS,
            }
        options["TCP_USER_TIMEOUT"] = patience * 1000  # milliseconds
        self._asks = dial.keep_alive
        self._options = [(getattr(socket, name), value) for name, value in options.items() if hasattr(socket, name)]

    def watch(self, sock: socket.socket) -> None:
        """Watch a connected TCP socket. Raises OSError."""
        if self._asks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in self._options:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
