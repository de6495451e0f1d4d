"""Which server a question is given to: DNS rules, evaluated by the matcher that route rules have (shared/rules)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import dns.exception
import dns.rcode

from shared.config import DnsConfig, DnsRule, DnsServer, Logical, Match, RuleSet, Strategy, set_fields
from shared.rules.flow import Ends, Flow
from shared.rules.matcher import Compiler, NeedProcess
from workers.dns.answers import parse_record, subnet_option
from workers.dns.wire import Query, name_text

__all__ = ["Choice", "Chooser", "Verdict", "flow_of", "parse_rcode"]

REFUSED = 5
_OF_THE_QUESTION = frozenset(
    {"domain", "domain_suffix", "domain_keyword", "domain_regex", "query_type", "outbound", "rule_set", "invert"}
)
"""Conditions whose outcome the question alone decides. `outbound` is about questions of the worker, never about a program's."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a question is answered."""

    server: str
    """Tag."""
    strategy: Strategy | None = None
    disable_cache: bool = False
    rewrite_ttl: int | None = None
    client_subnet: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question that is answered by a rule itself."""

    rcode: int
    records: tuple[str, ...] = ()
    drop: bool = False


class Chooser:
    """DNS rules of one configuration, compiled.

    by_question  the question alone decides, whoever asks: then an answer in the cache is right for everybody
    """

    def __init__(self, config: DnsConfig, rule_sets: Iterable[RuleSet], compiler: Compiler) -> None:
        """Raises ValueError for an address, record or regular expression that is none."""
        for rule in config.rules:
            for text in rule.answer:
                parse_record(text)
            parse_rcode(rule.rcode)
        subnets = [config.client_subnet, *(server.client_subnet for server in config.servers)]
        for subnet in (*subnets, *(rule.client_subnet for rule in config.rules)):
            if subnet is not None:
                subnet_option(subnet)
        sets = {rule_set.tag: rule_set for rule_set in rule_sets}
        self._servers = {server.tag: server for server in config.servers}
        self._config = config
        self._rules = compiler.compile(config.rules)
        self._final = config.final or config.servers[0].tag
        self.by_question = all(_is_of_the_question(rule.match, sets) for rule in config.rules)
        self.needs_process = self._rules.needs_process

    def choose(self, flow: Flow, *, real: bool = False) -> Choice | Verdict | NeedProcess:
        """Return what becomes of a question; `real`: it is the worker's own, to which no fake address is an answer.

        NeedProcess: fill in Flow.process and ask again.
        """
        options: dict[str, object] = {}
        start = 0
        while (step := self._rules.match(flow, start)) is not None:
            if isinstance(step, NeedProcess):
                return step
            rule = step.rule
            start = step.index + 1
            if rule.action == "reject":
                return Verdict(parse_rcode(rule.rcode) or REFUSED, drop=rule.drop)
            if rule.action == "predefined":
                return Verdict(parse_rcode(rule.rcode), rule.answer)
            server = self._servers[rule.server] if rule.action == "route" and rule.server is not None else None
            if server is not None and real and server.kind == "fakeip":
                continue
            options |= _options(rule)
            if server is not None:
                return self._choice(server, options)
        return self._choice(self._servers[self._final], options)

    def server(self, tag: str) -> Choice:
        """Return the choice of one server, whatever the rules say."""
        return self._choice(self._servers[tag], {})

    def _choice(self, server: DnsServer, options: dict[str, object]) -> Choice:
        choice = Choice(
            server.tag,
            strategy=server.strategy or self._config.strategy,
            disable_cache=self._config.disable_cache,
            client_subnet=server.client_subnet or self._config.client_subnet,
        )
        return replace(choice, **options)  # type: ignore[arg-type]


def _options(rule: DnsRule) -> dict[str, object]:
    """What a rule says beside its server; what it leaves open stays as it was."""
    options: dict[str, object] = {
        "strategy": rule.strategy,
        "disable_cache": rule.disable_cache or None,
        "rewrite_ttl": rule.rewrite_ttl,
        "client_subnet": rule.client_subnet,
    }
    return {name: value for name, value in options.items() if value is not None}


def _is_of_the_question(match: Match | Logical, rule_sets: dict[str, RuleSet]) -> bool:
    """Whether the question alone decides if `match` holds."""
    if isinstance(match, Logical):
        return all(_is_of_the_question(part, rule_sets) for part in match.rules)
    sets = [rule_sets[tag] for tag in match.rule_set]
    if set_fields(match) - _OF_THE_QUESTION:
        return False
    return all(_is_of_the_question(rule, rule_sets) for each in sets for rule in each.rules)


def flow_of(query: Query, asker: Ends | None, outbound: str | None = None) -> Flow:
    """Return what rules see of a question; the worker's own (no asker) may be about the server of an outbound.

    It has a name and no address: address conditions of DNS rules are about answers, which are not there yet.
    """
    if asker is None:
        asker = Ends("udp", b"", 0, b"", 0)
    return Flow(
        network="udp" if asker.network == "udp" else "tcp",
        source=asker.source,
        source_port=asker.source_port,
        destination=b"",
        destination_port=asker.destination_port,
        domain=name_text(query.name) or None,
        protocol="dns",
        query_type=query.qtype,
        outbound=outbound,
    )


def parse_rcode(text: str) -> int:
    """Return the number of a response code such as `NXDOMAIN`. Raises ValueError."""
    try:
        return int(dns.rcode.from_text(text))
    except dns.exception.DNSException as error:
        raise ValueError(f"{text!r} is not a DNS response code") from error
