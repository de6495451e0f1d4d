"""What groups of outbounds use now: chosen by the user, measured by one worker, or not found dead by the flows of any worker.

All workers are told, now or when they start.
"""

import logging
from collections.abc import Mapping
from time import monotonic, time

import msgspec

from engine.choices import Choices
from engine.supervisor import Supervisor
from shared.config import FallbackOutbound, OutboundConfig, PassedOver, Policy, SelectorOutbound, UrltestOutbound
from shared.control import Measured, MeasureNow, Select, Used

__all__ = ["Groups", "NoSuchMember"]

log = logging.getLogger(__name__)


MEASURE_INTERVAL_MIN = 30.0
"""Seconds between two measurements because a proxy fails: each may take some, with many members that are dead."""


class NoSuchMember(Exception):
    """The group does not exist, is not the user's to choose, or has no such member; one sentence for the user."""


class Groups:
    """The groups of the policy in force; selectors begin with what was chosen before. Give it the workers' reports."""

    def __init__(self, supervisor: Supervisor, policy: Policy, choices: Choices) -> None:
        self._supervisor = supervisor
        self._policy = policy
        self._choices = choices
        self._passed_over: dict[tuple[str, str], PassedOver] = {}
        selectors = {o.tag: o.outbounds for o in policy.outbounds if isinstance(o, SelectorOutbound)}
        self._chosen = {tag: member for tag, member in choices.selected.items() if member in selectors.get(tag, ())}
        if self._chosen:
            supervisor.set_policy(self.policy)
        self.delays: dict[str, float | None] = {}
        """Tag of an outbound -> seconds of its last test; None: it failed."""
        self.tested_at: dict[str, float] = {}
        """Tag of an outbound -> Unix time of its last test."""
        self._measure_again_at = 0.0
        self.measured_at: dict[str, float] = {}
        """Tag of a urltest group -> Unix time of its last tests."""

    @property
    def policy(self) -> Policy:
        """The policy in force, with the choices in it."""
        outbounds = tuple(map(self._with_choice, self._policy.outbounds))
        return msgspec.structs.replace(self._policy, outbounds=outbounds, passed_over=tuple(self._passed_over.values()))

    def load(self, policy: Policy) -> Policy:
        """Another policy comes into force: return it with the choices that it still allows."""
        self._policy = policy
        members = {outbound.tag: _members(outbound) for outbound in policy.outbounds}
        self._passed_over = {
            (group, member): found
            for (group, member), found in self._passed_over.items()
            if member in members.get(group, ())
        }
        self._chosen = {tag: member for tag, member in self._chosen.items() if member in members.get(tag, ())}
        return self.policy

    def chosen(self) -> Mapping[str, str]:
        """What each group uses, by tag: of a fallback group the first member that is not passed over."""
        return {
            outbound.tag: self._used(outbound)
            for outbound in self._policy.outbounds
            if isinstance(outbound, SelectorOutbound | UrltestOutbound | FallbackOutbound)
        }

    def _used(self, outbound: SelectorOutbound | UrltestOutbound | FallbackOutbound) -> str:
        if not isinstance(outbound, FallbackOutbound):
            return self._chosen.get(outbound.tag) or outbound.default or outbound.outbounds[0]
        alive = (member for member in outbound.outbounds if (outbound.tag, member) not in self.passed_over())
        return next(alive, outbound.outbounds[0])

    def passed_over(self) -> Mapping[tuple[str, str], float]:
        """Group and member -> seconds until a flow tries it again; 0: the next one does."""
        now = monotonic()
        return {key: max(found.until - now, 0.0) for key, found in self._passed_over.items()}

    def select(self, group: str, member: str) -> None:
        """Use `member` of a selector from now on. Raises NoSuchMember."""
        found = next((outbound for outbound in self._policy.outbounds if outbound.tag == group), None)
        if not isinstance(found, SelectorOutbound):
            raise NoSuchMember(f"there is no selector {group}")
        if member not in found.outbounds:
            raise NoSuchMember(f"{group} has no member {member}, but {', '.join(found.outbounds)}")
        log.info("%s uses %s", group, member)
        self._take(group, member)
        self._choices.selected[group] = member
        self._choices.keep()

    def note_delay(self, tag: str, seconds: float | None) -> None:
        """An outbound was tested; None: it failed."""
        self.delays[tag] = seconds
        self.tested_at[tag] = time()

    def on_used(self, worker: int, report: Used) -> None:
        """A worker's flows take a urltest group: the one that measures it must know."""
        if worker != self._supervisor.measuring:
            self._supervisor.send(self._supervisor.measuring, report)

    def on_measured(self, worker: int, report: Measured) -> None:
        """A urltest group was tested."""
        if worker != self._supervisor.measuring:
            return
        for member, seconds in report.delays.items():
            self.note_delay(member, seconds)
        self.measured_at[report.group] = time()
        if self._chosen.get(report.group) != report.member:
            self._take(report.group, report.member)

    def on_passed_over(self, report: PassedOver) -> None:
        """A worker's flows have found a member of a fallback group dead, or alive again: the others need not find out."""
        self._passed_over.pop((report.group, report.member), None)
        if report.until:
            self._passed_over[report.group, report.member] = report
        self._supervisor.set_policy(self.policy)
        self._supervisor.send_all(report)

    def on_failing(self) -> None:
        """The flows of some worker find that a proxy fails: urltest groups measure now rather than at their next time."""
        now = monotonic()
        if now >= self._measure_again_at and any(isinstance(o, UrltestOutbound) for o in self._policy.outbounds):
            self._measure_again_at = now + MEASURE_INTERVAL_MIN
            self._supervisor.send_all(MeasureNow())

    def look_again(self) -> None:
        """What was found dead may be alive where the machine is now: the next flows find out."""
        for group, member in tuple(self._passed_over):
            self.on_passed_over(PassedOver(group=group, member=member, until=0.0))

    def _take(self, group: str, member: str) -> None:
        self._chosen[group] = member
        self._supervisor.set_policy(self.policy)
        self._supervisor.send_all(Select(group, member))

    def _with_choice(self, outbound: OutboundConfig) -> OutboundConfig:
        chosen = self._chosen.get(outbound.tag)
        if chosen is None or not isinstance(outbound, SelectorOutbound | UrltestOutbound):
            return outbound
        return msgspec.structs.replace(outbound, default=chosen)


def _members(outbound: OutboundConfig) -> tuple[str, ...]:
    groups = SelectorOutbound | UrltestOutbound | FallbackOutbound
    return outbound.outbounds if isinstance(outbound, groups) else ()
