"""Which server a question is given to."""

from typing import Any

import pytest

from shared.config import DnsConfig, DnsRule, DnsServer, Logical, Match, RuleSet
from shared.process import ProcessInfo
from shared.rules.flow import Ends
from shared.rules.matcher import Compiler, NeedProcess
from tests.workers.dns.messages import query
from workers.dns.rules import Choice, Chooser, Verdict, flow_of, parse_rcode

ASKER = Ends("udp", bytes((192, 0, 2, 2)), 40000, bytes((192, 0, 2, 1)), 53)
SERVERS = (
    DnsServer(tag="first", kind="udp", server="192.0.2.1"),
    DnsServer(tag="second", kind="tcp", server="192.0.2.2", strategy="ipv4_only", client_subnet="192.0.2.0/24"),
    DnsServer(tag="fake", kind="fakeip", inet4_range="198.18.0.0/15"),
)


def chooser(*rules: DnsRule, sets: tuple[RuleSet, ...] = (), **config: Any) -> Chooser:
    made = DnsConfig(servers=SERVERS, rules=rules, **config)
    return Chooser(made, sets, Compiler(sets))


def choose(
    made: Chooser, name: str = "example.com", qtype: str = "A", *, asker: Ends | None = ASKER, **options: Any
) -> Choice | Verdict | NeedProcess:
    outbound = options.pop("outbound", None)
    flow = flow_of(query(name, qtype), asker, outbound)
    flow.process = options.pop("process", ProcessInfo())
    return made.choose(flow, **options)


def server_of(choice: Choice | Verdict | NeedProcess) -> str:
    assert isinstance(choice, Choice)
    return choice.server


def rule(server: str | None = "second", /, action: Any = "route", **fields: Any) -> DnsRule:
    match = {name: value for name, value in fields.items() if name in Match.__struct_fields__}
    rest = {name: value for name, value in fields.items() if name not in match}
    return DnsRule(match=Match(**match), action=action, server=server, **rest)


def test_without_rules_the_first_server_or_final() -> None:
    assert choose(chooser()) == Choice("first")
    assert choose(chooser(final="second")) == Choice("second", strategy="ipv4_only", client_subnet="192.0.2.0/24")


@pytest.mark.parametrize(
    ("condition", "name", "qtype", "matches"),
    [
        ({"domain": ("example.com",)}, "EXAMPLE.com", "A", True),
        ({"domain": ("example.com",)}, "www.example.com", "A", False),
        ({"domain_suffix": ("example.com",)}, "www.example.com", "A", True),
        ({"domain_keyword": ("xamp",)}, "www.example.com", "A", True),
        ({"domain_regex": ("^w+[.]",)}, "www.example.com", "A", True),
        ({"query_type": (28,)}, "example.com", "AAAA", True),
        ({"query_type": (28, 65)}, "example.com", "A", False),
        ({"network": ("udp",)}, "example.com", "A", True),
        ({"network": ("tcp",)}, "example.com", "A", False),
        ({"source_ip_cidr": ("192.0.2.2/32",)}, "example.com", "A", True),
        ({"source_port": (40000,)}, "example.com", "A", True),
        ({"port": (53,)}, "example.com", "A", True),
        ({"protocol": ("dns",)}, "example.com", "A", True),
        ({"inbound": ("tun-in",)}, "example.com", "A", True),
        ({"domain": ("example.com",), "invert": True}, "example.com", "A", False),
        ({"outbound": ("any",)}, "example.com", "A", False),
        ({}, "example.com", "A", True),
    ],
)
def test_conditions(condition: dict[str, Any], name: str, qtype: str, matches: bool) -> None:
    choice = choose(chooser(rule(**condition)), name, qtype)
    assert server_of(choice) == ("second" if matches else "first")


def test_rule_set_and_logical() -> None:
    sets = (RuleSet(tag="ads", rules=(Match(domain_suffix=("ads.example",)),), origin="test"),)
    both = Logical(mode="and", rules=(Match(rule_set=("ads",)), Match(query_type=(1,))))
    made = chooser(DnsRule(match=both, server="second"), sets=sets)
    assert made.by_question
    for name, qtype, server in (
        ("x.ads.example", "A", "second"),
        ("x.ads.example", "TXT", "first"),
        ("x", "A", "first"),
    ):
        assert server_of(choose(made, name, qtype)) == server


def test_process() -> None:
    made = chooser(rule(process_name=("curl",)))
    assert made.needs_process and not made.by_question
    assert choose(made, process=None) == NeedProcess(0)
    assert server_of(choose(made, process=ProcessInfo(name="curl"))) == "second"
    assert choose(made, process=ProcessInfo(name="wget")) == Choice("first")


def test_options_add_up_and_the_rule_that_routes_has_the_last_word() -> None:
    made = chooser(
        rule(None, "route-options", rewrite_ttl=5, strategy="ipv6_only"),
        rule("second", disable_cache=True, rewrite_ttl=7),
    )
    expected = Choice("second", strategy="ipv6_only", disable_cache=True, rewrite_ttl=7, client_subnet="192.0.2.0/24")
    assert choose(made) == expected


def test_defaults_of_the_configuration() -> None:
    made = chooser(strategy="prefer_ipv6", disable_cache=True, client_subnet="198.51.100.0/24")
    expected = Choice("first", strategy="prefer_ipv6", disable_cache=True, client_subnet="198.51.100.0/24")
    assert choose(made) == expected


def test_rules_that_answer_themselves() -> None:
    assert choose(chooser(rule(None, "reject"))) == Verdict(5)
    assert choose(chooser(rule(None, "reject", rcode="NXDOMAIN"))) == Verdict(3)
    assert choose(chooser(rule(None, "reject", drop=True))) == Verdict(5, drop=True)
    records = ("example.com. 60 IN A 192.0.2.9",)
    assert choose(chooser(rule(None, "predefined", answer=records))) == Verdict(0, records)


def test_no_fake_address_for_the_worker_itself() -> None:
    made = chooser(rule("fake", rewrite_ttl=1))
    assert server_of(choose(made)) == "fake"
    assert choose(made, asker=None, real=True) == Choice("first")


@pytest.mark.parametrize(("outbound", "server"), [("proxy", "second"), ("other", "first"), (None, "first")])
def test_server_of_an_outbound(outbound: str | None, server: str) -> None:
    choice = choose(chooser(rule(outbound=("proxy",))), asker=None, outbound=outbound)
    assert server_of(choice) == server


@pytest.mark.parametrize(
    ("condition", "by_question"),
    [
        ({"domain": ("a",), "query_type": (1,)}, True),
        ({"source_ip_cidr": ("10.0.0.0/8",)}, False),
        ({"network": ("udp",)}, False),
        ({"rule_set": ("by-source",)}, False),
        ({"rule_set": ("by-name",)}, True),
    ],
)
def test_whether_the_question_alone_decides(condition: dict[str, Any], by_question: bool) -> None:
    sets = (
        RuleSet(tag="by-source", rules=(Match(domain=("a",)), Match(source_port=(1,))), origin=""),
        RuleSet(tag="by-name", rules=(Match(domain=("a",)),), origin=""),
    )
    assert chooser(rule(**condition), sets=sets).by_question is by_question


def test_response_codes() -> None:
    assert parse_rcode("nxdomain") == 3
    with pytest.raises(ValueError, match="not a DNS response code"):
        parse_rcode("nonsense")
