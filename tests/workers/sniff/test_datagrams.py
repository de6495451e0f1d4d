"""The sniffers that need one datagram (stun.py, dtls.py, dns.py, bittorrent.py, ntp.py), and DatagramSniffer itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.sniff.captures import capture, every_capture
from workers.sniff import SNIFFERS, DatagramSniffer, Incomplete, Sniffed

COOKIE = b"\x21\x12\xa4\x42"
NTP = b"\x23" + bytes(47)
UTP = b"\x41\0" + bytes(18)
DTLS = b"\x16\xfe\xfd" + bytes(8) + b"\0\3abc"


def sniff(datagram: bytes) -> object:
    return DatagramSniffer(SNIFFERS).feed(datagram)


@pytest.mark.parametrize(
    ("datagram", "protocol"),
    [
        (b"\0\1\0\0" + COOKIE + bytes(12), "stun"),
        (b"\1\1\0\4" + COOKIE + bytes(16), "stun"),  # a response: peers of WebRTC answer each other
        (b"\0\3\0\0" + COOKIE + bytes(12) + b"padding", "stun"),  # TURN Allocate
        (DTLS, "dtls"),
        (b"\x16\xfe\xff" + DTLS[3:], "dtls"),
        (b"\x17" + DTLS[1:] + DTLS, "dtls"),
        (NTP, "ntp"),
        (b"\x1b\0\6\xec" + bytes(44), "ntp"),  # SNTP, version 3
        (NTP + bytes(20), "ntp"),  # with a MAC
        (UTP, "bittorrent"),
        (b"\x41\2" + bytes(18) + b"\0\x08" + bytes(8), "bittorrent"),
        (b"\x41\1" + bytes(18) + b"\2\4" + bytes(4) + b"\0\x08" + bytes(8), "bittorrent"),
        (b"\0\0\4\x17\x27\x10\x19\x80" + bytes(4) + b"abcd", "bittorrent"),
        (b"d1:ad2:id20:" + b"x" * 20 + b"e1:q4:ping1:t2:aa1:y1:qe", "bittorrent"),
        (b"d2:ip6:abcdef1:rd2:id20:" + b"x" * 20 + b"e1:t2:aa1:y1:re", "bittorrent"),
        (b"d1:eli201e5:abcdee1:t2:aa1:y1:ee", "bittorrent"),
        (capture("dns-tcp-dig")[2:], "dns"),
    ],
)
def test_datagram(datagram: bytes, protocol: str) -> None:
    assert sniff(datagram) == Sniffed(protocol)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\0",
        b"\0\1\0\0" + COOKIE + bytes(11),
        b"\0\1\0\4" + COOKIE + bytes(12),  # attributes beyond the end
        b"\0\1\0\1" + COOKIE + bytes(13),
        b"\x80\1\0\0" + COOKIE + bytes(12),
        b"\0\1\0\0" + bytes(16),  # RFC 3489, before the cookie
        b"\x18" + DTLS[1:],
        b"\x16\x03\x03" + DTLS[3:],
        DTLS[:-1],
        DTLS[:11] + b"\0\0",
        NTP[:-1],
        NTP + b"\0",
        b"\x24" + NTP[1:],  # an answer
        b"\x13" + NTP[1:],  # version 2
        b"\x23\x11" + NTP[2:],
        NTP[:4] + b"\0\x11\0\0" + NTP[8:],
        NTP[:8] + b"\0\x11\0\0" + NTP[12:],
        b"\x21" + UTP[1:],  # uTP, but no SYN
        UTP + b"x",
        b"\x41\0" + bytes(6) + b"\0\0\0\1" + bytes(8),
        b"\x41\x09" + bytes(18) + b"\0\0",
        b"\x41\1" + bytes(18) + b"\0\x09" + bytes(8),
        b"\0\0\4\x17\x27\x10\x19\x80" + b"\0\0\0\1" + b"abcd",
        b"\0\0\4\x17\x27\x10\x19\x80" + bytes(4) + b"abc",
        b"d1:ad2:id20:e",
        b"d8:intervali1800ee",
        b"\x01\0\0\0" + bytes(144),  # WireGuard
        b"\x45" + bytes(59),
    ],
    ids=bytes.hex,
)
def test_what_is_nothing_known_is_none(datagram: bytes) -> None:
    assert sniff(datagram) is None


@given(data=st.lists(st.binary(max_size=1500), max_size=4))
def test_any_datagrams_give_a_result(data: list[bytes]) -> None:
    sniffer = DatagramSniffer(SNIFFERS)
    for datagram in data:
        result = sniffer.feed(datagram)
        assert result is None or isinstance(result, Sniffed | Incomplete)


@given(name=st.sampled_from(every_capture()), cut=st.integers(0, 1300), data=st.binary(max_size=100))
def test_a_good_beginning_and_any_end(name: str, cut: int, data: bytes) -> None:
    sniffer = DatagramSniffer(SNIFFERS)
    for _ in range(2):
        result = sniffer.feed(capture(name)[:cut] + data)
        assert result is None or isinstance(result, Sniffed | Incomplete)


def test_datagram_may_be_reused_by_the_caller() -> None:
    """A slot of the pool is valid only during the call."""
    memory = bytearray(capture("quic-chromium-1"))
    sniffer = DatagramSniffer(SNIFFERS)
    assert isinstance(sniffer.feed(memoryview(memory)), Incomplete)
    memory[:] = bytes(len(memory))
    assert sniffer.feed(capture("quic-chromium-2")) == Sniffed("quic", "www.example.org", "chromium", ("h3",))


def test_empty_datagram_of_a_flow_that_goes_on() -> None:
    sniffer = DatagramSniffer(SNIFFERS)
    assert isinstance(sniffer.feed(capture("quic-firefox-1")), Incomplete)
    assert sniffer.feed(b"") == Incomplete(Sniffed("quic"))
    assert sniffer.feed(capture("quic-firefox-2")) == Sniffed("quic", "www.example.org", "firefox", ("h3",))
