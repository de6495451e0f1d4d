"""Messages against dnspython's view of them; garbage gives the documented exceptions and nothing else."""

import dns.edns
import dns.message
import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.dns.messages import ask, query, read, reply
from workers.dns.wire import (
    AD,
    CD,
    EDNS_SIZE,
    RD,
    BadQuery,
    BadReply,
    build_query,
    check_name,
    name_text,
    parse_query,
    parse_reply,
    wire_name,
)

LABELS = st.text("abcXYZ019-_", min_size=1, max_size=63)
NAMES = st.lists(LABELS, max_size=3).map(".".join)


@given(NAMES, st.sampled_from(["A", "AAAA", "HTTPS", "TXT", "TYPE97"]), st.booleans(), st.booleans())
def test_query_is_what_dnspython_has_written(name: str, qtype: str, rd: bool, do: bool) -> None:
    edns = {"ednsflags": 0x8000, "payload": 1400} if do else {}
    parsed = query(name + ".", qtype, rd=rd, **edns)
    message = read(ask(name + ".", qtype, rd=rd))
    assert (parsed.qtype, parsed.qclass) == (message.question[0].rdtype, 1)
    assert name_text(parsed.name) == name.lower()
    assert parsed.name == wire_name(name)
    assert (parsed.do, parsed.edns, parsed.size) == (do, do, 1400 if do else 512)
    check_name(parsed)


def test_questions_that_differ_in_case_have_one_key() -> None:
    assert query("ExAmPle.COM").key == query("example.com").key


@pytest.mark.parametrize(
    "other",
    [
        query("example.org"),
        query(qtype="AAAA"),
        query(rd=False),
        query(ednsflags=0x8000),
        query(options=[dns.edns.ECSOption("192.0.2.0", 24)]),
    ],
    ids=["name", "type", "RD", "DO", "subnet"],
)
def test_what_makes_another_answer_makes_another_key(other: object) -> None:
    assert query().key != getattr(other, "key")  # noqa: B009


def test_type_is_no_letter() -> None:
    assert query(qtype="HTTPS").key != query(qtype="TYPE97").key  # 65 and 97: A and a


def test_cookies_make_no_other_key() -> None:
    assert query(options=[dns.edns.GenericOption(10, b"12345678")]).key == query(payload=1232).key


@pytest.mark.parametrize("data", [b"", bytes(11), reply(ask())], ids=["empty", "short", "an answer"])
def test_what_is_no_query_has_no_answer(data: bytes) -> None:
    assert parse_query(data) is None


def spoilt(data: bytes, at: int, *values: int) -> bytes:
    return data[:at] + bytes(values) + data[at + len(values) :]


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (spoilt(ask(), 2, 0x28), 4),  # opcode UPDATE
        (spoilt(ask(), 4, 0, 0), 1),  # no question
        (spoilt(ask(), 4, 0, 2), 1),  # two questions
        (spoilt(ask(), 6, 0, 1), 1),  # an answer
        (ask()[:-1], 1),
        (spoilt(ask(), 10, 0, 1), 1),  # an additional record that is not there
        (ask(payload=1232)[:-1], 1),
        (ask(options=[dns.edns.GenericOption(10, b"12345678")])[:-1], 1),
        (ask(payload=1232) + ask(payload=1232)[-11:], None),  # what follows is not counted, and not looked at
        (spoilt(ask(payload=1232) + ask(payload=1232)[-11:], 10, 0, 2), 1),  # EDNS twice
        (ask(edns=1), 16),
    ],
)
def test_bad_query_is_answered_with_its_rcode(data: bytes, rcode: int | None) -> None:
    if rcode is None:
        assert parse_query(data) is not None
        return
    with pytest.raises(BadQuery) as caught:
        parse_query(data)
    answer = read(caught.value.reply())
    assert (answer.id, answer.rcode()) == (0x1234, rcode)


@pytest.mark.parametrize(
    "name",
    [
        b"\x40" + b"a" * 64 + b"\0",
        b"\xc0\x0c\0",
        b"\x03a\0b\0",
        b"\x3f" + b"a" * 63 + (b"\x3f" + b"b" * 63) * 3 + b"\0",
    ],
    ids=["long label", "pointer", "zero in a label", "long name"],
)
def test_name_that_is_none_is_refused(name: bytes) -> None:
    parsed = parse_query(ask()[:12] + name + b"\0\1\0\1")
    assert parsed is not None
    with pytest.raises(BadQuery):
        check_name(parsed)


@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_refused_or_well_formed(data: bytes, headed: bool) -> None:
    if headed:
        data = ask()[:12] + data
    try:
        parsed = parse_query(data)
        if parsed is not None:
            check_name(parsed)
    except BadQuery as bad:
        read(bad.reply())
    else:
        if parsed is not None:
            assert dns.name.from_wire(parsed.question, 0)[0].to_wire() == parsed.question[:-4]
            name_text(parsed.name)


def test_query_for_a_server_has_edns_and_what_the_program_wants() -> None:
    message = read(
        build_query(query("Example.com", ednsflags=0x8000)._replace(flags=RD | AD | CD), subnet=b"\0\1\x18\0\1\2\3")
    )
    assert (message.id, message.flags, message.ednsflags, message.payload) == (0, RD | AD | CD, 0x8000, EDNS_SIZE)
    assert message.question[0].name.to_text() == "Example.com."
    assert [option.to_text() for option in message.options] == ["ECS 1.2.3.0/24 scope/0"]


def test_query_without_edns() -> None:
    assert read(build_query(query(payload=1232), edns=False)).edns == -1


def test_reply_is_taken_apart() -> None:
    data = reply(ask(), "example.com. 300 IN A 192.0.2.1", "example.com. 300 IN A 192.0.2.2", edns=0)
    found = parse_reply(data)
    assert [(record.section, record.rtype, record.ttl) for record in found.records] == [(1, 1, 300), (1, 1, 300)]
    assert {data[record.data_at : record.end] for record in found.records} == {b"\xc0\0\2\1", b"\xc0\0\2\2"}
    assert found.opt is not None


@pytest.mark.parametrize("size", range(12, 61))
def test_reply_that_is_cut_off_is_refused(size: int) -> None:
    data = reply(ask(), "example.com. 300 IN A 192.0.2.1", "example.com. 300 IN A 192.0.2.2", edns=0)
    assert size < len(data)
    with pytest.raises(BadReply):
        parse_reply(data[:size])


@given(st.binary(max_size=300))
def test_garbage_for_a_reply_is_refused_or_lies_within(data: bytes) -> None:
    try:
        found = parse_reply(b"\0\0\x80\0" + data)
    except BadReply:
        return
    assert all(12 <= record.start < record.data_at <= record.end <= len(data) + 4 for record in found.records)


def test_negative_ttl_is_zero() -> None:
    data = bytearray(reply(ask(), "example.com. 300 IN A 192.0.2.1"))
    at = parse_reply(bytes(data)).records[0].ttl_at
    data[at] = 0x80
    assert parse_reply(bytes(data)).records[0].ttl == 0  # RFC 2181 section 8


@pytest.mark.parametrize("text", ["a..b", "a" * 64, "ü.example", ".".join(["a" * 60] * 5)])
def test_text_that_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"name|ASCII"):
        wire_name(text)


def test_odd_bytes_of_a_name_are_escaped() -> None:
    assert name_text(b"\x04A.b\\\x02\x01\xff\0") == r"a\046b\092.\001\255"
    assert name_text(b"\0") == ""
