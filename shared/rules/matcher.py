"""Which rule takes a flow: rules compiled once, asked for each flow.

    compiler = Compiler(route.rule_sets)
    rules = compiler.compile(route.rules)       DNS rules too: one compiler keeps the names and addresses of all rules once
    step = rules.match(flow)                    the first rule that holds; its action may change the flow: then go on
    step = rules.match(flow, step.index + 1)    with the rule after it

The cost of a flow: one look-up for each label of its name, one bisection for each address, one `and` for each rule; only rules
whose destination fits are evaluated. Pure: nothing is resolved, sniffed or looked up here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shared.config.route import Logical, Match, RuleSet
from shared.rules.addresses import PRIVATE, AddressTable
from shared.rules.conditions import AllOf, AnyOf, Anything, Bits, Condition, Look, MatchCondition, ProcessUnknown
from shared.rules.flow import Flow
from shared.rules.names import NameTable

__all__ = ["Compiler", "NeedProcess", "Rules", "Step", "Trial"]

_NOTHING = Match()
_NOTHING_INVERTED = Match(invert=True)


class _HasMatch(Protocol):
    @property
    def match(self) -> Match | Logical: ...


R = TypeVar("R", bound=_HasMatch)


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """A rule that holds, and its place in the list."""

    index: int
    rule: R


@dataclass(frozen=True, slots=True)
class NeedProcess:
    """Rule `index` asks for Flow.process: fill it in (ProcessInfo() when nothing can be found) and match again from there."""

    index: int


@dataclass(frozen=True, slots=True)
class Trial(Generic[R]):
    """One line of Rules.trace: a rule that was tried."""

    index: int
    rule: R
    failed: str
    """Fields of which one would have had to hold; empty: the rule holds."""


class Compiler:
    """Holds the names and addresses of everything it compiles, and compiles a rule-set when a rule first names it."""

    def __init__(self, rule_sets: Iterable[RuleSet] = ()) -> None:
        self.names = NameTable()
        self.addresses = AddressTable()
        self._next_bit = 2  # after ALWAYS
        self._sources = {rule_set.tag: rule_set for rule_set in rule_sets}
        self._compiled: dict[str, Condition] = {}

    def compile(self, rules: Iterable[R]) -> "Rules[R]":
        """Compile a list of rules. Raises ValueError for an address or regular expression that is none.

        Rule-sets that are not there are a mistake of the caller: engine/config has checked the tags.
        """
        rules = tuple(rules)
        return Rules(self, rules, tuple(self._condition(rule.match) for rule in rules))

    def _condition(self, source: Match | Logical) -> Condition:
        if isinstance(source, Logical):
            parts = [self._condition(part) for part in source.rules]
            return (AllOf if source.mode == "and" else AnyOf)(parts, invert=source.invert)
        if source in (_NOTHING, _NOTHING_INVERTED):
            return Anything()
        assert source.clash_mode is None, "in_mode has decided it (engine/config/modes.py)"
        return MatchCondition(source, self._bits(source), [self._rule_set(tag) for tag in source.rule_set])

    def _rule_set(self, tag: str) -> Condition:
        if tag not in self._compiled:
            self._compiled[tag] = AnyOf([self._condition(rule) for rule in self._sources[tag].rules])
        return self._compiled[tag]

    def _bits(self, match: Match) -> Bits:
        """Enter what the tables hold of `match`."""
        name_bit = cidr_bit = source_bit = 0
        if match.domain or match.domain_suffix:
            name_bit = self._new_bit()
            self.names.add(match.domain, match.domain_suffix, name_bit)
        if match.ip_cidr or match.ip_is_private:
            cidr_bit = self._new_bit()
            self.addresses.add((*match.ip_cidr, *(PRIVATE if match.ip_is_private else ())), cidr_bit)
        if match.source_ip_cidr or match.source_ip_is_private:
            source_bit = self._new_bit()
            self.addresses.add((*match.source_ip_cidr, *(PRIVATE if match.source_ip_is_private else ())), source_bit)
        return name_bit, cidr_bit, source_bit

    def _new_bit(self) -> int:
        bit = self._next_bit
        self._next_bit <<= 1
        return bit


class Rules(Generic[R]):
    """A compiled list of rules; made by Compiler.compile."""

    def __init__(self, compiler: Compiler, rules: Sequence[R], conditions: Sequence[Condition]) -> None:
        self._names = compiler.names
        self._addresses = compiler.addresses
        self._rules = rules
        self._conditions = conditions
        self._gates = [condition.gate for condition in conditions]
        self.needs_process = any(condition.needs_process for condition in conditions)

    def __len__(self) -> int:
        return len(self._rules)

    def match(self, flow: Flow, start: int = 0) -> Step[R] | NeedProcess | None:
        """Return the first rule from `start` on that holds for `flow`; None: no more do."""
        if start >= len(self._gates):
            return None
        look = Look(flow, self._names, self._addresses)
        hits = look.hits
        index = start
        for gate in self._gates[start:] if start else self._gates:
            if gate & hits:
                try:
                    if self._conditions[index].evaluate(look, 0, False):
                        return Step(index, self._rules[index])
                except ProcessUnknown:
                    return NeedProcess(index)
            index += 1
        return None

    def trace(self, flow: Flow, start: int = 0) -> tuple[list[Trial[R]], Step[R] | NeedProcess | None]:
        """As `match`, with every rule that was tried on the way, for `engine explain`."""
        trials: list[Trial[R]] = []
        look = Look(flow, self._names, self._addresses)
        for index in range(start, len(self._rules)):
            rule = self._rules[index]
            try:
                holds = self._conditions[index].evaluate(look, 0, False)
            except ProcessUnknown:
                return trials, NeedProcess(index)
            trials.append(Trial(index, rule, look.failed))
            if holds:
                return trials, Step(index, rule)
        return trials, None
