"""Tells what others do to this machine's network, ours included, while the engine runs (rtnetlink(7)).

The kernel's messages come in storms, and may be lost in one. What concerns our own changes is told by the message itself; of all
else a message only says that it is time to look, DEBOUNCE seconds later, and what counts is how things are then.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from time import monotonic

from engine.netconf.picture import Picture, read_picture
from engine.netconf.plan import TABLE_MAIN, Bypass, NetworkPlan, socket_table
from engine.netconf.rtnetlink import (
    GROUPS,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETRULE,
    RTM_NEWROUTE,
    AddressMessage,
    Message,
    RouteMessage,
    RuleMessage,
    dump,
    parse,
    read_waiting,
)
from engine.netconf.rules import RULE_COUNT
from engine.netconf.throw import PROTOCOL, RTN_THROW

__all__ = ["SurroundingsWatch"]

log = logging.getLogger(__name__)

DEBOUNCE = 0.2  # seconds
REST = 20
"""A look that takes long (a router has a million routes) is followed by a rest this many times as long."""

Rules = Counter[tuple[int, int]]
"""How many rules there are of each family and priority."""


class SurroundingsWatch:
    """Watches for the changes of `plan`, which have been made, and for the machine's own.

    on_lost      changes of ours are gone; given bypasses, it is only these, and none when we have ended them ourselves
    on_conflict  another program has put something where ours is; a line for people
    on_picture   the machine's network as it was and as it is

    Call `start` first. Raises OSError when there is no interface of the plan's name.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plan: NetworkPlan,
        *,
        on_lost: Callable[[list[Bypass]], None],
        on_conflict: Callable[[str], None],
        on_picture: Callable[[Picture, Picture], None],
    ) -> None:
        self._loop = loop
        self._plan = plan
        self._on_lost = on_lost
        self._on_conflict = on_conflict
        self._on_picture = on_picture
        self._tun = socket.if_nametoindex(plan.interface)
        self._tables = (plan.table, socket_table(plan.table))
        self._lost = False
        self._bypasses: list[Bypass] = []
        """Routes of bypasses that are gone."""
        self._dirty = self._rules_dirty = False
        self._rules: Rules = Counter()
        """Ours."""
        self._foreign: Rules = Counter()
        """Those of others among them, as far as they were told."""
        self.picture: Picture | None = None
        """As it was at the last look."""
        self._timer: asyncio.TimerHandle | None = None
        self._look_task: asyncio.Task[None] | None = None
        self._rest_until = 0.0
        self._closed = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, GROUPS))

    async def start(self) -> None:
        """Look, and watch from now on. Raises OSError."""
        # In threads, since a large table takes its time.
        self.picture = await asyncio.to_thread(read_picture, self._tun)
        self._rules = await asyncio.to_thread(_rules, self._plan)
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    async def close(self) -> None:
        """Watch no more."""
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._look_task is not None:
            await asyncio.wait([self._look_task])

    def _on_readable(self) -> None:
        for data in read_waiting(self._socket):
            if data is None:
                self._lost = self._dirty = self._rules_dirty = True  # what was dropped may have been any of them
            else:
                for kind, message in parse(data):
                    self._take(kind, message)
        if self._lost or self._bypasses or self._dirty or self._rules_dirty:
            self._look_soon()

    def _take(self, kind: int, message: Message) -> None:
        match message:
            case RuleMessage():
                if self._plan.priority <= message.priority < self._plan.priority + RULE_COUNT:
                    self._rules_dirty = True
                    self._lost |= kind == RTM_DELRULE
            case RouteMessage() if message.table in self._tables:
                self._take_own_route(kind, message)
            case AddressMessage() if message.interface == self._tun:
                self._lost |= kind == RTM_DELADDR
            case RouteMessage() if message.table != TABLE_MAIN:
                pass
            case _:
                self._dirty = True

    def _take_own_route(self, kind: int, route: RouteMessage) -> None:
        is_bypass = route.kind == RTN_THROW and route.protocol == PROTOCOL
        if kind == RTM_DELROUTE and is_bypass:
            address = route.destination.partition("/")[0]
            self._bypasses.append(Bypass(family=route.family, address=address, table=route.table))
        elif kind == RTM_DELROUTE:
            self._lost |= route.interface == self._tun
        elif kind == RTM_NEWROUTE and not is_bypass and route.interface != self._tun:
            self._on_conflict(
                f"another program has made an IPv{route.family} route to {route.destination} in our table {route.table}: "
                "what it matches does not go to the proxy"
            )

    def _look_soon(self) -> None:
        if self._timer is None and self._look_task is None and not self._closed:
            delay = max(DEBOUNCE, self._rest_until - monotonic())
            self._timer = self._loop.call_later(delay, self._start_look)

    def _start_look(self) -> None:
        self._timer = None
        self._look_task = self._loop.create_task(self._look(), name="look at the network")

    async def _look(self) -> None:
        began = monotonic()
        lost, self._lost = self._lost, False
        bypasses, self._bypasses = self._bypasses, []
        dirty, self._dirty = self._dirty, False
        rules_dirty, self._rules_dirty = self._rules_dirty, False
        try:
            if rules_dirty:
                rules = await asyncio.to_thread(_rules, self._plan)
                lost |= bool(self._rules - rules)
                for family, priority in (rules - self._rules) - self._foreign:
                    self._on_conflict(
                        f"another program has made an IPv{family} routing rule at priority {priority}, among ours: "
                        "what it matches may not go to the proxy"
                    )
                self._foreign = rules - self._rules
            if lost or bypasses:
                self._on_lost([] if lost else bypasses)
            if dirty:
                before, self.picture = self.picture, await asyncio.to_thread(read_picture, self._tun)
                assert before is not None, "there was one at the start"
                if before != self.picture:
                    self._on_picture(before, self.picture)
        except OSError as error:
            log.warning("the machine's network cannot be looked at: %s", error.strerror)
        finally:
            self._rest_until = monotonic() + REST * (monotonic() - began)
            self._look_task = None
            if self._lost or self._bypasses or self._dirty or self._rules_dirty:
                self._look_soon()


def _rules(plan: NetworkPlan) -> Rules:
    return Counter(
        (rule.family, rule.priority)
        for rule in dump(RTM_GETRULE)
        if isinstance(rule, RuleMessage) and plan.priority <= rule.priority < plan.priority + RULE_COUNT
    )
