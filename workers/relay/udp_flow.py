"""One endpoint of an application: where it sends to, and the legs that carry it.

UdpFlow  one source endpoint
  Target    one destination: its decision, and what sends to it
  Carrier   one leg through one outbound, shared by all targets that rules give to this outbound, so that the endpoint has
            one mapping there. A destination that leads elsewhere (a name behind a fake address, an override) has a leg to
            itself, whose peers all appear as this destination
"""

import asyncio
from collections.abc import Collection
from time import monotonic
from typing import TYPE_CHECKING

from shared.metrics import Cell
from workers.relay.facts import FlowFacts
from workers.sniff import DatagramSniffer, Incomplete, Result, Sniffed
from workers.upstream import Leg, Outbound, Send, Trail

if TYPE_CHECKING:
    from workers.relay.udp_relay import UdpRelay

__all__ = ["Carrier", "Endpoint", "Target", "UdpFlow"]

QUEUE_DATAGRAMS = 64
QUEUE_BYTES = 256 * 1024
"""What an endpoint may send before its legs are open; beyond it datagrams are dropped (DROP_UDP_QUEUE)."""
TARGETS_MAX = 1024
"""Destinations that an endpoint remembers; then it forgets those that are carried, and begins anew."""
CARRIERS_MAX = 32
"""Legs of an endpoint; beyond it the oldest is closed."""

Endpoint = tuple[bytes, int]
"""Packed address and port; the length of the address tells the IP version."""


class Target:
    """What an endpoint sends to one destination.

    send      takes each datagram: `hold` until the leg is open
    carrier   None while the rules are not through
    """

    __slots__ = ("_flow", "_sniffed", "_sniffer", "carrier", "down", "facts", "held", "send", "task", "up")

    def __init__(self, flow: "UdpFlow", facts: FlowFacts) -> None:
        self._flow = flow
        self._sniffer: DatagramSniffer | None = None
        self._sniffed: asyncio.Future[Result] | None = None
        self.facts = facts
        self.send: Send = self.hold
        self.held: list[bytes] = []
        self.carrier: Carrier | None = None
        self.task: asyncio.Task[None] | None = None  # answers what the rules ask
        self.up = self.down = 0

    @property
    def endpoint(self) -> Endpoint:
        """The destination, as the application knows it."""
        return self.facts.ends[3:]

    @property
    def is_dialing(self) -> bool:
        """Whether there is no leg to send by yet."""
        return self.carrier is None or self.carrier.leg is None

    @property
    def state(self) -> str:
        """As views name it."""
        return "opening" if self.is_dialing else "open"

    def hold(self, payload: memoryview) -> None:
        """Keep a datagram until it can be sent."""
        flow = self._flow
        if flow.held_count >= QUEUE_DATAGRAMS or flow.held_bytes + len(payload) > QUEUE_BYTES:
            flow.relay.counters[Cell.DROP_UDP_QUEUE] += 1
            return
        flow.held_count += 1
        flow.held_bytes += len(payload)
        self.held.append(bytes(payload))
        if self._sniffer is not None and self._sniffed is not None and not self._sniffed.done():
            result = self._sniffer.feed(payload)
            if not isinstance(result, Incomplete):
                self._sniffed.set_result(result)

    async def sniff(self, wanted: Collection[str], timeout: float) -> Sniffed | None:
        """Look at what is held and at what comes, until it is known what it is, for `timeout` seconds at most."""
        sniffer = self._sniffer = DatagramSniffer(wanted)
        result: Result = Incomplete()
        for payload in self.held:
            result = sniffer.feed(payload)
        if isinstance(result, Incomplete):
            self._sniffed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    result = await self._sniffed
            except TimeoutError:
                result = sniffer.feed(b"")
        self._sniffer = self._sniffed = None
        return result.so_far if isinstance(result, Incomplete) else result

    def release(self) -> list[bytes]:
        """Return what was held; it is held no more."""
        held, self.held = self.held, []
        self._flow.held_count -= len(held)
        self._flow.held_bytes -= sum(map(len, held))
        return held


class Carrier:
    """A leg, and its owner (LegOwner).

    host, alias   where it leads to alone, and as which destination the application knows that; None, None: to any address
    """

    __slots__ = ("_flow", "alias", "host", "leg", "outbound", "source", "targets", "task", "trail")

    def __init__(self, flow: "UdpFlow", outbound: Outbound, host: str | None, alias: Endpoint | None) -> None:
        self._flow = flow
        self.source = flow.source
        self.outbound = outbound
        self.host = host
        self.alias = alias
        self.leg: Leg | None = None
        self.trail: Trail = []
        self.targets: list[Target] = []
        self.task: asyncio.Task[None] | None = None  # opens the leg

    def deliver(self, peer: bytes, port: int, payload: memoryview | bytearray, /) -> None:
        """LegOwner: to the application, from whoever the peer is."""
        flow = self._flow
        if self.alias is not None:
            peer, port = self.alias
        flow.used_at = monotonic()
        target = flow.targets.get((peer, port))
        if target is not None:
            target.down += len(payload)
        elif self.targets:
            self.targets[0].down += len(payload)  # of a stranger
        source, source_port = flow.source
        flow.relay.stack.send_datagram(4 if len(source) == 4 else 6, peer, port, source, source_port, payload)

    def unreachable(self, peer: bytes, port: int, payload: bytes, /) -> None:
        """LegOwner: tell the application."""
        self._flow.relay.refuse(self.source, self.alias or (peer, port), payload)

    def on_leg_end(self, leg: Leg, /) -> None:
        """LegOwner: the next datagram opens another."""
        self._flow.drop_carrier(self)

    def close(self) -> None:
        """Release the leg, or give up opening it."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.leg is not None:
            self.leg.close()
            self.leg = None


class UdpFlow:
    """Opened, removed and kept by UdpRelay."""

    __slots__ = (
        "carriers",
        "held_bytes",
        "held_count",
        "idle_timeout",
        "owner",
        "relay",
        "source",
        "targets",
        "used_at",
    )

    def __init__(self, relay: "UdpRelay", source: Endpoint, now: float) -> None:
        self.relay = relay
        self.source = source
        self.used_at = now  # monotonic seconds of the last datagram in either direction
        self.idle_timeout = 0.0  # the longest that any of its targets asks for
        self.targets: dict[Endpoint, Target] = {}
        self.carriers: dict[tuple[Outbound, Endpoint | None], Carrier] = {}  # by outbound and alias
        self.held_count = self.held_bytes = 0
        self.owner: FlowFacts | None = None  # of the target whose process was looked up: it is that of all

    def add(self, facts: FlowFacts) -> Target:
        """Return a new target."""
        if len(self.targets) >= TARGETS_MAX:
            for target in list(self.targets.values()):
                if target.send != target.hold:
                    self.drop_target(target)
        target = Target(self, facts)
        self.targets[target.endpoint] = target
        return target

    def drop_target(self, target: Target) -> None:
        """Forget a target; the next datagram to it is decided anew."""
        if self.targets.get(target.endpoint) is target:
            del self.targets[target.endpoint]
        if target.task is not None:
            target.task.cancel()
            target.task = None
        target.release()
        if target.carrier is not None:
            target.carrier.targets.remove(target)
            target.carrier = None
        self.relay.accounts.closed(target.facts, target.up, target.down)

    def drop_carrier(self, carrier: Carrier) -> None:
        """Close a leg and forget its targets; without any, the flow goes too."""
        self.carriers.pop((carrier.outbound, carrier.alias), None)
        carrier.close()
        for target in list(carrier.targets):
            self.drop_target(target)
        if not self.carriers and not self.targets:
            self.relay.remove(self)

    def carrier(self, outbound: Outbound, host: str | None, alias: Endpoint | None) -> tuple[Carrier, bool]:
        """Return the leg through an outbound (to one host alone), and whether it is new and must be opened."""
        carrier = self.carriers.get((outbound, alias))
        if carrier is not None:
            return carrier, False
        if len(self.carriers) >= CARRIERS_MAX:
            self.drop_carrier(next(iter(self.carriers.values())))
        carrier = self.carriers[outbound, alias] = Carrier(self, outbound, host, alias)
        return carrier, True

    def close(self) -> None:
        """Release everything."""
        for carrier in list(self.carriers.values()):
            carrier.close()
        self.carriers.clear()
        for target in list(self.targets.values()):
            self.drop_target(target)
