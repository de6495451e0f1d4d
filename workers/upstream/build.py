"""Makes the outbounds of a policy.

What a reload leaves as it was is kept: with it a group's choice, and what is known of a proxy.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shared.config import (
    BlockOutbound,
    DirectOutbound,
    FallbackOutbound,
    OutboundConfig,
    PassedOver,
    Policy,
    ProxyOutbound,
    SelectorOutbound,
)
from shared.metrics import OUTBOUNDS_MAX, Counters, outbound_at
from workers.upstream import LookUp, Outbound
from workers.upstream.block import BlockUpstream
from workers.upstream.direct import DirectUpstream
from workers.upstream.egress import Egress
from workers.upstream.group import ChosenMember, FallbackGroup
from workers.upstream.proxy import ProxyUpstream
from workers.upstream.sockets import Networks
from workers.upstream.urltest import Urltest

__all__ = ["Outbounds", "Surroundings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all outbounds of a worker share."""

    loop: asyncio.AbstractEventLoop
    counters: Counters
    mark: int | Egress | None
    """SO_MARK where an outbound has none of its own; an Egress on macOS."""
    tun: Networks
    """The tun's own: nothing goes there directly."""
    measures: bool
    """This worker tests the members of urltest groups."""
    look_up: LookUp
    on_udp_support: Callable[[str, bool, str], object]
    """Tag of a proxy, whether it relays UDP, and a reason."""
    on_used: Callable[[str], object]
    on_measured: Callable[[Urltest, dict[str, float | None], bool], None]
    on_passed_over: Callable[[PassedOver], object]


class Outbounds:
    """The outbounds of the policy in force, by tag."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        # One datagram at a time: received, parsed and given to the stack before the next.
        self._buffer = bytearray(65536)
        self._made: dict[str, tuple[OutboundConfig, Outbound]] = {}
        self.by_tag: dict[str, Outbound] = {}
        self.own_direct: Outbound = DirectUpstream(
            DirectOutbound(tag="direct"),
            surroundings.loop,
            surroundings.counters,
            outbound_at(OUTBOUNDS_MAX),
            mark=surroundings.mark,
            tun=surroundings.tun,
            buffer=self._buffer,
            look_up=surroundings.look_up,
        )
        """Not of the policy: for flows that go out directly whatever the rules say."""

    def load(self, policy: Policy) -> None:
        """Make the outbounds of `policy` in the place of those before."""
        before, self._made = self._made, {}
        configs = {config.tag: config for config in policy.outbounds}
        counted = policy.counted or tuple(configs)
        rows = {tag: row for row, tag in enumerate(counted)}
        cells = {tag: outbound_at(rows.get(tag, OUTBOUNDS_MAX)) for tag in configs}
        for config in policy.outbounds:
            self._make(config, configs, cells, before)
        self.by_tag = {tag: outbound for tag, (_, outbound) in self._made.items()}
        for found in policy.passed_over:
            self.take(found)
        kept = {id(outbound) for outbound in self.by_tag.values()}
        for _, outbound in before.values():
            if id(outbound) not in kept:
                outbound.close()

    def _make(
        self,
        config: OutboundConfig,
        configs: dict[str, OutboundConfig],
        cells: dict[str, int],
        before: dict[str, tuple[OutboundConfig, Outbound]],
    ) -> Outbound:
        if config.tag in self._made:
            return self._made[config.tag][1]
        members: list[Outbound] = []
        if not isinstance(config, ProxyOutbound | DirectOutbound | BlockOutbound):
            members = [self._make(configs[tag], configs, cells, before) for tag in config.outbounds]
        old_config, old = before.get(config.tag, (None, None))
        is_same = old is not None and old_config == config and old.cells == cells[config.tag]
        if old is not None and is_same and list(getattr(old, "members", ())) == members:
            outbound = old
        else:
            outbound = self._new(config, cells[config.tag], members)
        self._made[config.tag] = (config, outbound)
        return outbound

    def _new(self, config: OutboundConfig, cells: int, members: list[Outbound]) -> Outbound:
        s = self._surroundings
        match config:
            case ProxyOutbound():
                return ProxyUpstream(
                    config,
                    s.loop,
                    s.counters,
                    cells,
                    mark=s.mark,
                    buffer=self._buffer,
                    on_udp_support=s.on_udp_support,
                )
            case DirectOutbound():
                return DirectUpstream(
                    config,
                    s.loop,
                    s.counters,
                    cells,
                    mark=s.mark,
                    tun=s.tun,
                    buffer=self._buffer,
                    look_up=s.look_up,
                )
            case BlockOutbound():
                return BlockUpstream(config.tag, cells)
            case SelectorOutbound():
                default = next((member for member in members if member.tag == config.default), members[0])
                interrupts = config.interrupt_exist_connections
                return ChosenMember(config.tag, "selector", cells, members, default, interrupts=interrupts)
            case FallbackOutbound():
                return FallbackGroup(config, cells, members, s.on_passed_over)
            case _:
                return Urltest(
                    config, s.loop, cells, members, measures=s.measures, on_used=s.on_used, on_measured=s.on_measured
                )

    def take(self, found: PassedOver) -> None:
        """Another worker has found out that a member of a fallback group is dead, or alive again."""
        group = self.by_tag.get(found.group)
        if isinstance(group, FallbackGroup):
            group.take(found)

    def measure_now(self) -> None:
        """Test the members of urltest groups at once."""
        for outbound in self.by_tag.values():
            if isinstance(outbound, Urltest):
                outbound.measure_now()

    def close(self) -> None:
        """Close all of them."""
        for outbound in self.by_tag.values():
            outbound.close()
