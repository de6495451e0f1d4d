"""Flows stay here, new ones go to other workers: what a worker does when another generation takes over.

    TellKeys   `tell`: serve the ring up to where the master stood, then say which flows there are, or what has changed
    Drain      `drain`: from now on only known flows are served; once a second say which have ended; at the end, that none is left

The master reads nothing from the tun between the last TellKeys and the switch. So every packet that it gave to this worker is
served when the keys are told, and no flow is missing. Flows are compared a second apart, so that a packet, or a flow that
begins or ends, costs nothing.

A flow that has ended here may begin anew, with the same ports, while the master still thinks that it lives here. Its SYN is
ignored once the end was told, and meets the new worker when it is sent again; before that it is served here, as if no other
worker had taken over.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Set
from itertools import islice

from shared import control
from shared.metrics import Cell, Counters

__all__ = ["Handover"]

INTERVAL = 1.0  # seconds between two messages about ends
KEYS_IN_MESSAGE = 500
"""Of 38 bytes at most: a message stays below the limit of the channel (shared/channel.py)."""


class Handover:
    """Give it the messages of the master about keys.

    live         makes a set of all flows that packets may come for, as keys of the master (control.Keys)
    serve_until  serves the ring up to an entry of its stream
    refuse_new   is given the flows that alone may begin from now on; the set changes later
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        *,
        live: Callable[[], set[bytes]],
        serve_until: Callable[[int], None],
        refuse_new: Callable[[Set[bytes]], None],
        tell: Callable[[control.FromWorker], bool],
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._live = live
        self._serve_until = serve_until
        self._refuse_new = refuse_new
        self._tell = tell
        self._told: set[bytes] = set()  # flows that the master knows
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, question: control.TellKeys) -> None:
        """Answer at once."""
        self._serve_until(question.until)
        if question.afresh:
            self._told.clear()
        live = self._live()
        begun, ended = live - self._told, self._told - live
        self._told = live
        messages = [control.Keys(question.id, ended=part, last=False) for part in _parts(ended)]
        messages += [control.Keys(question.id, begun=part, last=False) for part in _parts(begun)]
        # Without the last one the master does not switch.
        all(self._tell(message) for message in (*messages, control.Keys(question.id)))

    def drain(self) -> None:
        """Others take new flows from now on."""
        self._refuse_new(self._told)
        self._look()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        live = self._live()
        for part in _parts(self._told - live):
            if self._tell(control.Keys(0, ended=part)):
                self._told.difference_update(part)
        if not live and not self._counters[Cell.DNS_WAITING]:
            self._tell(control.Drained())
        self._timer = self._loop.call_later(INTERVAL, self._look)


def _parts(keys: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Cut into what fits in a message."""
    rest = iter(keys)
    while part := tuple(islice(rest, KEYS_IN_MESSAGE)):
        yield part
