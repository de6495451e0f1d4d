"""The smaller stream sniffers (ssh.py, bittorrent.py, rdp.py, dns.py), and what holds for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.sniff.captures import capture
from workers.sniff import SNIFFERS, STREAM_MAX, Incomplete, Sniffed, sniff_stream

# ssh


@pytest.mark.parametrize(
    ("banner", "client"),
    [
        (b"SSH-2.0-PuTTY_Release_0.78\r\n", "PuTTY_Release_0.78"),
        (b"SSH-2.0-Go\n", "Go"),
        (b"SSH-2.0-" + b"x" * 245 + b"\r\n", "x" * 245),
    ],
)
def test_ssh_program(banner: bytes, client: str) -> None:
    assert sniff_stream(banner, {"ssh"}) == Sniffed("ssh", client=client)
    assert sniff_stream(banner[:8], {"ssh"}) == sniff_stream(banner[:-1], {"ssh"}) == Incomplete(Sniffed("ssh"))
    assert sniff_stream(banner[:7], {"ssh"}) == Incomplete()


@pytest.mark.parametrize(
    "data",
    [b"SSH-1", b"ssh", b"SSH-2.0-\r\n", b"SSH-2.0-a\0b\r\n", b"SSH-2.0-\xe4\r\n", b"SSH-2.0-" + b"x" * 247, b"\r\n"],
    ids=repr,
)
def test_what_is_no_ssh_is_none(data: bytes) -> None:
    assert sniff_stream(data, {"ssh"}) is None


# rdp


def rdp(options: bytes, *, length: int | None = None, kind: int = 0xE0, destination: bytes = b"\0\0") -> bytes:
    length = 11 + len(options) if length is None else length
    return b"\3\0" + length.to_bytes(2, "big") + bytes((length - 5 & 0xFF, kind)) + destination + b"\0\0\0" + options


NEGOTIATION = b"\1\0\x08\0\3\0\0\0"


@pytest.mark.parametrize(
    "options",
    [
        NEGOTIATION,
        NEGOTIATION + b"\6\0\x24\0" + bytes(32),
        b"Cookie: mstshash=a\r\n",
        b"Cookie: msts=3640205228.15629.0000\r\n" + NEGOTIATION,
    ],
    ids=["negotiation", "correlation", "cookie", "token"],
)
def test_rdp_connection_request(options: bytes) -> None:
    request = rdp(options)
    assert sniff_stream(request, {"rdp"}) == Sniffed("rdp")
    assert {sniff_stream(request[:end], {"rdp"}) for end in range(len(request))} == {Incomplete()}


@pytest.mark.parametrize(
    "data",
    [
        b"\2",
        b"\3\1",
        rdp(b""),
        rdp(NEGOTIATION, kind=0xD0),
        rdp(NEGOTIATION, destination=b"\0\1"),
        rdp(NEGOTIATION[:-1] + b"\0\0"),
        rdp(b"\2" + NEGOTIATION[1:]),
        rdp(b"Cookie: mstshash=never ends"),
        rdp(b"\xc0\1\x0a\xc1\2\1\0\xc2\2\1\2"),  # S7, on the same transport
        b"\3\0\0\x13\x0f" + rdp(NEGOTIATION)[5:],
        b"\3\0\0\3" + bytes(20),
    ],
    ids=repr,
)
def test_what_is_no_rdp_is_none(data: bytes) -> None:
    assert sniff_stream(data, {"rdp"}) is None


# dns


HEADER = b"\x12\x34\1\0" + b"\0\1" + bytes(6)
QUESTION = b"\7example\3org\0\0\1\0\1"
OPT = b"\0\0\x29\4\xd0\0\0\0\0\0\0"


def dns(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize(
    "message",
    [
        HEADER + QUESTION,
        HEADER + b"\0\0\2\0\1",  # NS of the root
        HEADER + b"\7example\3org\0\0\xff\0\3",
        HEADER + b"\7example\3org\0\0\1\x80\1",  # mDNS, unicast response wanted
        HEADER[:10] + b"\0\1" + QUESTION + OPT,
        HEADER[:8] + b"\0\1\0\0" + QUESTION + b"\xc0\x0c" + b"\0\6\0\1\0\0\0\0\0\3abc",  # IXFR
        b"\0\0\x28\0" + b"\0\1" + bytes(6) + QUESTION,  # update
        b"\0\0\x24\0" + b"\0\1" + bytes(6) + QUESTION,  # notify
        HEADER + QUESTION + b"more",
    ],
    ids=bytes.hex,
)
def test_dns_request(message: bytes) -> None:
    stream = dns(message)
    assert sniff_stream(stream, {"dns"}) == Sniffed("dns")
    needed = len(stream) - (4 if message.endswith(b"more") else 0)
    assert {sniff_stream(stream[:end], {"dns"}) for end in range(needed)} == {Incomplete()}


@pytest.mark.parametrize(
    "message",
    [
        b"\0\0\x81\0" + HEADER[4:] + QUESTION,  # a response
        b"\0\0\1\3" + HEADER[4:] + QUESTION,  # with a code
        b"\0\0\1\x40" + HEADER[4:] + QUESTION,  # reserved bit
        b"\0\0\x11\0" + HEADER[4:] + QUESTION,  # status, which no one asks
        HEADER[:4] + b"\0\0" + bytes(6) + QUESTION,
        HEADER[:4] + b"\0\x41" + bytes(6) + QUESTION * 65,
        HEADER + b"\x40" + b"x" * 64 + b"\0\0\1\0\1",
        HEADER + b"\x3f" + (b"x" * 63 + b"\x3f") * 4 + b"\0\0\1\0\1",
        HEADER + b"\7example\3org\0\0\0\0\1",
        HEADER + b"\7example\3org\0\0\1\0\2",
        HEADER + b"\7example\3org\0\0\1",
        HEADER[:10] + b"\0\1" + QUESTION + b"\xc0",
        HEADER[:10] + b"\0\1" + QUESTION + b"\x80" + OPT,
        HEADER[:10] + b"\0\1" + QUESTION + OPT[:-1] + b"\x09",
    ],
    ids=bytes.hex,
)
def test_what_is_no_dns_request_is_none(message: bytes) -> None:
    assert sniff_stream(dns(message), {"dns"}) is None


def test_dns_length_that_no_message_has() -> None:
    assert sniff_stream(b"\0\x10" + bytes(100), {"dns"}) is None


# all


@pytest.mark.parametrize("protocol", sorted(SNIFFERS))
@given(data=st.binary(max_size=300))
def test_any_bytes_give_a_result(protocol: str, data: bytes) -> None:
    result = sniff_stream(data, {protocol})
    assert result is None or isinstance(result, Sniffed | Incomplete)


STREAMS = ("tls-openssl", "http-curl", "http2-curl", "ssh-openssh", "dns-tcp-dig", "rdp-freerdp", "bittorrent-tcp")


@given(name=st.sampled_from(STREAMS), cut=st.integers(0, 400), data=st.binary(max_size=100))
def test_a_good_beginning_and_any_end(name: str, cut: int, data: bytes) -> None:
    result = sniff_stream(capture(name)[:cut] + data, SNIFFERS)
    assert result is None or isinstance(result, Sniffed | Incomplete)


@pytest.mark.parametrize("name", STREAMS)
def test_never_incomplete_at_the_bound(name: str) -> None:
    """Whatever stands behind a good beginning, the bound ends it."""
    beginning = capture(name)
    for cut in range(1, len(beginning)):
        for filler in b"\0", b"a", b"\x16", b"\xff":
            data = beginning[:cut].ljust(STREAM_MAX, filler)
            assert not isinstance(sniff_stream(data, SNIFFERS), Incomplete)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Incomplete()),
        (b"GET", Incomplete()),
        (b"S", Incomplete()),
        (b"SSH-2.0-x", Incomplete(Sniffed("ssh"))),  # HTTP is undecided too, but knows nothing yet
        (b"\x16\x03", Incomplete()),
        (b"\0", Incomplete()),  # may be the length of a DNS message
        (b"\xff" * 8, None),
    ],
    ids=repr,
)
def test_what_is_known_early(data: bytes, expected: Incomplete | None) -> None:
    assert sniff_stream(data, SNIFFERS) == expected
