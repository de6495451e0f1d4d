"""The service: who is answered from where, who waits for whom, and what happens when servers fail."""

import asyncio
from collections.abc import Iterator
from typing import Any

import dns.edns
import pytest

from shared.config import DnsConfig, DnsRule, DnsServer, Match
from shared.metrics import CELLS, Cell, Histogram
from shared.process import ProcessInfo
from shared.rules.flow import Ends
from shared.rules.matcher import Compiler
from tests.support.loop import on_loop, until
from tests.workers.dns.messages import ask, read, reply, texts
from tests.workers.dns.servers.scripted import Scripted, failing, silent
from workers.dns import service
from workers.dns.lookup import LookupFailed, look_up
from workers.dns.rules import Chooser
from workers.dns.servers.addressee import AddresseeServers
from workers.dns.servers.known import HostsServer, RcodeServer
from workers.dns.service import DnsService, Servers

CLIENT = bytes((192, 0, 2, 2))
ASKER = Ends("udp", CLIENT, 40000, bytes((192, 0, 2, 1)), 53)
OVER_TCP = ASKER._replace(network="tcp")
SOA = "example.com. 900 IN SOA ns.example.com. host.example.com. 1 2 3 4 30"


class World:
    """A service with scripted servers `first` and `second`, and a clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rules: DnsRule, **config: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(service, "monotonic", lambda: self.now)
        monkeypatch.setattr("workers.dns.exchange.monotonic", lambda: self.now)
        self.first, self.second = Scripted(), Scripted("192.0.2.2")
        self.default = Scripted("192.0.2.200")
        self.by_address: dict[str, Scripted] = {}
        self.counters = [0] * CELLS
        self.owners: list[Ends] = []
        self.owner = ProcessInfo(name="curl")
        self.named: list[tuple[bytes, tuple[bytes, ...]]] = []
        with_addressee = config.pop("with_addressee", False)
        notes_names = config.pop("notes_names", True)
        tags = ("addressee", "first", "second") if with_addressee else ("first", "second")
        made = DnsConfig(
            servers=(
                *(DnsServer(tag=tag, kind="udp") for tag in tags),
                DnsServer(tag="hosts", kind="hosts"),
                DnsServer(tag="refused", kind="rcode"),
            ),
            rules=rules,
            **config,
        )
        self.service = DnsService(
            asyncio.get_running_loop(),
            made,
            Chooser(made, (), Compiler()),
            Servers(
                {"first": self.first, "second": self.second},
                {"hosts": HostsServer([("router.lan", ("192.0.2.77",))]), "refused": RcodeServer(5)},
                {"addressee": AddresseeServers(self.default, self.at)} if with_addressee else {},
            ),
            self.counters,
            find_owner=self.find_owner,
            on_addresses=(lambda name, addresses: self.named.append((name, addresses))) if notes_names else None,
        )

    def at(self, address: str) -> Scripted:
        return self.by_address.setdefault(address, Scripted("192.0.2.1"))

    async def find_owner(self, ends: Ends) -> ProcessInfo:
        self.owners.append(ends)
        await asyncio.sleep(0)
        return self.owner

    def send(self, data: bytes, asker: Ends = ASKER) -> "asyncio.Future[bytes]":
        """A program asks."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.service.ask(data, asker, answer.set_result)
        return answer

    async def ask(self, *arguments: Any, asker: Ends = ASKER, **options: Any) -> bytes:
        return await self.send(ask(*arguments, **options), asker)

    def count(self, *cells: Cell) -> list[int]:
        return [self.counters[cell] for cell in cells]


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


def rule(server: str | None = "second", /, action: Any = "route", **fields: Any) -> DnsRule:
    match = {name: value for name, value in fields.items() if name in Match.__struct_fields__}
    rest = {name: value for name, value in fields.items() if name not in match}
    return DnsRule(match=Match(**match), action=action, server=server, **rest)


# the cache


@on_loop
async def test_second_time_nobody_is_asked(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    assert texts(await world.ask()) == ["example.com. 300 A 192.0.2.1"]
    world.now += 10.7
    answer = await world.ask("eXample.com", ident=77)
    assert (read(answer).id, texts(answer)) == (77, ["eXample.com. 290 A 192.0.2.1"])
    assert len(world.first.asked) == 1
    assert world.count(Cell.DNS_QUERIES, Cell.DNS_CACHE_HITS, Cell.DNS_UPSTREAM, Cell.DNS_WAITING) == [2, 1, 1, 0]
    assert sum(world.counters[Histogram.DNS : Histogram.DNS + 14]) == 1


@on_loop
async def test_after_its_time_an_answer_is_fetched_anew(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    await world.ask()
    world.now += 300
    await world.ask()
    assert len(world.first.asked) == 2


@on_loop
async def test_absence_is_kept_too(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = lambda message: reply(message, rcode="NXDOMAIN", authority=[SOA])
    for _ in range(2):
        assert read(await world.ask()).rcode() == 3
    assert len(world.first.asked) == 1


@on_loop
async def test_disabled_cache(patch: pytest.MonkeyPatch) -> None:
    for world in (World(patch, disable_cache=True), World(patch, rule("first", disable_cache=True))):
        for _ in range(2):
            await world.ask()
        assert len(world.first.asked) == 2


@on_loop
async def test_answers_that_never_expire(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, disable_expire=True)
    await world.ask()
    world.now += 1e6
    assert texts(await world.ask()) == ["example.com. 300 A 192.0.2.1"]
    assert len(world.first.asked) == 1


@on_loop
async def test_rewritten_ttl(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, rule("first", rewrite_ttl=5))
    assert texts(await world.ask()) == ["example.com. 5 A 192.0.2.1"]
    world.now += 5
    await world.ask()
    assert len(world.first.asked) == 2


@on_loop
async def test_dnssec_records_are_for_those_who_want_them(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    await world.ask()
    await world.ask(ednsflags=0x8000)
    assert [read(message).ednsflags for message in world.first.asked] == [0, 0x8000]


@on_loop
async def test_answers_kept_ready_are_right_forgotten_when_told_and_not_kept_for_hours(
    patch: pytest.MonkeyPatch,
) -> None:
    world = World(patch, notes_names=False)
    server = ASKER.destination

    def at_once(name: str, ident: int) -> bytes | None:
        return world.service.answer_at_once(ask(name, ident=ident), server, world.now)

    most = 0
    for number in range(50):
        name = f"host{number}.example."
        await world.ask(name)
        for ident in 1, 2, 3:
            answer = at_once(name, ident)
            assert answer is not None and read(answer).id == ident
        most = max(most, len(world.service._ready))
        world.now += 0.25
    assert most <= 4, "those of a second"
    world.service.forget()
    assert at_once("host49.example.", 4) is None


# stale answers


@on_loop
async def test_stale_answer_is_given_while_a_fresh_one_is_fetched(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, serve_stale=1000.0)
    await world.ask()
    world.first.script = lambda message: reply(message, "example.com. 60 IN A 192.0.2.9")
    world.now += 400
    assert texts(await world.ask()) == ["example.com. 30 A 192.0.2.1"]
    await until(lambda: world.count(Cell.DNS_WAITING) == [0])
    assert texts(await world.ask()) == ["example.com. 60 A 192.0.2.9"]
    assert world.count(Cell.DNS_STALE_HITS, Cell.DNS_UPSTREAM) == [1, 2]


@on_loop
async def test_refresh_that_fails_is_not_tried_again_at_once(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, serve_stale=1000.0)
    await world.ask()
    world.first.script = failing
    world.now += 400
    for seconds, asked in ((0, 2), (29, 2), (2, 3)):
        world.now += seconds
        assert texts(await world.ask()) == ["example.com. 30 A 192.0.2.1"]
        await until(lambda: world.count(Cell.DNS_WAITING) == [0])
        assert len(world.first.asked) == asked


# failures


@on_loop
async def test_failure_is_servfail_and_kept_for_a_second(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = failing
    for seconds, asked in ((0, 1), (0.9, 1), (0.2, 2)):
        world.now += seconds
        answer = read(await world.ask())
        assert (answer.rcode(), answer.question[0].name.to_text()) == (2, "example.com.")
        assert len(world.first.asked) == asked
    assert world.count(Cell.DNS_FAILED) == [2]


@on_loop
async def test_silence_is_servfail_when_the_time_is_up(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, timeout=0.01)
    world.first.script = silent
    assert read(await world.ask()).rcode() == 2
    assert world.count(Cell.DNS_FAILED, Cell.DNS_WAITING) == [1, 0]


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\x81\x80" + bytes(8), ask(), reply(ask("other.com"), "other.com. 1 IN A 192.0.2.1"), reply(ask())[:20]],
    ids=["empty", "no question", "a query", "another question", "cut off"],
)
@on_loop
async def test_answer_that_is_none_is_servfail(data: bytes, patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = lambda message: data
    assert read(await world.ask()).rcode() == 2


@on_loop
async def test_server_without_edns_is_asked_without(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = lambda message: (
        reply(message, "example.com. 300 IN A 192.0.2.1") if read(message).edns < 0 else reply(message, rcode="FORMERR")
    )
    assert texts(await world.ask(payload=1232)) == ["example.com. 300 A 192.0.2.1"]
    assert [read(message).edns for message in world.first.asked] == [0, -1]


@on_loop
async def test_a_defect_of_ours_is_an_answer_too(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = lambda message: ZeroDivisionError()
    assert read(await world.ask()).rcode() == 2
    assert world.count(Cell.CALLBACK_ERRORS) == [1]


# many who ask


@on_loop
async def test_equal_questions_are_asked_once(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    answers = [world.send(ask("Example.com" if ident % 2 else "example.COM", ident=ident)) for ident in range(100)]
    for ident, answer in enumerate(await asyncio.gather(*answers)):
        assert read(answer).id == ident
        assert texts(answer) == [f"{'Example.com' if ident % 2 else 'example.COM'}. 300 A 192.0.2.1"]
    assert len(world.first.asked) == 1
    assert world.count(Cell.DNS_JOINED) == [99]


@on_loop
async def test_waiters_and_questions_under_way_are_bounded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(service, "WAITERS_MAX", 3)
    patch.setattr(service, "FETCHES_MAX", 2)
    world = World(patch)
    world.first.script = silent
    waiting = [world.send(ask()) for _ in range(4)]
    other = world.send(ask("other.com"))
    refused = world.send(ask("third.com"))
    assert read(await refused).rcode() == 2
    assert not any(answer.done() for answer in (*waiting, other))
    assert world.count(Cell.DROP_DNS_LIMIT) == [2]
    world.service.close()
    assert world.count(Cell.DNS_WAITING) == [0]


# what is asked


@pytest.mark.parametrize("data", [b"", bytes(11), reply(ask())])
@on_loop
async def test_garbage_gets_no_answer(data: bytes, patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    assert not world.send(data).done()
    assert world.count(Cell.DROP_DNS_MALFORMED) == [1]


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (ask()[:20], 1),
        (ask()[:12] + b"\xc0\x0c\0\0\1\0\1", 1),
        (b"\0\1\x28\0" + ask()[4:], 4),
        (ask(edns=1), 16),
        (ask(qtype="AXFR"), 4),
    ],
    ids=["cut off", "pointer", "update", "EDNS 1", "AXFR"],
)
@on_loop
async def test_query_that_cannot_be_served_is_told_so(data: bytes, rcode: int, patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    assert read(await world.send(data)).rcode() == rcode
    assert not world.first.asked


@on_loop
async def test_long_answer_is_truncated_over_udp_and_whole_over_tcp(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = lambda message: reply(message, *(f"example.com. 60 IN A 192.0.2.{n}" for n in range(200)))
    assert read(await world.ask()).flags & 0x0200
    assert read(await world.ask(payload=1232)).flags & 0x0200
    assert len(texts(await world.ask(payload=4096))) == 200
    assert len(texts(await world.ask(asker=OVER_TCP))) == 200
    assert world.count(Cell.DNS_TRUNCATED) == [2]
    assert len(world.first.asked) == 1


@on_loop
async def test_the_programs_subnet_goes_before_the_configured_one(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, client_subnet="192.0.2.0/24")
    await world.ask()
    await world.ask(options=[dns.edns.ECSOption("198.51.100.0", 24)])
    told = [[option.to_text() for option in read(message).options] for message in world.first.asked]
    assert told == [["ECS 192.0.2.0/24 scope/0"], ["ECS 198.51.100.0/24 scope/0"]]


# rules


@on_loop
async def test_rules_choose_the_server(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, rule("second", domain_suffix=("test",)), rule("hosts", domain_suffix=("lan",)))
    assert texts(await world.ask("a.test")) == ["a.test. 300 A 192.0.2.2"]
    assert texts(await world.ask("router.lan")) == ["router.lan. 600 A 192.0.2.77"]
    assert texts(await world.ask()) == ["example.com. 300 A 192.0.2.1"]


@on_loop
async def test_rules_that_answer(patch: pytest.MonkeyPatch) -> None:
    world = World(
        patch,
        rule(None, "reject", domain=("no.test",)),
        rule(None, "reject", domain=("drop.test",), drop=True),
        rule(None, "predefined", domain=("fixed.test",), answer=("fixed.test. 9 IN A 192.0.2.9",)),
        rule(None, "predefined", domain=("gone.test",), rcode="NXDOMAIN"),
    )
    assert read(await world.ask("no.test")).rcode() == 5
    assert texts(await world.ask("fixed.test")) == ["fixed.test. 9 A 192.0.2.9"]
    assert read(await world.ask("gone.test")).rcode() == 3
    assert not world.send(ask("drop.test")).done()
    assert world.count(Cell.DROP_DNS_RULE) == [1]
    assert not world.first.asked


@pytest.mark.parametrize(("strategy", "empty", "full"), [("ipv4_only", "AAAA", "A"), ("ipv6_only", "A", "AAAA")])
@on_loop
async def test_unwanted_family_is_empty_and_nobody_is_asked(
    strategy: Any, empty: str, full: str, patch: pytest.MonkeyPatch
) -> None:
    world = World(patch, strategy=strategy)
    answer = read(await world.ask(qtype=empty))
    assert (answer.rcode(), answer.answer) == (0, [])
    assert not world.first.asked
    await world.ask(qtype=full)
    assert len(world.first.asked) == 1


@pytest.mark.parametrize(
    ("strategy", "h3", "expected"),
    [
        (None, True, 'alpn="h3,h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"'),
        (None, False, 'alpn="h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"'),
        ("ipv4_only", True, 'alpn="h3,h2" ipv4hint="192.0.2.1"'),
        ("ipv6_only", False, 'alpn="h2" ipv6hint="2001:db8::1"'),
    ],
)
@on_loop
async def test_bindings_offer_what_is_to_be_had(
    strategy: Any, h3: bool, expected: str, patch: pytest.MonkeyPatch
) -> None:
    world = World(patch, strategy=strategy)
    world.service.set_h3(h3)
    world.first.script = lambda message: reply(
        message, 'example.com. 60 IN HTTPS 1 . alpn="h3,h2" ipv4hint=192.0.2.1 ipv6hint=2001:db8::1'
    )
    for _ in range(2):
        assert texts(await world.ask(qtype="HTTPS")) == [f"example.com. 60 HTTPS 1 . {expected}"]


@on_loop
async def test_when_quic_goes_what_is_kept_goes_too(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = lambda message: reply(message, "example.com. 60 IN HTTPS 1 . alpn=h3,h2")
    assert "h3" in texts(await world.ask(qtype="HTTPS"))[0]
    world.service.set_h3(False)
    assert "h3" not in texts(await world.ask(qtype="HTTPS"))[0]


@on_loop
async def test_rule_about_who_asks(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, rule("second", source_ip_cidr=("198.51.100.0/24",)))
    other = ASKER._replace(source=bytes((198, 51, 100, 1)))
    for _ in range(2):
        assert texts(await world.ask()) == ["example.com. 300 A 192.0.2.1"]
        assert texts(await world.ask(asker=other)) == ["example.com. 300 A 192.0.2.2"]
    assert (len(world.first.asked), len(world.second.asked)) == (1, 1)
    assert world.count(Cell.DNS_CACHE_HITS) == [2]


@on_loop
async def test_rule_about_the_program(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, rule("second", process_name=("curl",)))
    assert texts(await world.ask()) == ["example.com. 300 A 192.0.2.2"]
    world.owner = ProcessInfo(name="wget")
    assert texts(await world.ask()) == ["example.com. 300 A 192.0.2.1"]
    assert world.owners[0] == ASKER


# the server that the program asks


@on_loop
async def test_each_public_server_answers_for_itself(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, with_addressee=True)
    to = {
        text: ASKER._replace(destination=bytes(map(int, text.split("."))))
        for text in ("8.8.8.8", "1.1.1.1", "10.0.0.1")
    }
    world.at("8.8.8.8").script = lambda message: reply(message, "example.com. 300 IN A 192.0.2.8")
    for _ in range(2):
        assert texts(await world.ask(asker=to["8.8.8.8"])) == ["example.com. 300 A 192.0.2.8"]
        assert texts(await world.ask(asker=to["1.1.1.1"])) == ["example.com. 300 A 192.0.2.1"]
        assert texts(await world.ask(asker=to["10.0.0.1"])) == ["example.com. 300 A 192.0.2.200"]
    assert [len(server.asked) for server in (world.at("8.8.8.8"), world.at("1.1.1.1"), world.default)] == [1, 1, 1]


@on_loop
async def test_question_without_recursion_is_passed_on_as_such(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    await world.ask(rd=False)
    assert not read(world.first.asked[0]).flags & 0x0100


# names of addresses


@on_loop
async def test_who_answered_addresses_belong_to_is_told_each_time(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    await world.ask("Example.com")
    await world.ask("example.COM")
    world.first.script = reply
    await world.ask(qtype="TXT")
    assert world.named == [(b"\x07example\x03com\0", (bytes((192, 0, 2, 1)),))] * 2


# the worker's own questions


@on_loop
async def test_look_up(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = by_type
    v4, v6 = bytes((192, 0, 2, 1)), b"\x20\x01\x0d\xb8" + bytes(11) + b"\1"
    for strategy, expected in {
        None: (v4, v6), "prefer_ipv4": (v4, v6), "prefer_ipv6": (v6, v4), "ipv4_only": (v4,), "ipv6_only": (v6,),
    }.items():  # fmt: skip
        assert await look_up(world.service, "Example.com", strategy=strategy) == expected
    assert len(world.first.asked) == 2, "the cache serves the worker too"
    assert not world.named


def by_type(message: bytes) -> bytes:
    record = "AAAA 2001:db8::1" if read(message).question[0].rdtype == 28 else "A 192.0.2.1"
    return reply(message, f"example.com. 300 IN {record}")


@on_loop
async def test_look_up_at_a_server_of_ones_own(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, rule("first"))
    found = await look_up(world.service, "example.com", server="second", strategy="ipv4_only")
    assert found == (bytes((192, 0, 2, 2)),)
    assert not world.first.asked


@on_loop
async def test_look_up_of_an_outbounds_server(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, rule("second", outbound=("any",)))
    assert await look_up(world.service, "example.com", outbound="proxy", strategy="ipv4_only") == (
        bytes((192, 0, 2, 2)),
    )
    assert await look_up(world.service, "example.com", strategy="ipv4_only") == (bytes((192, 0, 2, 1)),)


@on_loop
async def test_look_up_with_options(patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    for _ in range(2):
        await look_up(world.service, "example.com", strategy="ipv4_only", disable_cache=True)
    assert len(world.first.asked) == 2
    await look_up(world.service, "example.com", strategy="ipv4_only", rewrite_ttl=3)
    world.now += 3
    await look_up(world.service, "example.com", strategy="ipv4_only")
    assert len(world.first.asked) == 4


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda message: reply(message, rcode="NXDOMAIN"), "does not exist"),
        (lambda message: reply(message), "it has none"),
        (failing, "no server answered"),
    ],
)
@on_loop
async def test_look_up_that_finds_nothing(script: Any, reason: str, patch: pytest.MonkeyPatch) -> None:
    world = World(patch)
    world.first.script = script
    with pytest.raises(LookupFailed, match=reason):
        await look_up(world.service, "example.com")


@on_loop
async def test_look_up_of_what_is_no_name(patch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupFailed, match="not a domain name"):
        await look_up(World(patch).service, "a..b")


# the end


@on_loop
async def test_close_cancels_and_closes(patch: pytest.MonkeyPatch) -> None:
    world = World(patch, with_addressee=True)
    world.first.script = silent
    answer = world.send(ask())
    world.service.close()
    await until(lambda: not world.service._tasks)
    assert not answer.done()
    assert world.first.closed and world.second.closed and world.default.closed
