"""Answers that are kept: who gets them, how long, with what TTL; bounds. Time is a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.dns.messages import ask, query, read, reply, texts
from workers.dns import cache
from workers.dns.cache import FAILURE_TTL, Answer, Cache
from workers.dns.wire import AD, EDNS_SIZE, Query, parse_query, parse_reply

A1 = "example.com. 300 IN A 192.0.2.1"
A2 = "example.com. 60 IN A 192.0.2.2"
SOA = "example.com. 900 IN SOA ns.example.com. host.example.com. 1 2 3 4 {minimum}"


def kept(data: bytes, question: Query | None = None, now: float = 0.0) -> Answer:
    return Answer(data, parse_reply(data), question or query(), now)


def test_answer_has_the_askers_identifier_and_spelling() -> None:
    answer = kept(reply(ask(), A1))
    data = answer.render(query("eXample.Com", ident=7), 0.0, 512)
    message = read(data)
    assert (message.id, message.question[0].name.to_text()) == (7, "eXample.Com.")
    assert texts(data) == ["eXample.Com. 300 A 192.0.2.1"]


def test_edns_is_answered_with_edns_and_only_then() -> None:
    answer = kept(reply(ask(payload=1232), A1, edns=0))
    plain, with_edns = answer.render(query(), 0, 512), answer.render(query(ednsflags=0x8000), 0, 1232)
    assert read(plain).edns == -1
    assert (read(with_edns).edns, read(with_edns).payload, read(with_edns).ednsflags) == (0, EDNS_SIZE, 0x8000)
    assert texts(plain) == texts(with_edns)


def test_ttls_age() -> None:
    answer = kept(reply(ask(), A1, "www.example.com. 60 IN A 192.0.2.2"))
    ages = [
        (now, [int(text.split()[1]) for text in texts(answer.render(query(), now, 512))])
        for now in (0, 0.9, 1, 59.5, 7)
    ]
    assert ages == [(0, [300, 60]), (0.9, [300, 60]), (1, [299, 59]), (59.5, [241, 1]), (7, [293, 53])]


def test_answer_lives_as_long_as_its_shortest_record() -> None:
    assert kept(reply(ask(), A1, "www.example.com. 60 IN A 192.0.2.2"), now=5.0).expires_at == 65.0


@pytest.mark.parametrize(
    ("data", "lifetime"),
    [
        (reply(ask(), rcode="NXDOMAIN", authority=[SOA.format(minimum=30)]), 30),
        (reply(ask(), rcode="NXDOMAIN", authority=[SOA.format(minimum=3600)]), 900),
        (reply(ask(), rcode="NXDOMAIN"), 0),
        (reply(ask(), authority=[SOA.format(minimum=20)]), 20),
        (reply(ask()), 0),
        (reply(ask(), "example.com. 300 IN CNAME www.example.com.", authority=[SOA.format(minimum=20)]), 20),
        (reply(ask(), "example.com. 300 IN CNAME www.example.com."), 0),
        (reply(ask(qtype="CNAME"), "example.com. 300 IN CNAME www.example.com."), 300),
        (reply(ask(), rcode="SERVFAIL"), 0),
        (reply(ask(), rcode="REFUSED"), 0),
        (reply(ask(), A1, flags=0x0200), 0),
        (reply(ask(), "example.com. 0 IN A 192.0.2.1"), 0),
        (reply(ask(), "example.com. 9999999 IN A 192.0.2.1"), cache.TTL_MAX),
        (reply(ask(), rcode="NXDOMAIN", authority=["example.com. 99999 IN SOA a. b. 1 2 3 4 99999"]), 3 * 3600),
    ],
    ids=[
        "NXDOMAIN", "SOA's own TTL", "NXDOMAIN without SOA", "no data", "no data, no SOA", "CNAME to no data",
        "CNAME without more", "CNAME asked for", "SERVFAIL", "REFUSED", "truncated", "TTL 0", "TTL too long",
        "negative TTL too long",
    ],
)  # fmt: skip
def test_lifetime(data: bytes, lifetime: float) -> None:
    assert kept(data, parse_query(data[:2] + b"\1\0" + data[4:6] + bytes(6) + data[12:])).lifetime == lifetime


def test_answer_that_may_not_be_kept_is_given_once_as_it_is() -> None:
    answer = kept(reply(ask(), "example.com. 0 IN A 192.0.2.1"))
    assert texts(answer.render(query(), 0.5, 512)) == ["example.com. 0 A 192.0.2.1"]


def test_stale_answer_is_said_to_live_for_30_seconds() -> None:
    answer = kept(reply(ask(), A1))
    assert texts(answer.render(query(), 300.0, 512)) == ["example.com. 30 A 192.0.2.1"]


def test_rewritten_ttl() -> None:
    answer = kept(reply(ask(), A1))
    answer.set_lifetime(10)
    assert answer.expires_at == 10
    assert texts(answer.render(query(), 4.0, 512)) == ["example.com. 6 A 192.0.2.1"]


def test_answer_without_end_keeps_its_ttls() -> None:
    answer = kept(reply(ask(), A1))
    answer.set_lifetime(math.inf)
    assert texts(answer.render(query(), 1e6, 512)) == ["example.com. 300 A 192.0.2.1"]


@pytest.mark.parametrize("edns", [{}, {"payload": 4096}], ids=["plain", "edns"])
def test_what_is_too_long_is_truncated_to_nothing(edns: dict[str, int]) -> None:
    answer = kept(reply(ask(qtype="TXT"), *(f"example.com. 60 IN TXT {'x' * 200}{n}" for n in range(30))))
    asked = query(qtype="TXT", **edns)
    message = read(answer.render(asked, 0.0, asked.size))
    assert message.flags & 0x0200
    assert not message.answer
    assert message.edns == (0 if edns else -1)
    assert len(texts(answer.render(asked, 0.0, 65535))) == 30


@pytest.mark.parametrize(("flags", "edns", "told"), [(0, {}, False), (AD, {}, True), (0, {"ednsflags": 0x8000}, True)])
def test_authentic_data_is_told_to_those_who_ask(flags: int, edns: dict[str, int], told: bool) -> None:
    asked = query(**edns)
    answer = kept(reply(ask(), A1, flags=AD))
    assert bool(read(answer.render(asked._replace(flags=asked.flags | flags), 0, 512)).flags & AD) is told


@pytest.mark.parametrize("rd", [True, False])
def test_authoritative_is_who_is_asked_without_recursion(rd: bool) -> None:
    answer = kept(reply(ask(rd=rd), A1, flags=0x0400), query(rd=rd))
    message = read(answer.render(query(rd=rd), 0, 512))
    assert (bool(message.flags & 0x0400), bool(message.flags & 0x0100)) == (not rd, rd)


def test_cache_forgets_what_is_over() -> None:
    store = Cache(10)
    store.put(b"key", kept(reply(ask(), A1)))
    assert store.get(b"key", 299.9) is not None
    assert store.get(b"key", 300.0) is None
    assert (len(store), store.size) == (0, 0)


def test_cache_keeps_what_is_stale_for_as_long_as_it_is_told() -> None:
    store = Cache(10, serve_stale=100.0)
    store.put(b"key", kept(reply(ask(), A1)))
    assert store.get(b"key", 399.9) is not None
    assert store.get(b"key", 400.0) is None


def test_names_that_nobody_asks_for_again_do_not_stay() -> None:
    """As a program does that asks for one name after another, for hours."""
    store = Cache(10_000)
    most = 0
    for second in range(1000):
        store.put(b"%d" % second, kept(reply(ask(), A2), now=float(second)))
        most = max(most, len(store))
    assert most <= 60 + cache.EXPIRE_INTERVAL
    assert store.size == sum(len(b"%d" % second) for second in range(1000 - len(store), 1000)) + len(store) * 16


def test_stale_answers_stay_for_as_long_as_they_are_served() -> None:
    store = Cache(10, serve_stale=100.0)
    store.put(b"old", kept(reply(ask(), A2)))
    store.put(b"new", kept(reply(ask(), A2), now=159.0))
    assert store.get(b"old", 159.0) is not None
    store.put(b"newer", kept(reply(ask(), A2), now=170.0))
    assert len(store) == 2


def test_least_recently_used_goes_first() -> None:
    store = Cache(2)
    for key in b"a", b"b":
        store.put(key, kept(reply(ask(), A1)))
    store.get(b"a", 0.0)
    store.put(b"c", kept(reply(ask(), A1)))
    assert [key for key in (b"a", b"b", b"c") if store.get(key, 0.0)] == [b"a", b"c"]


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BYTES_MAX", 100)
    store = Cache(1000)
    for number in range(100):
        store.put(b"%d" % number, kept(reply(ask(), A1)))
        assert store.size <= 100
    assert len(store) == 5


def test_answer_that_lives_no_time_replaces_and_is_not_kept() -> None:
    store = Cache(10)
    store.put(b"key", kept(reply(ask(), A1)))
    store.put(b"key", kept(reply(ask())))
    assert len(store) == store.size == 0


def test_failure_is_kept_for_a_second() -> None:
    answer = kept(reply(ask(), rcode="SERVFAIL"))
    answer.set_lifetime(FAILURE_TTL)
    store = Cache(10)
    store.put(b"key", answer)
    assert store.get(b"key", 0.9) is not None
    assert store.get(b"key", 1.0) is None


@given(st.lists(st.tuples(st.sampled_from(range(6)), st.integers(0, 120)), max_size=60))
def test_cache_against_an_obvious_one(steps: list[tuple[int, int]]) -> None:
    """An obvious cache: a list, searched from its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "EXPIRE_INTERVAL", 0.0)
        compare(steps)


def compare(steps: list[tuple[int, int]]) -> None:
    store = Cache(3)
    obvious: list[tuple[int, float]] = []
    now = 0.0
    for number, ttl in steps:
        now += ttl / 4
        obvious = [(key, end) for key, end in obvious if end > now or key != number]
        found = store.get(b"%d" % number, now)
        assert (found is not None) == any(key == number for key, _ in obvious)
        ends = [end for key, end in obvious if key == number]
        obvious = [entry for entry in obvious if entry[0] != number]
        if ends:
            obvious.append((number, ends[0]))
        elif ttl:
            store.put(b"%d" % number, kept(reply(ask(), f"example.com. {ttl} IN A 192.0.2.1"), now=now))
            obvious = [*((key, end) for key, end in obvious if end > now), (number, now + ttl)][-3:]
