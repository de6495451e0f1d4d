"""What rules cost a flow: 200 rules with 10,000 prefixes and 50,000 names between them, as from large rule-sets.

    python -m loadtests.micro.rules

Prints microseconds per flow (best of several rounds) for flows that the first rule takes, the last one, or none.
"""

import random
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from time import perf_counter
from timeit import Timer

from shared.config import Match, Route, Rule, RuleSet
from shared.rules.flow import Flow
from shared.rules.matcher import Compiler, Rules

RULES, CIDRS, NAMES = 200, 10_000, 50_000
ROUNDS, FLOWS = 7, 2_000
_RANDOM = random.Random(1)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def cidr() -> str:
    """A random prefix, one in five of IPv6."""
    if _RANDOM.random() < 0.2:
        return f"{IPv6Address(0x2001 << 112 | _RANDOM.getrandbits(40) << 72)}/{_RANDOM.randint(32, 56)}"
    return f"{IPv4Address(_RANDOM.getrandbits(32))}/{_RANDOM.randint(16, 28)}"


def name() -> str:
    """A random name of two or three labels."""
    labels = ["".join(_RANDOM.choices(_LETTERS, k=_RANDOM.randint(4, 12))) for _ in range(_RANDOM.randint(1, 2))]
    return ".".join([*labels, _RANDOM.choice(("com", "net", "org", "cn", "example"))])


def rules() -> tuple[tuple[RuleSet, ...], list[Rule]]:
    """Half of the rules name a rule-set, half have lists of their own; every tenth has a port or a keyword beside."""
    sets, result = [], []
    for index in range(RULES):
        own = Match(
            ip_cidr=tuple(cidr() for _ in range(CIDRS // RULES)),
            domain_suffix=tuple(name() for _ in range(NAMES // RULES)),
        )
        if index % 2:
            sets.append(RuleSet(tag=str(index), rules=(own,), origin=""))
            match = Match(rule_set=(str(index),), port=(443,) if index % 10 == 1 else ())
        else:
            match = own
        result.append(Rule(match=match, action=Route(outbound="proxy"), origin=str(index)))
    result[100] = Rule(
        match=Match(domain_keyword=("tracker", "adserver")), action=Route(outbound="block"), origin="100"
    )
    return tuple(sets), result


def flow(destination: str, domain: str | None = None) -> Flow:
    """A TCP flow from this machine."""
    packed = (IPv6Address if ":" in destination else IPv4Address)(destination).packed
    return Flow(
        network="tcp",
        source=bytes((10, 0, 0, 1)),
        source_port=40000,
        destination=packed,
        destination_port=443,
        domain=domain,
    )


def cases(all_rules: list[Rule]) -> Iterator[tuple[str, list[Flow]]]:
    """What is measured: a title, and flows to give to the matcher in turn."""
    first, last = all_rules[0].match, all_rules[198].match
    assert isinstance(first, Match) and isinstance(last, Match), "rules with lists of their own"
    unknown = [f"www.{name()}" for _ in range(FLOWS)]
    yield "a name, taken by the first rule", [flow("203.0.113.1", f"www.{s}") for s in first.domain_suffix]
    yield "a name, taken by rule 199 of 200", [flow("203.0.113.1", f"www.{s}") for s in last.domain_suffix]
    yield "a name that no rule has", [flow("203.0.113.1", host) for host in unknown]
    yield "an IPv4 address that no rule has", [flow("203.0.113.1") for _ in range(FLOWS)]
    yield "an IPv6 address that no rule has", [flow("2a00::1") for _ in range(FLOWS)]


def measure(compiled: Rules[Rule], flows: list[Flow]) -> float:
    """Microseconds per flow, the best of ROUNDS."""

    def all_flows() -> None:
        for one in flows:
            compiled.match(one)

    repeats = max(FLOWS // len(flows), 1)
    return min(Timer(all_flows).repeat(ROUNDS, repeats)) / (repeats * len(flows)) * 1e6


def main() -> None:
    """Measure and print."""
    sets, all_rules = rules()
    tracemalloc.start()
    began = perf_counter()
    compiled = Compiler(sets).compile(all_rules)
    compiled.match(flow("203.0.113.1"))
    took = perf_counter() - began
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"{RULES} rules, {CIDRS:,} prefixes, {NAMES:,} names: compiled in {took:.2f} s (traced), {size / 1e6:.1f} MB")
    for title, flows in cases(all_rules):
        print(f"{measure(compiled, flows):8.1f} us  {title}")
    print(f"{measure(Compiler().compile([]), [flow('203.0.113.1')]):8.1f} us  no rules at all")


if __name__ == "__main__":
    main()
