"""The compiled matcher: against an obvious one, and by examples from the documentation of sing-box."""

from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import DnsRule, HijackDns, Logical, Match, Reject, Route, Rule, RuleSet, Sniff
from shared.process import ProcessInfo
from shared.rules.flow import Flow
from shared.rules.matcher import Compiler, NeedProcess, Rules, Step
from tests.shared.rules.slow_matcher import first_match

CURL = ProcessInfo(pid=4, name="curl", path="/usr/bin/curl", uid=1000, user="me")


def rule(match: Match | Logical, outbound: str = "there") -> Rule:
    return Rule(match=match, action=Route(outbound=outbound), origin="test")


def flow(destination: str = "203.0.113.10", port: int = 443, **facts: object) -> Flow:
    """A TCP flow of 192.0.2.1:1000; an empty destination: only a name is known."""
    plain = Flow(
        network="tcp",
        source=ip_address("192.0.2.1").packed,
        source_port=1000,
        destination=ip_address(destination).packed if destination else b"",
        destination_port=port,
    )
    return msgspec.structs.replace(plain, **facts)


def taken(match: Match | Logical, f: Flow, *rule_sets: RuleSet) -> bool:
    """Whether a rule with these conditions takes the flow; match and trace must agree."""
    rules = Compiler(rule_sets).compile([rule(match)])
    found = rules.match(f)
    assert rules.trace(f)[1] == found
    assert not isinstance(found, NeedProcess)
    return found is not None


def rule_set(*rules: Match | Logical, tag: str = "set") -> RuleSet:
    return RuleSet(tag=tag, rules=rules, origin="test")


# against the obvious matcher

HOSTS = ("example.com", "www.example.com", "a.b.example.com", "notexample.com", "example.org", "com", "localhost")
ADDRESSES = ("203.0.113.10", "203.0.113.200", "198.51.100.1", "10.1.2.3", "100.64.0.1", "2001:db8::1", "fe80::1", "::1")
CIDRS = (
    "203.0.113.0/24", "203.0.113.10", "203.0.113.10/25", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::/0", "::1",
    "203.0.113.9-203.0.113.11", "2001:db8::-2001:db8::2", "255.255.255.255/32",
)  # fmt: skip


def some(*values: object, size: int = 2) -> st.SearchStrategy[tuple[object, ...]]:
    """Mostly nothing, as a rule has few of the possible fields."""
    return st.just(()) | st.just(()) | st.lists(st.sampled_from(values), max_size=size).map(tuple)


FIELDS = {
    "inbound": some("tun-in", "other"),
    "ip_version": st.sampled_from((None, None, None, 4, 6)),
    "network": some("tcp", "udp"),
    "protocol": some("tls", "http"),
    "client": some("chromium"),
    "domain": some("example.com", "www.example.com", "localhost"),
    "domain_suffix": some("example.com", ".example.com", "com", ".com", "b.example.com", "localhost"),
    "domain_keyword": some("ample", "www", "zzz"),
    "domain_regex": some("^www", r"\.com$", "x.*g"),
    "ip_cidr": some(*CIDRS),
    "ip_is_private": st.sampled_from((False, False, False, True)),
    "source_ip_cidr": some(*CIDRS),
    "source_ip_is_private": st.sampled_from((False, False, False, True)),
    "port": some(80, 443),
    "port_range": some((0, 80), (443, 443), (400, 65535)),
    "source_port": some(1000, 2000),
    "source_port_range": some((0, 1024), (1000, 1000)),
    "process_name": some("curl", "", "node"),
    "process_path": some("/usr/bin/curl", ""),
    "process_path_regex": some("^/usr", "rl$"),
    "user": some("me", "you", ""),
    "user_id": some(0, 1000),
    "query_type": some(1, 28),
    "outbound": some("any", "proxy"),
    "invert": st.sampled_from((False, False, True)),
}
plain_matches = st.fixed_dictionaries({}, optional=FIELDS).map(lambda fields: Match(**fields))
headless = st.recursive(
    plain_matches,
    lambda inner: st.builds(
        Logical,
        mode=st.sampled_from(("and", "or")),
        rules=st.lists(inner, min_size=1, max_size=3).map(tuple),
        invert=st.booleans(),
    ),
    max_leaves=4,
)
referring = st.fixed_dictionaries(
    {"rule_set": some("one", "two")}, optional={**FIELDS, "rule_set_ip_cidr_match_source": st.booleans()}
).map(lambda fields: Match(**fields))
conditions = st.recursive(
    plain_matches | referring,
    lambda inner: st.builds(
        Logical,
        mode=st.sampled_from(("and", "or")),
        rules=st.lists(inner, min_size=1, max_size=3).map(tuple),
        invert=st.booleans(),
    ),
    max_leaves=4,
)
addresses = st.sampled_from(ADDRESSES).map(lambda text: ip_address(text).packed)
flows = st.builds(
    Flow,
    network=st.sampled_from(("tcp", "udp")),
    source=addresses,
    source_port=st.sampled_from((1000, 2000, 3000)),
    destination=addresses | st.just(b""),
    destination_port=st.sampled_from((80, 443, 8080)),
    inbound=st.just("tun-in"),
    domain=st.sampled_from((None, *HOSTS)),
    protocol=st.sampled_from((None, "tls", "http")),
    client=st.sampled_from((None, "chromium")),
    process=st.sampled_from((ProcessInfo(), CURL, ProcessInfo(uid=0))),
    resolved=st.lists(addresses, max_size=2).map(tuple),
    query_type=st.sampled_from((None, 1)),
    outbound=st.sampled_from((None, "proxy", "direct")),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(conditions, max_size=4),
    st.lists(headless, max_size=3),
    st.lists(headless, max_size=3),
    st.lists(flows, min_size=1, max_size=4),
)
def test_matcher_agrees_with_the_obvious_one(
    matches: list[Match | Logical],
    one: list[Match | Logical],
    two: list[Match | Logical],
    some_flows: list[Flow],
) -> None:
    sets = (rule_set(*one, tag="one"), rule_set(*two, tag="two"))
    rules = [rule(match) for match in matches]
    compiled = Compiler(sets).compile(rules)
    for f in some_flows:
        expected = first_match(rules, sets, f)
        found = compiled.match(f)
        assert found == (None if expected is None else Step(expected, rules[expected]))
        trials, traced = compiled.trace(f)
        assert traced == found
        assert [trial.failed == "" for trial in trials] == [index == expected for index in range(len(trials))]


@settings(max_examples=200, deadline=None)
@given(st.lists(conditions, min_size=1, max_size=3), flows)
def test_process_is_asked_for_only_when_it_decides(matches: list[Match | Logical], f: Flow) -> None:
    """Whatever the process turns out to be, an answer given without it is the right one."""
    sets = (rule_set(tag="one"), rule_set(tag="two"))
    rules = [rule(match) for match in matches]
    found = Compiler(sets).compile(rules).match(msgspec.structs.replace(f, process=None))
    if isinstance(found, NeedProcess):
        return
    for process in (ProcessInfo(), CURL, ProcessInfo(uid=0)):
        expected = first_match(rules, sets, msgspec.structs.replace(f, process=process))
        assert (None if found is None else found.index) == expected


# by example


def test_domain_or_cidr() -> None:
    match = Match(domain_suffix=("example.com",), ip_cidr=("203.0.113.0/24",))
    assert taken(match, flow(domain="www.example.com", destination="198.51.100.1"))
    assert taken(match, flow())
    assert not taken(match, flow(destination="198.51.100.1", domain="example.org"))


def test_groups_and_other_fields_must_all_hold() -> None:
    match = Match(ip_cidr=("203.0.113.0/24",), port=(443,), network=("tcp",))
    assert taken(match, flow())
    assert not taken(match, flow(port=80))
    assert not taken(match, flow(network="udp"))


@pytest.mark.parametrize(
    ("suffix", "host", "expected"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", True),
        ("example.com", "notexample.com", False),
        (".example.com", "example.com", False),
        (".example.com", "www.example.com", True),
        ("Example.COM", "www.example.com", True),
        ("com", "example.com", True),
    ],
)
def test_domain_suffix(suffix: str, host: str, expected: bool) -> None:
    assert taken(Match(domain_suffix=(suffix,)), flow(domain=host)) is expected


def test_domain_of_a_flow_without_a_name_never_matches() -> None:
    for match in (Match(domain=("localhost",)), Match(domain_regex=(".*",)), Match(domain_keyword=("",))):
        assert not taken(match, flow())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.168.1.1", True),
        ("127.0.0.1", True),
        ("169.254.1.1", True),
        ("224.0.0.251", True),
        ("0.0.0.0", True),
        ("fe80::1", True),
        ("fd00::1", True),
        ("ff02::fb", True),
        ("100.64.0.1", False),
        ("198.18.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
    ],
)
def test_private_addresses_are_those_of_sing_box(address: str, expected: bool) -> None:
    assert taken(Match(ip_is_private=True), flow(address)) is expected


def test_addresses_of_a_resolved_name_count_when_there_is_no_destination() -> None:
    near = ip_address("10.0.0.1").packed
    match = Match(ip_is_private=True)
    assert taken(match, flow("", domain="nas.home", resolved=(near,)))
    assert not taken(match, flow(domain="nas.home", resolved=(near,))), "the destination is what counts"
    assert not taken(match, flow("", domain="nas.home"))


def test_without_conditions_everything_matches() -> None:
    assert taken(Match(), flow())
    assert taken(Match(invert=True), flow())


def test_invert_comes_last() -> None:
    match = Match(ip_cidr=("203.0.113.0/24",), port=(443,), invert=True)
    assert not taken(match, flow())
    assert taken(match, flow(port=80))


def test_logical() -> None:
    port, net = Match(port=(443,)), Match(ip_cidr=("203.0.113.0/24",))
    assert taken(Logical(mode="and", rules=(port, net)), flow())
    assert not taken(Logical(mode="and", rules=(port, net)), flow(port=80))
    assert taken(Logical(mode="or", rules=(port, net)), flow(port=80))
    assert not taken(Logical(mode="or", rules=(port, net), invert=True), flow(port=80))


def test_items_of_a_rule_set_join_the_groups() -> None:
    ads = rule_set(Match(domain_suffix=("ads.example",)), tag="ads")
    match = Match(domain=("extra.example",), port=(443,), rule_set=("ads",))
    assert taken(match, flow(domain="x.ads.example"), ads)
    assert taken(match, flow(domain="extra.example"), ads)
    assert not taken(match, flow(domain="example.org"), ads)
    assert not taken(match, flow(domain="x.ads.example", port=80), ads)


def test_other_fields_of_a_rule_set_stay_conditions() -> None:
    only_udp = rule_set(Match(network=("udp",)), tag="udp")
    assert not taken(Match(domain=("example.com",), rule_set=("udp",)), flow(domain="example.com"), only_udp)


def test_alternatives_of_rule_sets_do_not_add_up() -> None:
    sets = rule_set(Match(source_port=(1000,)), tag="ports"), rule_set(Match(domain=("example.com",)), tag="names")
    match = Match(source_port=(2000,), ip_cidr=("198.51.100.0/24",), rule_set=("ports", "names"))
    assert not taken(match, flow(domain="example.com"), *sets)


def test_rule_set_ip_cidr_about_the_source() -> None:
    lan = rule_set(Match(ip_cidr=("192.0.2.0/24",)), tag="lan")
    assert taken(Match(rule_set=("lan",), rule_set_ip_cidr_match_source=True), flow(), lan)
    assert not taken(Match(rule_set=("lan",)), flow(), lan)


def test_empty_rule_set_never_matches() -> None:
    assert not taken(
        Match(domain=("example.com",), rule_set=("empty",)), flow(domain="example.com"), rule_set(tag="empty")
    )


# process


def test_process_is_asked_for_when_all_else_holds() -> None:
    rules = Compiler().compile([rule(Match(port=(80,), process_name=("curl",))), rule(Match(process_name=("curl",)))])
    assert rules.needs_process
    assert rules.match(flow()) == NeedProcess(1)
    assert rules.match(flow(process=CURL), 1) == Step(1, rule(Match(process_name=("curl",))))
    assert rules.match(flow(process=ProcessInfo())) is None


def test_unknown_process_matches_no_name() -> None:
    assert not taken(Match(process_name=("",)), flow(process=ProcessInfo()))
    assert taken(Match(process_name=("curl",), invert=True), flow(process=ProcessInfo()))
    assert taken(Match(user_id=(0,)), flow(process=ProcessInfo(uid=0)))
    assert not taken(Match(user_id=(0,)), flow(process=ProcessInfo()))


# going on, and the trace


def test_match_goes_on_after_a_rule() -> None:
    sniff = Rule(match=Match(), action=Sniff(), origin="c:1")
    dns = Rule(match=Match(protocol=("dns",)), action=HijackDns(), origin="c:2")
    rest = Rule(match=Match(network=("tcp",)), action=Reject(), origin="c:3")
    rules = Compiler().compile([sniff, dns, rest])
    f = flow()
    assert rules.match(f) == Step(0, sniff)
    f.protocol = "dns"
    assert rules.match(f, 1) == Step(1, dns)
    assert rules.match(f, 2) == Step(2, rest)
    assert rules.match(f, 3) is None


def test_trace_names_what_failed() -> None:
    rules: Rules[Rule] = Compiler([rule_set(Match(domain=("x",)))]).compile(
        [
            rule(Match(network=("udp",))),
            rule(Match(domain_suffix=("example.org",), ip_is_private=True)),
            rule(Match(port=(80,), source_port=(1000,))),
            rule(Match(rule_set=("set",))),
            rule(Match(port=(443,), invert=True)),
            rule(Logical(mode="and", rules=(Match(port=(443,)), Match(protocol=("tls",))))),
            rule(Logical(mode="or", rules=(Match(port=(80,)), Match(protocol=("tls",))))),
            rule(Match(port=(443,))),
        ]
    )
    trials, step = rules.trace(flow(domain="example.com"))
    failed = ["network", "domain_suffix, ip_is_private", "port", "rule_set", "invert", "and: protocol", "or", ""]
    assert [trial.failed for trial in trials] == failed
    assert step is not None and step.index == 7


# DNS rules


def test_dns_rules_share_names_with_route_rules() -> None:
    compiler = Compiler([rule_set(Match(domain_suffix=("example",)), tag="set")])
    routes = compiler.compile([rule(Match(rule_set=("set",)))])
    dns = compiler.compile(
        [
            DnsRule(match=Match(outbound=("any",)), server="local"),
            DnsRule(match=Match(rule_set=("set",), query_type=(28,)), server="far"),
        ]
    )
    question = flow("", domain="www.example", query_type=28)
    found = dns.match(question)
    assert isinstance(found, Step) and found.rule.server == "far"
    assert dns.match(flow("", domain="www.example", query_type=1)) is None
    assert isinstance(dns.match(flow("", domain="www.example", query_type=1, outbound="proxy")), Step)
    assert routes.match(flow(domain="www.example")) is not None


@pytest.mark.parametrize("pattern", ["a(?=b)", r"(a)\1", "(", r"\pL"])
def test_regular_expression_that_is_not_of_ours_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        Compiler().compile([rule(Match(domain_regex=(pattern,)))])


@pytest.mark.parametrize(
    ("pattern", "host"), [(r"^[[:alpha:]]+\z", "localhost"), (r"^stun\..+", "stun.example.com"), (r"[+*]+|h", "h")]
)
def test_regular_expression_of_re2(pattern: str, host: str) -> None:
    assert taken(Match(domain_regex=(pattern,)), flow(domain=host))
