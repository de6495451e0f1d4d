"""workers/sniff/tls.py on ClientHellos of OpenSSL, cut into records and segments anywhere."""

import ssl
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.sniff import STREAM_MAX, Incomplete, Sniffed, sniff_stream
from workers.sniff.tls import HELLO_MAX, client_hello

TLS = {"tls"}
HANDSHAKE_RECORD = b"\x16\x03\x01"
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAME = st.builds(
    lambda labels, top: ".".join([*labels, top]), st.lists(LABEL, max_size=4), st.sampled_from(("org", "xn--p1ai"))
)
PROTOCOLS = st.lists(st.from_regex(r"[a-z0-9./-]{1,20}", fullmatch=True), max_size=4)


def openssl_hello(name: str | None, protocols: list[str], *, tls_1_2: bool = False) -> bytes:
    """The record that OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if tls_1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def records(message: bytes, cuts: list[int]) -> bytes:
    """The handshake message in records that end at `cuts` and at its end."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]
    pieces = [message[a:b] for a, b in pairwise(edges)]
    return b"".join(HANDSHAKE_RECORD + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def message(*, extensions: bytes | None, body_before: bytes | None = None) -> bytes:
    """A handshake message made by hand."""
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" if body_before is None else body_before
    if extensions is not None:
        body += len(extensions).to_bytes(2, "big") + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def server_name(raw: bytes, kind: int = 0) -> bytes:
    entry = bytes((kind,)) + len(raw).to_bytes(2, "big") + raw
    content = len(entry).to_bytes(2, "big") + entry
    return b"\0\0" + len(content).to_bytes(2, "big") + content


@settings(max_examples=60, deadline=None)
@given(name=st.none() | NAME, protocols=PROTOCOLS, tls_1_2=st.booleans())
def test_name_and_protocols_of_openssl(name: str | None, protocols: list[str], tls_1_2: bool) -> None:
    hello = openssl_hello(name, protocols, tls_1_2=tls_1_2)
    assert sniff_stream(hello, TLS) == Sniffed("tls", name, alpn=tuple(protocols))


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 600), max_size=30), data=st.data())
def test_records_and_segments_cut_anywhere(cuts: list[int], data: st.DataObject) -> None:
    stream = records(HELLO[5:], cuts)
    assert sniff_stream(stream, TLS) == EXPECTED
    for end in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=10)):
        assert isinstance(sniff_stream(stream[:end], TLS), Incomplete)


def test_a_record_for_every_byte_byte_by_byte() -> None:
    """What is certain comes with the header; no look before `needed` tells more; and the looks at `needed` are few."""
    stream = records(HELLO[5:], list(range(len(HELLO))))
    header_end = 4 * 6  # four records hold the header of the message
    needed = looks = 0
    for end in range(len(stream)):
        result = sniff_stream(stream[:end], TLS)
        assert isinstance(result, Incomplete)
        assert result.so_far == (Sniffed("tls") if end >= header_end else None)
        if end >= needed:
            looks += 1
            needed = result.needed
    assert needed <= len(stream) and looks < 100
    assert sniff_stream(stream, TLS) == EXPECTED


def test_needed_is_the_end_of_a_hello_in_one_record() -> None:
    for end in range(9, len(HELLO)):
        assert sniff_stream(HELLO[:end], TLS) == Incomplete(Sniffed("tls"), len(HELLO))


HELLO = openssl_hello("a.example.org", ["h2"])
EXPECTED = Sniffed("tls", "a.example.org", alpn=("h2",))


@pytest.mark.parametrize(
    ("raw", "domain"),
    [
        (b"Example.ORG", "example.org"),
        (b"example.org.", "example.org"),
        (b"_dmarc.example.org", "_dmarc.example.org"),
        (b"localhost", "localhost"),
        (b"a" * 63 + b".org", "a" * 63 + ".org"),
        (b"a" * 64 + b".org", None),
        (b".".join([b"a" * 49] * 5) + b".org", ".".join(["a" * 49] * 5) + ".org"),  # 253 characters
        (b".".join([b"a" * 49] * 5) + b".orgs", None),
        (b"192.0.2.1", None),
        (b"0x7f.1", None),
        (b"2001:db8::1", None),
        (b"a..b", None),
        (b".", None),
        (b"", None),
        (b"a b.org", None),
        (b"a\0.org", None),
        ("b\u00fccher.example".encode(), None),
    ],
    ids=repr,
)
def test_server_name_that_is_no_host_name_is_none(raw: bytes, domain: str | None) -> None:
    stream = records(message(extensions=server_name(raw)), [])
    assert sniff_stream(stream, TLS) == Sniffed("tls", domain)


def test_name_of_another_type_is_not_taken() -> None:
    assert sniff_stream(records(message(extensions=server_name(b"a.org", kind=1)), []), TLS) == Sniffed("tls")


@pytest.mark.parametrize(
    "extensions",
    [
        b"\0\0\0\0",
        b"\0\0\0\1\0",
        b"\0\0\0\2\0\5",
        b"\0\0\0\5\0\3\0\0\x09",
        b"\0\x10\0\0",
        b"\0\x10\0\3\0\x09h",
        b"\0\x0a\0\1\0",
    ],
    ids=bytes.hex,
)
def test_malformed_extension_leaves_the_rest(extensions: bytes) -> None:
    assert sniff_stream(records(message(extensions=extensions), []), TLS) == Sniffed("tls")


def test_hello_without_extensions() -> None:
    assert sniff_stream(records(message(extensions=None), []), TLS) == Sniffed("tls")


@pytest.mark.parametrize("end", range(2, 42))
def test_hello_whose_fields_do_not_fit_is_none(end: int) -> None:
    body = (b"\x03\x03" + bytes(32) + b"\x02\0\0" + b"\0\2\x13\1" + b"\1\0")[:end]
    assert sniff_stream(records(message(extensions=None, body_before=body), []), TLS) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x01\0\2\1\0",  # an alert
        b"\x17\x03\x03\0\2ab",
        b"\x16\x02",
        b"\x16\x03\x05",
        b"\x16\x03\x01\0\0",  # an empty fragment (RFC 8446, 5.1)
        b"\x16\x03\x01\x40\x01",  # longer than a record may be
        b"\x16\x03\x01\0\4\2",  # ServerHello
        b"\x16\x03\x01\0\4\1\0\2\0\x17\x03\x03",  # data between the fragments
    ],
    ids=bytes.hex,
)
def test_what_is_no_client_hello_is_none(data: bytes) -> None:
    assert sniff_stream(data, TLS) is None


def test_hello_beyond_the_bound_is_known_by_its_header() -> None:
    assert sniff_stream(HANDSHAKE_RECORD + b"\x40\0" + b"\1" + (HELLO_MAX + 1).to_bytes(3, "big"), TLS) == Sniffed(
        "tls"
    )


def test_hello_whose_records_pass_the_bound_is_decided_at_the_bound() -> None:
    stream = records(message(extensions=bytes(8000)), list(range(9000)))
    assert sniff_stream(stream[: STREAM_MAX - 1], TLS) == Incomplete(Sniffed("tls"), STREAM_MAX)
    assert sniff_stream(stream, TLS) == Sniffed("tls")


@given(st.binary(max_size=200))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    client_hello(body)
    client_hello(b"\x03\x03" + bytes(32) + body)
