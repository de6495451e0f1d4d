"""Every sniffer on what real clients sent (captures/README.md): whole, split, byte by byte, and beside all other sniffers."""

import pytest

from tests.workers.sniff.captures import capture, every_capture
from workers.sniff import SNIFFERS, DatagramSniffer, Incomplete, Sniffed, sniff_stream

NAME = "www.example.org"
WEB = ("h2", "http/1.1")

STREAMS = {
    "tls-curl": Sniffed("tls", NAME, alpn=WEB),
    "tls-openssl": Sniffed("tls", NAME, alpn=WEB),
    "tls-openssl-without-sni": Sniffed("tls"),
    "tls-chromium": Sniffed("tls", NAME, alpn=WEB),
    "tls-firefox": Sniffed("tls", NAME, alpn=WEB),
    "http-curl": Sniffed("http", NAME),
    "http-wget": Sniffed("http"),  # of an address
    "http-proxy-curl": Sniffed("http", NAME),
    "http-connect-curl": Sniffed("http", NAME),
    "http2-curl": Sniffed("http", NAME),
    "ssh-openssh": Sniffed("ssh", client="OpenSSH_9.2p1 Debian-2+deb12u10"),
    "dns-tcp-dig": Sniffed("dns"),
    "rdp-freerdp": Sniffed("rdp"),
    "rdp-freerdp-plain": Sniffed("rdp"),
    "bittorrent-tcp": Sniffed("bittorrent"),
}
DATAGRAMS = {
    ("quic-chromium-1", "quic-chromium-2"): Sniffed("quic", NAME, "chromium", ("h3",)),
    ("quic-chromium-2", "quic-chromium-1"): Sniffed("quic", NAME, "chromium", ("h3",)),
    ("quic-chromium-1", "quic-chromium-3", "quic-chromium-2"): Sniffed("quic", NAME, "chromium", ("h3",)),
    ("quic-chromium-2", "quic-chromium-3"): Sniffed("quic", NAME, "chromium", ("h3",)),  # the first was lost
    ("quic-firefox-1", "quic-firefox-2"): Sniffed("quic", NAME, "firefox", ("h3",)),
    ("quic-firefox-2", "quic-firefox-2", "quic-firefox-1"): Sniffed("quic", NAME, "firefox", ("h3",)),
    ("quic-go-1", "quic-go-2"): Sniffed("quic", NAME, "quic-go", ("h3",)),
    ("quic-aioquic-1",): Sniffed("quic", NAME, None, ("h3",)),
    ("quic-rfc9001-a2",): Sniffed("quic", "example.com", None, ("alpn",)),
    ("quic-rfc9369-a2",): Sniffed("quic", "example.com", None, ("alpn",)),
    ("dns-dig",): Sniffed("dns"),
    ("stun-coturn",): Sniffed("stun"),
    ("stun-rfc5769-2.1",): Sniffed("stun"),
    ("dtls-openssl",): Sniffed("dtls"),
    ("ntp-ntpdate",): Sniffed("ntp"),
    ("ntp-chrony",): Sniffed("ntp"),
    ("bittorrent-utp",): Sniffed("bittorrent"),
    ("bittorrent-dht",): Sniffed("bittorrent"),
    ("bittorrent-tracker",): Sniffed("bittorrent"),
}

each_stream = pytest.mark.parametrize(("name", "expected"), STREAMS.items(), ids=STREAMS)
each_flow = pytest.mark.parametrize(("names", "expected"), DATAGRAMS.items(), ids=map("+".join, DATAGRAMS))


def test_every_capture_is_tried_and_every_sniffer_has_one() -> None:
    assert {*STREAMS, *(name for names in DATAGRAMS for name in names)} == set(every_capture())
    assert {sniffed.protocol for sniffed in (*STREAMS.values(), *DATAGRAMS.values())} == SNIFFERS


@each_stream
def test_stream_whole(name: str, expected: Sniffed) -> None:
    assert sniff_stream(capture(name), SNIFFERS) == expected


@each_stream
def test_stream_byte_by_byte(name: str, expected: Sniffed) -> None:
    """However little has come, it is never given up; what is certain early stays so; the end is the same."""
    data = capture(name)
    certain = None
    for size in range(len(data)):
        result = sniff_stream(data[:size], SNIFFERS)
        if isinstance(result, Sniffed):  # the name stands before the end
            assert result == expected
            continue
        assert isinstance(result, Incomplete), f"given up after {size} bytes"
        assert certain is None or result.so_far == certain
        certain = result.so_far
    assert certain is None or certain.protocol == expected.protocol
    assert sniff_stream(data, SNIFFERS) == expected


@each_stream
def test_stream_with_more_behind_it(name: str, expected: Sniffed) -> None:
    assert sniff_stream(capture(name) + bytes(range(256)) * 100, SNIFFERS) == expected


@each_stream
def test_stream_that_is_not_wanted(name: str, expected: Sniffed) -> None:
    assert sniff_stream(capture(name), SNIFFERS - {expected.protocol}) is None
    assert sniff_stream(capture(name), {expected.protocol}) == expected
    assert sniff_stream(capture(name), ()) is None


@each_flow
def test_flow(names: tuple[str, ...], expected: Sniffed) -> None:
    sniffer = DatagramSniffer(SNIFFERS)
    *first, last = names
    for name in first:
        assert sniffer.feed(capture(name)) == Incomplete(Sniffed("quic"))
    assert sniffer.feed(memoryview(capture(last))) == expected
    assert sniffer.feed(b"whatever follows") == expected


@each_flow
def test_flow_that_is_not_wanted(names: tuple[str, ...], expected: Sniffed) -> None:
    sniffer = DatagramSniffer(SNIFFERS - {expected.protocol})
    assert sniffer.feed(capture(names[0])) is None
    assert sniffer.feed(capture(names[0])) is None


@each_flow
def test_flow_cut_short_is_not_taken_for_another_protocol(names: tuple[str, ...], expected: Sniffed) -> None:
    datagram = capture(names[0])
    for size in range(len(datagram)):
        result = DatagramSniffer(SNIFFERS).feed(datagram[:size])
        certain = result.so_far if isinstance(result, Incomplete) else result  # the cut may be in the padding
        assert certain is None or certain.protocol == expected.protocol


@pytest.mark.parametrize("name", STREAMS)
def test_no_stream_is_taken_for_a_datagram(name: str) -> None:
    assert DatagramSniffer(SNIFFERS).feed(capture(name)) is None
