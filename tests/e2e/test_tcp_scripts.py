"""TCP, segment by segment (tests/support/script.py). Every script is played to the Linux kernel too, or it does not count.

What differs between systems without being wrong is left open: PSH, how many ACKs come, how text is cut below the MSS.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.engine import bed
from tests.support.netns import CLIENT_V4, CLIENT_V6, TARGET_V4, TARGET_V6, Topology, ip, topology
from tests.support.script import ACK, CLIENT, FIN, RST, SYN, Script, script_tun
from tests.support.sockets import pseudo_random, receive, receive_until_eof, reset, tcp_server

pytestmark = pytest.mark.e2e

LONGER = 6.0  # seconds in which a time-out of one second has come twice


@pytest.fixture(scope="module", params=["kernel", "engine"])
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Where the server is: behind the engine, or reached directly."""
    if request.param == "engine":
        with bed(tmp_path_factory.mktemp("scripts") / "run") as made:
            yield made.net
        return
    with topology() as alone:
        with alone.internet.entered():
            for version, gateway in ((4, CLIENT_V4), (6, CLIENT_V6)):
                ip("route", "add", CLIENT[version], "via", gateway)
        yield alone


@pytest.fixture(scope="module")
def tun(net: Topology) -> Iterator[int]:
    with script_tun(net.client) as fd:
        yield fd


@pytest.fixture(params=[TARGET_V4, TARGET_V6], ids=["ipv4", "ipv6"])
def server(request: pytest.FixtureRequest, net: Topology) -> Iterator[socket.socket]:
    with tcp_server(net.internet, request.param) as listening:
        yield listening


Make = Callable[..., Script]


@pytest.fixture
def make(tun: int, server: socket.socket) -> Iterator[Make]:
    """Makes conversations that end with the test."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(closing(Script(tun, server, **options)))


@pytest.fixture
def script(make: Make) -> Script:
    """A conversation without timestamps, with SACK."""
    return make()


@pytest.fixture
def timed(make: Make) -> Script:
    """A conversation with timestamps."""
    return make(clock=1_000_000)


# opening (RFC 9293 3.5, 3.7.1)


def test_syn_ack_offers_only_what_was_offered(make: Make) -> None:
    plain = make(mss=None, sack=False)
    plain.send(SYN)
    answer = plain.expect(SYN | ACK, ack=1)
    assert answer.mss is not None and answer.mss >= 1200
    assert (answer.scale, answer.sack_permitted, answer.timestamps) == (None, False, None)


def test_syn_ack_echoes_the_timestamp(timed: Script) -> None:
    timed.send(SYN)
    answer = timed.expect(SYN | ACK, ack=1)
    assert answer.sack_permitted
    assert answer.timestamps is not None and answer.timestamps[1] == 1_000_000


def test_second_syn_gets_the_same_answer(script: Script) -> None:
    script.send(SYN)
    first = script.expect(SYN | ACK, ack=1)
    irs = script.irs
    script.send(SYN, seq=0)
    again = script.expect(SYN | ACK, ack=1)
    assert (script.irs, again.mss) == (irs, first.mss)


def test_syn_ack_is_sent_again(script: Script) -> None:
    script.send(SYN)
    script.expect(SYN | ACK, ack=1)
    irs = script.irs
    script.expect(SYN | ACK, ack=1, within=LONGER)
    assert script.irs == irs


def test_ack_of_something_else_is_no_handshake(script: Script) -> None:
    script.send(SYN)
    script.expect(SYN | ACK, ack=1)
    script.send(ACK, ack=1000)
    script.expect(RST, seq=1000)
    script.acked = 1
    script.send(ACK)  # the right one is still taken
    peer = script.accept()
    script.send(ACK, b"hello")
    assert receive(peer, 5) == b"hello"


def test_closed_port_refuses(script: Script, server: socket.socket) -> None:
    server.close()
    script.send(SYN)
    script.expect(RST | ACK, ack=1)


def test_segment_of_no_connection_is_reset(script: Script) -> None:
    script.send(ACK, b"hello", seq=5, ack=1234)
    script.expect(RST, seq=1234)
    script.send(RST, seq=5)
    assert script.expect_no(0xFF, seconds=0.3) == []


# text from the client (RFC 9293 3.10.7.4, RFC 5681 4.2, RFC 2018, RFC 2883)


def test_text_is_acknowledged_and_delivered(script: Script) -> None:
    peer = script.open()
    script.send(ACK, b"hello")
    script.expect(ACK, ack=6)
    assert receive(peer, 5) == b"hello"


def test_text_on_the_third_packet_of_the_handshake_is_taken(script: Script) -> None:
    script.send(SYN)
    script.expect(SYN | ACK, ack=1)
    script.acked = 1
    script.send(ACK, b"early")
    peer = script.accept()
    assert receive(peer, 5) == b"early"
    script.expect(ACK, ack=6)


def test_gap_is_reported_and_filled(script: Script) -> None:
    peer = script.open()
    script.send(ACK, b"b" * 100, seq=101)
    gap = script.expect(ACK, ack=1)
    assert [(left - script.iss & 0xFFFFFFFF, right - script.iss & 0xFFFFFFFF) for left, right in gap.sack] == [
        (101, 201)
    ]
    script.send(ACK, b"c" * 100, seq=301)
    assert len(script.expect(ACK, ack=1).sack) == 2
    script.send(ACK, b"a" * 100, seq=1)
    assert len(script.expect(ACK, ack=201).sack) == 1
    script.send(ACK, b"x" * 100, seq=201)
    assert script.expect(ACK, ack=401).sack == []
    assert receive(peer, 400) == b"a" * 100 + b"b" * 100 + b"x" * 100 + b"c" * 100


def test_each_segment_out_of_order_is_acknowledged(script: Script) -> None:
    script.open()
    for at in (101, 201, 301):
        script.send(ACK, b"x" * 100, seq=at)
    for _ in range(3):
        script.expect(ACK, ack=1)


def test_text_twice_is_reported_and_delivered_once(script: Script) -> None:
    peer = script.open()
    script.send(ACK, b"first")
    script.expect(ACK, ack=6)
    script.send(ACK, b"first", seq=1)
    duplicate = script.expect(ACK, ack=6)
    assert [(left - script.iss & 0xFFFFFFFF, right - script.iss & 0xFFFFFFFF) for left, right in duplicate.sack] == [
        (1, 6)
    ]
    script.send(ACK, b"rst+second", seq=3)  # old and new in one
    script.expect(ACK, ack=13)
    assert receive(peer, 12) == b"first+second"


def test_text_beyond_the_window_is_not_taken(script: Script) -> None:
    peer = script.open()
    script.send(ACK, b"far", seq=1 << 24)
    script.expect(ACK, ack=1)
    script.send(ACK, b"near", seq=1)
    assert receive(peer, 4) == b"near"


def test_damaged_segment_is_as_good_as_none(script: Script) -> None:
    peer = script.open()
    script.send(ACK, b"damaged", seq=1, damaged=True)
    assert script.expect_no(0xFF, seconds=0.3) == []
    script.send(ACK, b"intact!")
    assert receive(peer, 7) == b"intact!"


def test_text_that_acknowledges_the_future_is_not_taken(script: Script) -> None:
    """RFC 9293 3.10.7.4, fifth; RFC 5961 5."""
    peer = script.open()
    script.send(ACK, b"forged", seq=1, ack=100_000)
    script.expect(ACK, ack=1)
    script.send(ACK, b"honest")
    assert receive(peer, 6) == b"honest"


# text to the client


def test_text_is_cut_at_the_mss(make: Make) -> None:
    script = make(mss=700)
    peer = script.open()
    peer.sendall(pseudo_random(5000))
    segments = script.expect_text(5000)
    assert max(len(segment.payload) for segment in segments) == 700
    assert b"".join(one.payload for one in sorted(segments, key=lambda one: one.seq)) == pseudo_random(5000)


def test_without_mss_option_text_is_cut_at_536(make: Make, server: socket.socket) -> None:
    script = make(mss=None)
    peer = script.open()
    peer.sendall(pseudo_random(5000))
    most = max(len(segment.payload) for segment in script.expect_text(5000))
    assert most == (536 if server.family is socket.AF_INET else 1220)


def test_no_more_is_sent_than_the_window_takes(script: Script) -> None:
    script.window = 3000
    peer = script.open()
    peer.sendall(pseudo_random(10_000))
    seen = script.expect_text(1400) + script.expect_no(RST, seconds=0.15)
    end = max(segment.seq + len(segment.payload) for segment in seen)
    assert end <= 3001
    script.acknowledge(end)
    seen = script.expect_text(1400, seq=end) + script.expect_no(RST, seconds=0.15)
    assert max(segment.seq + len(segment.payload) for segment in seen) <= end + 3000


def test_zero_window_is_probed_and_opens_again(script: Script) -> None:
    script.window = 1000
    peer = script.open()
    peer.sendall(pseudo_random(3000))
    script.expect_text(1000)
    script.acknowledge(1001, window=0)
    assert script.expect(ACK, b"", within=LONGER).seq <= 1001, "a probe, without a byte that would not fit"
    script.acknowledge(1001, window=0)
    script.acknowledge(1001, window=5000)
    text = b"".join(one.payload for one in sorted(script.expect_text(2000, seq=1001), key=lambda one: one.seq))
    assert text == pseudo_random(3000)[1000:]


def test_sack_shows_what_is_missing_and_only_that_comes_again(script: Script) -> None:
    peer = script.open()
    peer.sendall(pseudo_random(10 * 1000))
    script.expect_text(10_000)
    script.send(ACK, ack=1, sack=[(1001, 10_001)])
    script.expect_text(1000)
    assert all(segment.seq < 1001 for segment in script.expect_no(RST, seconds=0.5))


def test_three_duplicate_acks_bring_the_first_segment_again(make: Make) -> None:
    script = make(mss=1000, sack=False)
    peer = script.open()
    peer.sendall(pseudo_random(10_000))
    script.expect_text(10_000)
    for _ in range(4):
        script.send(ACK, ack=1)
    assert script.expect_text(1000, seq=1)[0].seq == 1
    script.acknowledge(10_001)


def test_text_without_an_answer_comes_again_and_each_time_later(script: Script) -> None:
    peer = script.open()
    peer.sendall(b"anybody there?")
    times = []
    for _ in range(5):
        script.expect(ACK, b"anybody there?", seq=1, within=LONGER)
        times.append(_now())
    gaps = [later - earlier for earlier, later in pairwise(times)]
    # The first may be a tail loss probe; then the time-out doubles (RFC 6298 5.5).
    assert gaps[2] > gaps[1] * 1.4 and gaps[3] > gaps[2] * 1.4


def _now() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def test_too_big_for_the_path_comes_again_in_smaller_pieces(script: Script) -> None:
    peer = script.open()
    peer.sendall(pseudo_random(6000))
    large = max(script.expect_text(6000), key=lambda segment: len(segment.payload))
    assert len(large.payload) > 1300
    script.complain_too_big(1300, about=large)
    again = script.expect_text(len(large.payload), seq=large.seq)
    assert max(len(segment.payload) for segment in again) <= 1300 - 40
    script.acknowledge(6001)


def test_server_that_speaks_first_is_heard(script: Script) -> None:
    peer = script.open()
    peer.sendall(b"220 ready")
    script.expect(ACK, b"220 ready", seq=1, ack=1)
    script.acknowledge(10)


# closing (RFC 9293 3.6)


def test_client_closes_first(script: Script) -> None:
    peer = script.open()
    script.send(ACK | FIN, b"bye")
    script.expect(ACK, ack=5)
    assert receive_until_eof(peer) == b"bye"
    peer.sendall(b"half-closed is half open")
    script.expect_text(24)
    peer.close()
    script.expect(FIN | ACK, seq=25, ack=5)
    script.acknowledge(26)
    script.send(ACK)
    script.expect(RST)  # nobody remembers: the client was the one to wait


def test_server_closes_first_and_still_hears(script: Script) -> None:
    peer = script.open()
    peer.sendall(b"bye")
    peer.shutdown(socket.SHUT_WR)
    fin = script.expect(FIN | ACK)
    assert fin.seq + len(fin.payload) == 4
    script.acknowledge(5)
    script.send(ACK, b"not yet")
    script.expect(ACK, ack=8)
    assert receive(peer, 7) == b"not yet"
    script.send(ACK | FIN)
    script.expect(ACK, ack=9)
    assert peer.recv(1) == b""
    script.send(ACK | FIN, seq=8)  # our ACK was lost, it thinks
    script.expect(ACK, ack=9)


def test_fin_without_an_answer_comes_again(script: Script) -> None:
    peer = script.open()
    peer.shutdown(socket.SHUT_WR)
    script.expect(FIN | ACK, seq=1)
    script.expect(FIN | ACK, seq=1)
    script.acknowledge(2)


def test_fin_before_the_text_it_follows_waits(script: Script) -> None:
    peer = script.open()
    script.send(ACK | FIN, b"second", seq=6)
    script.expect(ACK, ack=1)
    script.send(ACK, b"first", seq=1)
    script.expect(ACK, ack=13)
    assert receive_until_eof(peer) == b"firstsecond"
    script.next = 13


def test_both_close_at_once(script: Script) -> None:
    peer = script.open()
    peer.shutdown(socket.SHUT_WR)
    script.expect(FIN | ACK, seq=1, ack=1)
    script.send(ACK | FIN, ack=1)  # it has not seen the other's
    script.expect(ACK, ack=2)
    script.acknowledge(2)
    assert peer.recv(1) == b""


def test_new_connection_from_the_same_port_after_the_end(script: Script) -> None:
    """RFC 6191: the server's side waits (TIME-WAIT), yet a SYN with a higher number opens anew."""
    peer = script.open()
    peer.shutdown(socket.SHUT_WR)
    script.expect(FIN | ACK, seq=1)
    script.acknowledge(2)
    script.send(ACK | FIN)
    script.expect(ACK, ack=2)
    peer.close()
    script.iss = script.iss + 100_000 & 0xFFFFFFFF
    script.next = script.acked = 0
    peer = script.open()
    script.send(ACK, b"again")
    assert receive(peer, 5) == b"again"


# resets (RFC 9293 3.5.3, RFC 5961)


def test_reset_of_the_client_reaches_the_server(script: Script) -> None:
    peer = script.open()
    script.send(RST)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_reset_of_the_server_reaches_the_client(script: Script) -> None:
    peer = script.open()
    script.send(ACK, b"hello")
    assert receive(peer, 5) == b"hello"
    reset(peer)
    script.expect(RST | ACK, seq=1, ack=6)


def test_reset_that_only_lies_in_the_window_is_challenged(script: Script) -> None:
    peer = script.open()
    script.send(RST, seq=1000)
    script.expect(ACK, ack=1)
    script.send(ACK, b"alive")
    assert receive(peer, 5) == b"alive"


def test_reset_outside_of_the_window_is_ignored(script: Script) -> None:
    peer = script.open()
    script.send(RST, seq=1 << 28)
    assert script.expect_no(0xFF, seconds=0.3) == []
    script.send(ACK, b"alive")
    assert receive(peer, 5) == b"alive"


def test_syn_on_an_open_connection_is_challenged(script: Script) -> None:
    peer = script.open()
    script.send(SYN, seq=500)
    script.expect(ACK, ack=1)
    script.send(ACK, b"alive")
    assert receive(peer, 5) == b"alive"


# timestamps (RFC 7323)


def test_timestamp_of_the_last_segment_in_order_is_echoed(timed: Script) -> None:
    timed.open()
    timed.send(ACK, b"a" * 10, clock=1_000_010)
    assert timed.expect(ACK, ack=11).timestamps[1] == 1_000_010  # type: ignore[index]
    timed.send(ACK, b"c" * 10, seq=21, clock=1_000_020)
    assert timed.expect(ACK, ack=11).timestamps[1] == 1_000_010  # type: ignore[index]
    timed.send(ACK, b"b" * 10, seq=11, clock=1_000_030)
    assert timed.expect(ACK, ack=31).timestamps[1] == 1_000_030  # type: ignore[index]


def test_text_with_an_old_timestamp_is_not_taken(timed: Script) -> None:
    """PAWS, RFC 7323 5."""
    peer = timed.open()
    timed.send(ACK, b"hello", clock=1_001_000)
    timed.expect(ACK, ack=6)
    timed.send(ACK, b"old old old", seq=6, clock=1_000_500)
    timed.expect(ACK, ack=6)
    timed.send(ACK, b"new", seq=6, clock=1_001_001)
    timed.expect(ACK, ack=9)
    assert receive(peer, 8) == b"hellonew"
