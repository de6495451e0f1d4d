"""Conditions of rules, compiled. The meaning is that of sing-box 1.14 (route/rule/rule_abstract.go):

- Four groups: destination address (domain*, ip_cidr, ip_is_private), destination port, source address, source port. Within a
  group one item is enough; every group that has items, and every other field, must hold.
- A rule-set's rules are alternatives. Each is merged into the rule that names the set: an item of either satisfies a group that
  either has. Two alternatives never add up.
- `invert` comes last. An inverted condition is judged alone: nothing is merged into it.
- A condition without any field holds, inverted or not.

So a condition evaluates to a set of outcomes, each of which says what groups were satisfied on the way: a mask of 16 bits, bit n
for the combination n of the four groups. 0: it does not hold.
"""

from collections.abc import Callable, Sequence

from shared.config.route import Match
from shared.rules.addresses import AddressTable
from shared.rules.fields import other_fields, process_fields
from shared.rules.flow import Flow
from shared.rules.names import NameTable
from shared.rules.regex import compile_regex

__all__ = ["ALWAYS", "AllOf", "AnyOf", "Anything", "Bits", "Condition", "Look", "MatchCondition", "ProcessUnknown"]

_SOURCE, _SOURCE_PORT, _DESTINATION, _DESTINATION_PORT = 1, 2, 4, 8
_SATISFYING = {group: sum(1 << n for n in range(16) if n & group) for group in (1, 2, 4, 8)}
"""Group -> the outcomes that satisfy it."""
_FIELDS = {
    _SOURCE: ("source_ip_cidr", "source_ip_is_private"),
    _SOURCE_PORT: ("source_port", "source_port_range"),
    _DESTINATION: ("domain", "domain_suffix", "domain_keyword", "domain_regex", "ip_cidr", "ip_is_private"),
    _DESTINATION_PORT: ("port", "port_range"),
}

ALWAYS = 1
"""The bit of the tables that every flow has."""

Bits = tuple[int, int, int]
"""Bits of a Match in the tables: its names, its ip_cidr, its source_ip_cidr; 0 where it has none."""


class ProcessUnknown(Exception):
    """The outcome depends on the flow's process, which nobody has looked up yet."""


class Look:
    """One look at a flow: what the tables say of it, and what the condition evaluated last has failed by.

    hits         bits of the name and address sets that its name and destination are in
    source_hits  bits of the address sets that its source is in
    failed       names of fields, of which one would have had to hold; empty when the condition held
    """

    __slots__ = ("failed", "flow", "hits", "host", "source_hits")

    def __init__(self, flow: Flow, names: NameTable, addresses: AddressTable) -> None:
        self.flow = flow
        self.host = flow.domain or flow.destination_name or ""
        self.source_hits = addresses.find(flow.source)
        hits = names.find(self.host) if self.host else 0
        if flow.destination:
            hits |= addresses.find(flow.destination)
        else:
            for address in flow.resolved:
                hits |= addresses.find(address)
        self.hits = hits | ALWAYS
        self.failed = ""


class Condition:
    """What a Match, a Logical or a rule-set has become.

    gate           bits of which one must be among Look.hits, or it does not hold: refuses most rules at the cost of one `and`
    needs_process  it may ask for the flow's process
    """

    gate = ALWAYS
    needs_process = False

    def evaluate(self, look: Look, base: int, by_source: bool) -> int:
        """Return the outcomes (module docstring); 0 sets `look.failed`. Raises ProcessUnknown.

        base       groups that the rule which names this rule-set satisfies
        by_source  rule_set_ip_cidr_match_source: ip_cidr (and ip_is_private, which sing-box's sets lack) is about the source
        """
        raise NotImplementedError


class Anything(Condition):
    """A Match without any field."""

    def evaluate(self, look: Look, base: int, by_source: bool) -> int:
        """It holds."""
        look.failed = ""
        return 1 << base


class MatchCondition(Condition):
    """A Match that has fields."""

    def __init__(self, match: Match, bits: Bits, rule_sets: Sequence[Condition]) -> None:
        self._invert = match.invert
        self._name_bit, self._cidr_bit, self._source_bit = bits
        self._keywords = tuple(keyword.lower() for keyword in match.domain_keyword)
        self._regexes = tuple(compile_regex(pattern) for pattern in match.domain_regex)
        self._has_names = bool(self._name_bit or self._keywords or self._regexes)
        self._ports = _ports(match.port, match.port_range)
        self._source_ports = _ports(match.source_port, match.source_port_range)
        self._others = other_fields(match)
        self._process = process_fields(match)
        self._rule_sets = rule_sets if match.rule_set else None
        self._sets_by_source = match.rule_set_ip_cidr_match_source
        self._fields = {
            group: ", ".join(name for name in names if getattr(match, name)) for group, names in _FIELDS.items()
        }
        self.needs_process = bool(self._process) or any(rule_set.needs_process for rule_set in rule_sets)
        self.gate = self._find_gate()

    def _find_gate(self) -> int:
        own = self._name_bit | self._cidr_bit
        if self._invert or self._keywords or self._regexes:
            return ALWAYS
        if self._rule_sets is None:
            return own or ALWAYS
        if self._sets_by_source:
            return ALWAYS
        for rule_set in self._rule_sets:
            own |= rule_set.gate
        return own

    def evaluate(self, look: Look, base: int, by_source: bool) -> int:
        """See Condition."""
        if not self._invert:
            return self._evaluate(look, base, by_source)
        if self._evaluate(look, 0, by_source):
            look.failed = "invert"
            return 0
        look.failed = ""
        return 1 << base

    def _evaluate(self, look: Look, base: int, by_source: bool) -> int:
        flow = look.flow
        for name, holds in self._others:
            if not holds(flow):
                look.failed = name
                return 0
        required, satisfied = self._groups(look, base, by_source)
        missing = required & ~satisfied
        outcomes = self._outcomes(look, satisfied, missing)
        if not outcomes:
            look.failed = self._fields[missing & -missing] if missing else "rule_set"
            return 0
        # Last, as this alone costs a question to another process.
        for name, holds in self._process:
            if flow.process is None:
                raise ProcessUnknown
            if not holds(flow):
                look.failed = name
                return 0
        look.failed = ""
        return outcomes

    def _groups(self, look: Look, base: int, by_source: bool) -> tuple[int, int]:
        """Return the groups that must be satisfied, and those that are."""
        required, satisfied = 0, base
        if self._has_names:
            required |= _DESTINATION
            if look.hits & self._name_bit or (look.host and self._finds(look.host)):
                satisfied |= _DESTINATION
        if self._cidr_bit:
            group, hits = (_SOURCE, look.source_hits) if by_source else (_DESTINATION, look.hits)
            required |= group
            if hits & self._cidr_bit:
                satisfied |= group
        if self._ports is not None:
            required |= _DESTINATION_PORT
            if self._ports(look.flow.destination_port):
                satisfied |= _DESTINATION_PORT
        if self._source_bit:
            required |= _SOURCE
            if look.source_hits & self._source_bit:
                satisfied |= _SOURCE
        if self._source_ports is not None:
            required |= _SOURCE_PORT
            if self._source_ports(look.flow.source_port):
                satisfied |= _SOURCE_PORT
        return required, satisfied

    def _finds(self, host: str) -> bool:
        return any(keyword in host for keyword in self._keywords) or any(regex.search(host) for regex in self._regexes)

    def _outcomes(self, look: Look, satisfied: int, missing: int) -> int:
        """Return the outcomes; what is missing must come from the rule-sets."""
        if self._rule_sets is None:
            return 0 if missing else 1 << satisfied
        outcomes = 0
        for rule_set in self._rule_sets:
            outcomes |= rule_set.evaluate(look, satisfied, self._sets_by_source)
        for group, satisfying in _SATISFYING.items():
            if missing & group:
                outcomes &= satisfying
        return outcomes


class AnyOf(Condition):
    """One of the conditions must hold: a logical `or`, and a rule-set."""

    def __init__(self, conditions: Sequence[Condition], *, invert: bool = False) -> None:
        self._conditions = conditions
        self._invert = invert
        self.needs_process = any(condition.needs_process for condition in conditions)
        self.gate = ALWAYS if invert else 0
        for condition in conditions:
            self.gate |= condition.gate

    def evaluate(self, look: Look, base: int, by_source: bool) -> int:
        """See Condition."""
        start = 0 if self._invert else base
        outcomes = 0
        for condition in self._conditions:
            # What the gate refuses can only hold by what is merged into it.
            if condition.gate & look.hits or start & _DESTINATION or by_source:
                outcomes |= condition.evaluate(look, start, by_source)
        if self._invert:
            look.failed = "invert" if outcomes else ""
            return 0 if outcomes else 1 << base
        look.failed = "" if outcomes else "or"
        return outcomes


class AllOf(Condition):
    """All conditions must hold: a logical `and`."""

    def __init__(self, conditions: Sequence[Condition], *, invert: bool = False) -> None:
        # Those that may ask for the process last: they need not ask when another one fails.
        self._conditions = sorted(conditions, key=lambda condition: condition.needs_process)
        self._invert = invert
        self.needs_process = any(condition.needs_process for condition in conditions)
        if not invert:
            self.gate = next((condition.gate for condition in conditions if not condition.gate & ALWAYS), ALWAYS)

    def evaluate(self, look: Look, base: int, by_source: bool) -> int:
        """See Condition."""
        start = 0 if self._invert else base
        outcomes = 1 << start
        for condition in self._conditions:
            found = condition.evaluate(look, start, by_source)
            if not found:
                look.failed = "" if self._invert else f"and: {look.failed}"
                return 1 << base if self._invert else 0
            outcomes = _combine(outcomes, found)
        look.failed = "invert" if self._invert else ""
        return 0 if self._invert else outcomes


def _combine(left: int, right: int) -> int:
    """Return the outcomes of two conditions that both hold."""
    result = 0
    for a in range(16):
        if left >> a & 1:
            for b in range(16):
                if right >> b & 1:
                    result |= 1 << (a | b)
    return result


def _ports(ports: tuple[int, ...], ranges: tuple[tuple[int, int], ...]) -> Callable[[int], bool] | None:
    if not ports and not ranges:
        return None
    single = frozenset(ports)
    if not ranges:
        return single.__contains__
    return lambda port: port in single or any(first <= port <= last for first, last in ranges)
