"""Reads the tun on the master's loop: while packets come, the loop does not sleep between them."""

import asyncio
import errno
import os
from collections.abc import Callable

from engine.ingress import Ingress

__all__ = ["TunReader"]

LOOKS = 200
"""Turns of the event loop without a packet before the master sleeps; as in workers/link.py."""


class TunReader:
    """Reads from when it is made until `close`. `on_gone` is called when the interface has been deleted."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tun_fd: int, ingress: Ingress, on_gone: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._fd = tun_fd
        self._ingress = ingress
        self._on_gone = on_gone
        self._looking = False  # `_look` is scheduled
        self._looks_left = 0  # turns without a packet before it sleeps
        self._closed = False
        loop.add_reader(tun_fd, self._on_readable)

    def pause(self) -> None:
        """Leave what comes to the kernel's queue until `resume`."""
        self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Read again, unless it was closed."""
        if not self._closed:
            self._loop.add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Read no more; harmless when repeated."""
        self._closed = True
        self._loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        try:
            self._ingress.read_batch()
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the interface is down; it may come up again
                self._on_gone()
            return
        self._looks_left = LOOKS
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Keep the loop turning, and so looking at the tun, for LOOKS turns after the last packet."""
        if not self._looks_left:
            self._looking = False
            return
        if self._looks_left < LOOKS:  # nothing came in this turn
            os.sched_yield()
        self._looks_left -= 1
        self._loop.call_soon(self._look)
