"""workers/sniff/http.py and http2.py."""

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from workers.sniff import STREAM_MAX, Incomplete, Sniffed, sniff_stream
from workers.sniff.http2 import CONTINUATION, END_HEADERS, HEADERS, PADDED, PREFACE, PRIORITY

HTTP = {"http"}
SETTINGS, WINDOW_UPDATE = 4, 8
UNDECIDED = Incomplete(Sniffed("http"))


@pytest.mark.parametrize(
    ("request_bytes", "domain"),
    [
        (b"GET / HTTP/1.1\r\nHost: Example.org\r\n\r\n", "example.org"),
        (b"GET / HTTP/1.1\r\nHost: example.org:8080\r\n\r\n", "example.org"),
        (b"GET / HTTP/1.1\r\nHOST:example.org.\t \r\n\r\n", "example.org"),
        (b"GET / HTTP/1.1\nhost: example.org\n\n", "example.org"),
        (b"POST /a HTTP/1.1\r\nX-Host: no\r\nCookie: Host: no\r\nHost: yes.org\r\n", "yes.org"),
        (b"GET / HTTP/1.0\r\nUser-Agent: x\r\n\r\nHost: body.org\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: b\xc3\xbccher.example\r\n\r\n", None),
        (b"GET http://User@Other.org:80/x?y HTTP/1.1\r\nHost: example.org\r\n\r\n", "other.org"),
        (b"GET https://other.org?y HTTP/1.1\r\n", "other.org"),
        (b"GET /?u=http://other.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n", "example.org"),
        (b"GET /\xe4\xf6 HTTP/1.1\r\nHost: example.org\r\n", "example.org"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n", "example.org"),
        (b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n", None),
        (b"OPTIONS * HTTP/1.1\r\nHost: example.org\r\n", "example.org"),
        (b"M-SEARCH * HTTP/1.1\r\nHost: example.org\r\n", "example.org"),
    ],
    ids=repr,
)
def test_host_of_a_request(request_bytes: bytes, domain: str | None) -> None:
    assert sniff_stream(request_bytes, HTTP) == Sniffed("http", domain)
    for end in range(len(request_bytes)):
        assert isinstance(sniff_stream(request_bytes[:end], HTTP), Incomplete | Sniffed), f"given up after {end} bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b" /",
        b"GET  HTTP/1.1\r\n",
        b"GET / HTTP/2",
        b"GET / HTTP/1.1 ",
        b"GET / HTTP/1.x",
        b"GET / HTTP/1.1\rx",
        b"GET /\r\n",
        b"GET /\x01",
        b"PING\r\n",
        b"G\xcbT /",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"OPTIONS rtsp://example.org RTSP",
        b"REGISTER sip:example.org SIP/2.0",
        b"x" * 33,
        b"\x16\x03\x01",
    ],
    ids=repr,
)
def test_what_is_no_request_is_none(data: bytes) -> None:
    assert sniff_stream(data, HTTP) is None


def test_host_behind_long_headers() -> None:
    head = b"GET / HTTP/1.1\r\nCookie: " + b"x" * 12_000 + b"\r\n"
    assert sniff_stream(head, HTTP) == UNDECIDED
    assert sniff_stream(head + b"Host: example.org\r\n", HTTP) == Sniffed("http", "example.org")


def test_host_beyond_the_bound_is_not_looked_for() -> None:
    head = b"GET / HTTP/1.1\r\nCookie: " + b"x" * STREAM_MAX + b"\r\nHost: example.org\r\n"
    assert sniff_stream(head, HTTP) == Sniffed("http")
    assert sniff_stream(b"GET /" + b"x" * STREAM_MAX, HTTP) is None


def frame(kind: int, payload: bytes, flags: int = 0, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


OPENING = PREFACE + frame(SETTINGS, b"\0\3\0\0\0\x64", stream=0) + frame(WINDOW_UPDATE, b"\0\1\0\0", stream=0)


def fields(*extra: tuple[str, str], huffman: bool = True) -> bytes:
    return bytes(Encoder().encode([(":method", "GET"), (":scheme", "http"), *extra, (":path", "/")], huffman=huffman))


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize(
    ("extra", "domain"),
    [
        (((":authority", "Example.org:80"),), "example.org"),
        ((("host", "example.org"),), "example.org"),
        (((":authority", "example.org"), ("host", "no.org")), "example.org"),
        (((":authority", "192.0.2.1"),), None),
        ((), None),
    ],
)
def test_authority_of_a_first_request(extra: tuple[tuple[str, str], ...], domain: str | None, huffman: bool) -> None:
    data = OPENING + frame(HEADERS, fields(*extra, huffman=huffman), END_HEADERS)
    assert sniff_stream(data, HTTP) == Sniffed("http", domain)
    for end in range(len(data)):
        assert sniff_stream(data[:end], HTTP) == (UNDECIDED if end >= len(PREFACE) else Incomplete())


def test_fields_in_continuations_with_padding_and_priority() -> None:
    block = fields((":authority", "example.org"))
    padded = b"\3" + b"\0\0\0\0\x10" + block[:4] + b"\0\0\0"
    data = OPENING + frame(HEADERS, padded, PADDED | PRIORITY) + frame(CONTINUATION, block[4:7])
    assert sniff_stream(data, HTTP) == UNDECIDED
    assert sniff_stream(data + frame(CONTINUATION, block[7:], END_HEADERS), HTTP) == Sniffed("http", "example.org")


@pytest.mark.parametrize("payload", [b"", b"\xff" * 20, b"\xff\xff\xff\xff\xff\x0f", b"\x40", b"\x80"], ids=bytes.hex)
def test_fields_that_do_not_decode(payload: bytes) -> None:
    for flags in END_HEADERS, END_HEADERS | PADDED, END_HEADERS | PRIORITY:
        assert sniff_stream(OPENING + frame(HEADERS, payload, flags), HTTP) == Sniffed("http")


def test_frame_that_may_not_be_so_large() -> None:
    assert sniff_stream(OPENING + b"\x00\x40\x01", HTTP) == UNDECIDED
    assert sniff_stream(OPENING + b"\x00\x40\x01\0\0\0\0\0\0", HTTP) == Sniffed("http")


def test_frames_without_end_are_given_up() -> None:
    settings = frame(SETTINGS, b"", stream=0)
    assert sniff_stream(PREFACE + settings * 31, HTTP) == UNDECIDED
    assert sniff_stream(PREFACE + settings * 32, HTTP) == Sniffed("http")


@given(st.binary(max_size=100))
def test_any_fields_are_decoded_or_refused(payload: bytes) -> None:
    result = sniff_stream(OPENING + frame(HEADERS, payload, END_HEADERS), HTTP)
    assert isinstance(result, Sniffed)
