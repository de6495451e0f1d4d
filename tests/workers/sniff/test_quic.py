"""workers/sniff/quic.py: packets made with a library's HKDF, the ClientHello cut and shuffled, and everything hostile."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.quic import DESTINATION, V1, V2, crypto, initial
from tests.workers.sniff.captures import capture
from tests.workers.sniff.test_tls import message, openssl_hello, server_name
from workers.sniff import DATAGRAMS_MAX, DatagramSniffer, Incomplete, Result, Sniffed, limits, quic

QUIC = {"quic"}
HELLO = openssl_hello("a.example.org", ["h3"])[5:]
EXPECTED = Sniffed("quic", "a.example.org", None, ("h3",))
UNDECIDED = Incomplete(Sniffed("quic"))
PING, ACK = b"\1", b"\2\0\0\0\0"
HANDSHAKE_TYPE = {V1: 2, V2: 3}
each_version = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])


def feed(*datagrams: bytes) -> Result:
    sniffer = DatagramSniffer(QUIC)
    return [sniffer.feed(datagram) for datagram in datagrams][-1]


def cut(data: bytes, edges: list[int]) -> list[bytes]:
    """CRYPTO frames of `data`, cut at `edges`."""
    ends = [*sorted({edge for edge in edges if 0 < edge < len(data)}), len(data)]
    frames, start = [], 0
    for end in ends:
        frames.append(crypto(start, data[start:end]))
        start = end
    return frames


@each_version
@pytest.mark.parametrize("number_size", [1, 2, 3, 4])
@pytest.mark.parametrize("token", [b"", b"t" * 100], ids=["", "token"])
def test_one_initial(version: int, number_size: int, token: bytes) -> None:
    datagram = initial(crypto(0, HELLO), version=version, number=200, number_size=number_size, token=token)
    assert feed(datagram) == EXPECTED


@settings(deadline=None)
@given(
    edges=st.lists(st.integers(1, len(HELLO)), max_size=30),
    random=st.randoms(use_true_random=False),
    version=st.sampled_from((V1, V2)),
    datagrams=st.integers(1, DATAGRAMS_MAX),
)
def test_frames_in_any_order_over_datagrams(edges: list[int], random: object, version: int, datagrams: int) -> None:
    frames = cut(HELLO, edges)
    random.shuffle(frames)  # type: ignore[attr-defined]
    frames = [random.choice((b"", PING, bytes(5), ACK)) + frame for frame in frames]  # type: ignore[attr-defined]
    share = -(-len(frames) // datagrams)
    parts = [b"".join(frames[at : at + share]) for at in range(0, len(frames), share)]
    results = []
    sniffer = DatagramSniffer(QUIC)
    for number, part in enumerate(parts):
        results.append(sniffer.feed(initial(part, version=version, number=number)))
    assert results == [UNDECIDED] * (len(parts) - 1) + [EXPECTED]


def test_pieces_that_overlap_and_come_twice() -> None:
    pieces = [crypto(0, HELLO[:10]), crypto(5, HELLO[5:90]), crypto(0, HELLO[:7]), crypto(20, HELLO[20:40])]
    assert feed(initial(b"".join(pieces))) == UNDECIDED
    assert feed(initial(b"".join(pieces) + crypto(80, HELLO[80:]))) == EXPECTED


@each_version
def test_several_packets_in_a_datagram(version: int) -> None:
    """Two Initials, with a packet of another type between them, and garbage behind (RFC 9000, 12.2)."""
    first, second = (initial(part, version=version, size=0) for part in cut(HELLO, [100]))
    zero_rtt = bytes((0xC0 | (1 if version == V1 else 2) << 4,)) + version.to_bytes(4, "big")
    zero_rtt += bytes((8,)) + DESTINATION + b"\0" + b"\x40\x20" + bytes(32)
    assert feed(first + zero_rtt + second + b"\x40garbage") == EXPECTED


def test_destination_of_the_server_with_the_first_keys() -> None:
    """When the server has answered, its connection id stands in the header; the keys stay (RFC 9001, 5.2)."""
    first, second = cut(HELLO, [100])
    theirs = initial(second, destination=b"server", key_destination=DESTINATION, number=1)
    assert feed(initial(first), theirs) == EXPECTED


def test_retry_gives_new_keys_and_begins_anew() -> None:
    first, second = cut(HELLO, [100])
    after_retry = initial(first + second, destination=b"retry source", token=b"token", number=1)
    assert feed(initial(first), after_retry) == EXPECTED


@pytest.mark.parametrize("destination", [b"", b"1", b"x" * 20], ids=len)
def test_connection_id_of_any_length(destination: bytes) -> None:
    assert feed(initial(crypto(0, HELLO), destination=destination)) == EXPECTED


@each_version
def test_damage_anywhere_is_not_authentic(version: int) -> None:
    datagram = initial(crypto(0, HELLO), version=version)
    for at in range(0, len(datagram), 7):
        assert feed(datagram[:at] + bytes((datagram[at] ^ 0x20,)) + datagram[at + 1 :]) is None
    for size in range(0, len(datagram), 7):
        assert feed(datagram[:size]) is None


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\xc0",
        b"\xc0\0\0\0\1",
        b"\xc0\0\0\0\1\x08" + DESTINATION + b"\0\0\4" + bytes(4),  # no room for a sample
        b"\xc0\0\0\0\1\x15" + bytes(21) + b"\0\0\x40\x20" + bytes(32),  # connection id too long
        b"\xc0\0\0\0\1\x08" + DESTINATION + b"\0\xff\xff\xff\xff\xff\xff\xff\xff",  # token beyond the end
        b"\xc0\0\0\0\1\x08" + DESTINATION + b"\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(1200),
        b"\xc0\xff\0\0\x1d\x08" + DESTINATION + bytes(1200),  # draft 29
        b"\xc0\0\0\0\0\x08" + DESTINATION + b"\x08" + DESTINATION + b"\0\0\0\1",  # version negotiation
        b"\x40" + DESTINATION + bytes(1200),
    ],
    ids=range(10),
)
def test_what_is_no_initial_is_none(datagram: bytes) -> None:
    assert feed(datagram) is None


@pytest.mark.parametrize(
    "frames",
    [
        b"\x06",
        b"\x06\0\x40",
        b"\x06\0\x7f\xffshort",
        b"\x06" + b"\xff" * 8 + b"\1x",
        b"\2\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(50),
        b"\3\0\0\1\0\0\0\1\2\3",
        b"\x1c\0\0\0",
        b"\x08stream",
        b"",
    ],
    ids=bytes.hex,
)
def test_frames_that_lead_nowhere_leave_the_protocol_known(frames: bytes) -> None:
    assert feed(initial(frames)) == UNDECIDED
    assert feed(initial(crypto(0, HELLO) + frames)) == EXPECTED


@pytest.mark.parametrize(
    "handshake",
    [b"\2" + HELLO[1:], message(extensions=b"\0\0\0\1"), b"\1\0\0\0"],
    ids=["server hello", "malformed", "empty"],
)
def test_message_that_is_no_client_hello_leaves_the_protocol_known(handshake: bytes) -> None:
    assert feed(initial(crypto(0, handshake))) == Sniffed("quic")


def test_hello_that_never_ends_is_given_up() -> None:
    sniffer = DatagramSniffer(QUIC)
    results = [sniffer.feed(initial(crypto(0, HELLO[:50]), number=number)) for number in range(DATAGRAMS_MAX + 2)]
    assert results == [UNDECIDED] * (DATAGRAMS_MAX - 1) + [Sniffed("quic")] * 3


def test_memory_is_bounded() -> None:
    """Frames of one byte, at other offsets in every datagram, and beyond the end of any ClientHello."""
    sniffer = quic.QuicSniffer()
    for datagram in range(DATAGRAMS_MAX):
        frames = b"".join(crypto(1 + datagram * 7 + at, b"x") for at in range(0, 60_000, 211))
        sniffer.feed(initial(frames, size=0, number=datagram))
    pieces = sniffer._crypto._pieces
    assert len(pieces) <= quic.FRAMES_MAX
    assert max(pieces) < quic.HELLO_MAX + 4


@pytest.mark.parametrize(
    ("groups", "client"),
    [((0x2A2A, 0x001D), "safari"), ((0x001D, 0x2A2A), None), ((), None)],
    ids=["GREASE first", "GREASE last", "none"],
)
def test_client_that_greases_its_groups_is_safari(groups: tuple[int, ...], client: str | None) -> None:
    vector = b"".join(group.to_bytes(2, "big") for group in groups)
    content = len(vector).to_bytes(2, "big") + vector
    extensions = server_name(b"a.org") + b"\0\x0a" + len(content).to_bytes(2, "big") + content
    assert feed(initial(crypto(0, message(extensions=extensions)))) == Sniffed("quic", "a.org", client)


def test_without_cryptography_the_protocol_is_told_and_the_lack_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits(QUIC) == []
    monkeypatch.setattr(quic, "CAN_DECRYPT", False)
    assert feed(capture("quic-chromium-1")) == Sniffed("quic")
    assert feed(capture("quic-chromium-1")[:1199]) is None
    assert feed(capture("quic-rfc9369-a2")) == Sniffed("quic")
    assert feed(b"\x40" + bytes(1300)) is None
    (sentence,) = limits({"tls", "quic"})
    assert "pip install 'tunloom[quic]'" in sentence
    assert limits({"tls"}) == []


def test_the_package_is_optional() -> None:
    """The whole package can be imported where cryptography is not installed."""
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from workers.sniff import DatagramSniffer, limits\n"
        "print(len(limits({'quic'})), DatagramSniffer({'quic'}).feed(sys.stdin.buffer.read()).protocol)"
    )
    datagram = capture("quic-firefox-1")
    output = subprocess.run([sys.executable, "-c", program], input=datagram, capture_output=True, check=True).stdout
    assert output.decode().split() == ["1", "quic"]
