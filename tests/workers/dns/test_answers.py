"""Answers that the service makes or changes, read by dnspython."""

import pytest

from tests.workers.dns.messages import ask, query, read, reply, texts
from workers.dns.answers import (
    addresses_in,
    addresses_reply,
    describe,
    filter_bindings,
    predefined_reply,
    rcode_reply,
    subnet_option,
    without_edns,
)
from workers.dns.wire import BadReply, parse_reply

V4, V6 = b"\xc0\0\2\1", bytes(15) + b"\1"
HTTPS = 'example.com. 300 IN HTTPS 1 . alpn="h3,h2" ipv4hint=192.0.2.1 ipv6hint=2001:db8::1'
EVERYTHING = {"h3": True, "ipv4_hints": True, "ipv6_hints": True}


def filtered(record: str, **off: bool) -> list[str]:
    return texts(filter_bindings(reply(ask(qtype="HTTPS"), record), **{**EVERYTHING, **off}))


def test_addresses_of_the_family_asked_for() -> None:
    assert texts(addresses_reply(query(), [V4, V6], 60)) == ["example.com. 60 A 192.0.2.1"]
    assert texts(addresses_reply(query(qtype="AAAA"), [V4, V6], 60)) == ["example.com. 60 AAAA ::1"]


def test_rcode() -> None:
    assert read(rcode_reply(query(), 3)).rcode() == 3


def test_predefined_records() -> None:
    records = ['example.com. 60 IN TXT "some text"', "example.com. IN A 192.0.2.7"]
    assert texts(predefined_reply(query(), 0, records)) == [
        'example.com. 60 TXT "some text"',
        "example.com. 600 A 192.0.2.7",
    ]


@pytest.mark.parametrize("record", ["nothing", "example.com 60 IN A not-an-address", ""])
def test_predefined_record_that_is_none(record: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        predefined_reply(query(), 0, [record])


def test_addresses_in_an_answer() -> None:
    chain = ("example.com. 60 IN CNAME www.example.com.", "www.example.com. 60 IN A 192.0.2.1")
    data = reply(ask(), *chain, "www.example.com. 60 IN AAAA ::1")
    assert addresses_in(data, parse_reply(data)) == [V4, V6]


def test_bindings_lose_what_is_not_wanted_and_nothing_else() -> None:
    assert filtered(HTTPS) == [
        'example.com. 300 HTTPS 1 . alpn="h3,h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"',
    ]
    assert "h3" not in filtered(HTTPS, h3=False)[0] and 'alpn="h2"' in filtered(HTTPS, h3=False)[0]
    assert "ipv6hint" not in filtered(HTTPS, ipv6_hints=False)[0] and "ipv4hint" in filtered(HTTPS, ipv6_hints=False)[0]
    assert "ipv4hint" not in filtered(HTTPS, ipv4_hints=False)[0] and "ipv6hint" in filtered(HTTPS, ipv4_hints=False)[0]


def test_binding_with_nothing_but_h3_falls_back_to_the_default_protocol_or_goes() -> None:
    assert filtered("example.com. 60 IN HTTPS 1 . alpn=h3", h3=False) == ["example.com. 60 HTTPS 1 ."]
    assert filtered("example.com. 60 IN HTTPS 1 . alpn=h3,h3-29 no-default-alpn", h3=False) == []


def test_mandatory_keys_are_those_that_are_left() -> None:
    record = "example.com. 60 IN HTTPS 1 . mandatory=ipv4hint,alpn alpn=h2 ipv4hint=192.0.2.1"
    assert filtered(record, ipv4_hints=False) == ['example.com. 60 HTTPS 1 . mandatory="alpn" alpn="h2"']
    only = "example.com. 60 IN HTTPS 1 . mandatory=ipv4hint ipv4hint=192.0.2.1"
    assert filtered(only, ipv4_hints=False) == ["example.com. 60 HTTPS 1 ."]


def test_other_records_stay() -> None:
    data = reply(
        ask(qtype="HTTPS"), "example.com. 60 IN CNAME www.example.com.", HTTPS.replace("example", "www.example", 1)
    )
    assert len(texts(filter_bindings(data, h3=False, ipv4_hints=True, ipv6_hints=True))) == 2


def test_garbage_is_no_message() -> None:
    with pytest.raises(BadReply):
        filter_bindings(b"\0" * 11, h3=False, ipv4_hints=True, ipv6_hints=True)


def test_edns_is_taken_off() -> None:
    data = reply(ask(payload=1232), "example.com. 300 IN A 192.0.2.1", edns=0)
    assert read(without_edns(data)).edns == -1
    assert texts(without_edns(data)) == texts(data)


def test_subnet_option() -> None:
    assert subnet_option("192.0.2.0/24") == b"\0\1\x18\0\xc0\0\2"
    with pytest.raises(ValueError, match="address"):
        subnet_option("nonsense")


def test_question_in_words() -> None:
    assert describe(query("Example.com", "AAAA")) == "example.com AAAA"
