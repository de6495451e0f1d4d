"""Outbounds that choose among others: by the user (selector) or by what fails (fallback). The fastest one: urltest.py."""

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TypeVar

from shared.config import FallbackOutbound, PassedOver
from workers.upstream import Leg, LegOwner, Outbound, ProxyFailed, Trail, UdpUnsupported, UpstreamError, WrongNetwork

__all__ = ["ChosenMember", "FallbackGroup"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class ChosenMember:
    """Flows go through `chosen`. The base of a selector, where the user chooses, and of urltest.

    `interrupts`: flows that go through the group are reset when another member is chosen.
    """

    def __init__(
        self, tag: str, kind: str, cells: int, members: Sequence[Outbound], chosen: Outbound, *, interrupts: bool
    ) -> None:
        self.tag = tag
        self.kind = kind
        self.cells = cells
        self.members = tuple(members)
        self.chosen = chosen
        self.interrupts = interrupts

    def choose(self, tag: str) -> bool:
        """Take the member with this tag from now on. False: it is none, or it is taken already."""
        for member in self.members:
            if member.tag == tag and member is not self.chosen:
                self.chosen = member
                return True
        return False

    def carries(self, network: str) -> bool:
        """As far as the chosen member does."""
        return self.chosen.carries(network)

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """See Outbound."""
        trail.append(self)
        return await self.chosen.connect(host, port, trail)

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """See Outbound."""
        trail.append(self)
        return await self.chosen.open_udp(owner, host, trail)

    def refuses_udp(self) -> UpstreamError | None:
        """See Outbound."""
        return self.chosen.refuses_udp()

    def close(self) -> None:
        """Members are not the group's: nothing to release."""


class FallbackGroup:
    """The first member that works. A flow whose member fails is tried again with the next one, and finds out the same way.

    Only failures of the outbound itself count: a destination that refuses is an answer. Members that were passed over for long
    enough are tried by one flow, while the others still pass them over. `on_passed_over` is told of a member that this
    worker's flows have found dead, and of one that they have found alive again.
    """

    kind = "fallback"

    def __init__(
        self,
        config: FallbackOutbound,
        cells: int,
        members: Sequence[Outbound],
        on_passed_over: Callable[[PassedOver], object],
    ) -> None:
        self.tag = config.tag
        self.cells = cells
        self.members = tuple(members)
        self._failures_max = config.failures
        self._retry = config.retry
        self._failures = dict.fromkeys((member.tag for member in members), 0)
        self._passed_over_until: dict[str, float] = {}
        self._on_passed_over = on_passed_over

    @property
    def chosen(self) -> Outbound:
        """The member that the next flow takes first."""
        return self._order(monotonic())[0]

    def carries(self, network: str) -> bool:
        """If any member does."""
        return any(member.carries(network) for member in self.members)

    async def connect(self, host: str, port: int, trail: Trail) -> socket.socket:
        """See Outbound. Raises the last member's error when none works."""
        return await self._try_each("tcp", trail, lambda member: member.connect(host, port, trail))

    async def open_udp(self, owner: LegOwner, host: str | None, trail: Trail) -> Leg:
        """See Outbound."""
        return await self._try_each("udp", trail, lambda member: member.open_udp(owner, host, trail))

    def refuses_udp(self) -> UpstreamError | None:
        """If every member does."""
        last: UpstreamError | None = None
        for member in self.members:
            last = member.refuses_udp()
            if last is None:
                return None
        return last

    async def _try_each(self, network: str, trail: Trail, attempt: Callable[[Outbound], Awaitable[T]]) -> T:
        trail.append(self)
        depth = len(trail)
        last: UpstreamError = WrongNetwork(self.tag, network)
        for member in self._order(monotonic()):
            if not member.carries(network):
                continue
            del trail[depth:]
            if member.tag in self._passed_over_until:
                self._passed_over_until[member.tag] = monotonic() + self._retry  # this flow tries it; others need not
            try:
                result = await attempt(member)
            except ProxyFailed as error:
                self._note_failure(member, error)
                last = error
            except UdpUnsupported as error:
                last = error  # for UDP another member may do; for TCP this one still does
            except UpstreamError:
                self._note_success(member)
                raise
            else:
                self._note_success(member)
                return result
        raise last

    def _order(self, now: float) -> list[Outbound]:
        """The members in the order in which to try them; those that are passed over come last, in case all are."""
        return sorted(self.members, key=lambda member: self._passed_over_until.get(member.tag, 0.0) > now)

    def _note_failure(self, member: Outbound, error: ProxyFailed) -> None:
        self._failures[member.tag] += 1
        if self._failures[member.tag] >= self._failures_max:
            if member.tag not in self._passed_over_until:
                log.warning("%s passes over %s for %.0f s: %s", self.tag, member.tag, self._retry, error)
            self._pass_over(member.tag, monotonic() + self._retry)

    def _note_success(self, member: Outbound) -> None:
        self._failures[member.tag] = 0
        if member.tag in self._passed_over_until:
            log.info("%s takes %s again", self.tag, member.tag)
            self._pass_over(member.tag, 0.0)

    def _pass_over(self, tag: str, until: float) -> None:
        found = PassedOver(group=self.tag, member=tag, until=until)
        self.take(found)
        self._on_passed_over(found)

    def take(self, found: PassedOver) -> None:
        """Some worker has found out that a member is dead, or alive again."""
        if found.until:
            self._passed_over_until[found.member] = found.until
        else:
            self._passed_over_until.pop(found.member, None)
            self._failures[found.member] = 0

    def close(self) -> None:
        """Members are not the group's: nothing to release."""
