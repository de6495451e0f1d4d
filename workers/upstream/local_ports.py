"""Local ports run out: one source address has about 28,000 for connections to one address and port (ip(7), ip_local_port_range).

Nothing can be done here but to say so: the way out is the machine's, or another address of the proxy. (Connections to a proxy
on this machine could come from 127.0.0.2 and so on, but the workers give up bind(2).)
"""

import errno
import logging
import socket
from time import monotonic

from shared.metrics import Cell, Counters

__all__ = ["NoLocalPort", "PortWatch"]

log = logging.getLogger(__name__)

TOLD_EVERY = 60.0  # seconds between two warnings
TRIED_EVERY = 0.1
"""Seconds between two attempts while there is none: each looks at all ports, which takes the worker a millisecond and more."""


class NoLocalPort(OSError):
    """All local ports are in use by connections to this address and port."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__(
            errno.EADDRNOTAVAIL,
            f"no local port is left for one more connection to {address} port {port}: widen net.ipv4.ip_local_port_range, "
            f"or give the proxy more addresses",
        )


class PortWatch:
    """Tells whether ports have run out, counts it, and warns of it now and then."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._told_at = float("-inf")
        self._out: dict[tuple[str, int], float] = {}  # address and port -> when to try again

    def check(self, address: str, port: int) -> None:
        """Raise NoLocalPort when there was none for this destination a moment ago."""
        if self._out and monotonic() < self._out.get((address, port), 0.0):
            self._counters[Cell.NO_LOCAL_PORT] += 1
            raise NoLocalPort(address, port)

    def explain(self, error: OSError, address: str, port: int) -> OSError:
        """Return what EADDRNOTAVAIL of a connect(2) to `address` means: NoLocalPort, or just that."""
        if not _has_source(address, port):
            return error
        now = monotonic()
        self._out = {key: until for key, until in self._out.items() if until > now}
        self._out[address, port] = now + TRIED_EVERY
        better = NoLocalPort(address, port)
        self._counters[Cell.NO_LOCAL_PORT] += 1
        if now - self._told_at > TOLD_EVERY:
            self._told_at = now
            log.warning("%s", better.strerror)
        return better


def _has_source(address: str, port: int) -> bool:
    """Whether there is a source address towards `address`: without one connect(2) says EADDRNOTAVAIL as well.

    A UDP socket finds its source in the same way, but its port elsewhere.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError:
            return False
    return True
