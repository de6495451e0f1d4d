"""Tells when a Mac moves to another network, and when the tun goes: the messages of the routing socket (route(4)).

Messages come in storms, ours among them (those of the helpers have other process ids than we), and may be lost, when the
buffer is full or the machine wakes. So they only say that it is time to look: what counts is the default route as it is
DEBOUNCE seconds after the last one, and every POLL_INTERVAL seconds it is looked at unasked.
"""

import asyncio
import errno
import logging
from collections.abc import Callable

from engine.darwin import system
from engine.darwin.gateway import DefaultRoute
from engine.darwin.route import RTM_ADD, RTM_CHANGE, RTM_DELADDR, RTM_DELETE, RTM_IFINFO, RTM_NEWADDR, parse_messages
from engine.netconf.darwin_kernel import find_default_route

__all__ = ["RouteWatch", "egress"]

log = logging.getLogger(__name__)

DEBOUNCE = 0.5  # seconds
POLL_INTERVAL = 30.0  # seconds
MESSAGE_MAX = 2048  # bytes
BATCH = 64
"""Messages read before the loop may serve other descriptors."""
IFF_UP = 0x1  # net/if.h
_OF_INTEREST = frozenset((RTM_ADD, RTM_CHANGE, RTM_DELETE, RTM_NEWADDR, RTM_DELADDR, RTM_IFINFO))

Defaults = tuple[DefaultRoute | None, DefaultRoute | None]
"""Of IPv4 and of IPv6."""


def egress(name: str = "") -> tuple[int, int]:
    """Return the indexes of the interfaces by which IPv4 and IPv6 leave this machine by themselves, 0 where they do not.

    `name`: the engine's own tun.
    """
    try:
        own = system.interface_index(name) if name else 0
        return _indexes(_defaults(own))
    except OSError as error:
        log.warning("the routing table cannot be read: %s", error)
        return 0, 0


def _defaults(own_index: int) -> Defaults:
    return find_default_route(4, own_index=own_index), find_default_route(6, own_index=own_index)


def _indexes(defaults: Defaults) -> tuple[int, int]:
    v4, v6 = (default.index if default is not None else 0 for default in defaults)
    return v4, v6


class RouteWatch:
    """Calls `on_moved(egress)` when the machine's default routes have changed, or routes into the tun were lost.

    `on_change(up)` and `on_gone` as LinkWatch does. Raises OSError when there is no interface `name`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        on_change: Callable[[bool], None],
        on_gone: Callable[[], None],
        on_moved: Callable[[tuple[int, int]], None],
    ) -> None:
        self._loop = loop
        self._name = name
        self._on_change = on_change
        self._on_gone = on_gone
        self._on_moved = on_moved
        self._up = True
        self._lost = False  # a route into the tun was deleted
        self._index = system.interface_index(name)
        self._defaults = _defaults(self._index)
        self._socket = system.monitor_socket()
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._timer = loop.call_later(POLL_INTERVAL, self._look)

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            try:
                data = self._socket.recv(MESSAGE_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost, in a storm of them
                    raise
                self._look_soon()
                continue
            for message in parse_messages(data):
                if message.kind not in _OF_INTEREST:
                    continue
                if message.index == self._index:
                    self._lost |= message.kind == RTM_DELETE
                    if message.kind == RTM_IFINFO:
                        self._note_state(bool(message.flags & IFF_UP))
                self._look_soon()

    def _note_state(self, up: bool) -> None:
        if up != self._up:
            self._up = up
            self._on_change(up)

    def _look_soon(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(DEBOUNCE, self._look)

    def _look(self) -> None:
        self._timer = self._loop.call_later(POLL_INTERVAL, self._look)
        try:
            gone = system.interface_index(self._name) != self._index
        except OSError:
            gone = True
        if gone:
            self._timer.cancel()
            self._on_gone()
            return
        try:
            defaults = _defaults(self._index)
        except OSError as error:
            log.warning("the routing table cannot be read: %s", error)
            return
        if defaults != self._defaults or self._lost:
            self._lost = False
            self._defaults = defaults
            self._on_moved(_indexes(defaults))
