"""The parts of a connection, each against an obvious model: receiver, send buffer, scoreboard, estimators."""

import random
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import CELLS, Cell
from workers.stack.tcp.buffer import CHUNK_SIZES, ChunkPool, SendBuffer
from workers.stack.tcp.congestion import Cubic, initial_window
from workers.stack.tcp.flight import Flight, Segment
from workers.stack.tcp.mss import largest_payload, mss_of_path, mss_of_syn
from workers.stack.tcp.receiver import RANGE_COST, Receiver
from workers.stack.tcp.rtt import RTO_INITIAL, RTO_MAX, RoundTrip
from workers.stack.tcp.seqnum import MASK, is_before, unwrap

SIZE = 200


@given(st.integers(0, 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap_finds_the_nearest_position(near: int, distance: int) -> None:
    assert unwrap((near + distance) & MASK, near) == near + distance


def test_order_wraps() -> None:
    assert is_before(MASK, 0)
    assert not is_before(0, MASK)
    assert not is_before(5, 5)


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 40)), max_size=40), st.integers(0, MASK))
def test_receiver_holds_what_a_bitmap_holds(pieces: list[tuple[int, int]], base: int) -> None:
    """An obviously right model: an array with one cell per byte of the stream."""
    stream = bytes(i % 251 for i in range(SIZE + 40))
    receiver = Receiver(base, 1 << 20, 1460, ChunkPool([0] * CELLS, 1 << 30, 10), scales=True)
    cells: list[int | None] = [None] * len(stream)
    done = 0
    got = b""
    for at, size in pieces:
        piece = memoryview(stream[at : at + size])
        cells[at : at + size] = stream[at : at + size]
        if at > done:
            receiver.store(base + at, piece)
        elif at + size > done:
            got += piece[done - at :]
            receiver.next = base + at + size
            while (ready := receiver.pop_ready()) is not None:
                got += ready[1]
                receiver.next += len(ready[1])
        while cells[done] is not None:
            done += 1
        assert receiver.next == base + done
        assert got == stream[:done]
        held = {i for i, cell in enumerate(cells) if cell is not None and i >= done}
        assert receiver.out_of_order == len(held) + RANGE_COST * sum(i - 1 not in held for i in held)
        for left, right in receiver.sack_blocks():
            assert set(range(unwrap(left, receiver.next) - base, unwrap(right, receiver.next) - base)) <= held


@given(st.data())
def test_send_buffer_is_a_queue_of_bytes(data: st.DataObject) -> None:
    counters = [0] * CELLS
    buffer = SendBuffer(ChunkPool(counters, 1 << 30, 10), 1000, 100_000, 60_000)
    source = random.Random(1).randbytes(300_000)
    acked = 1000
    for _ in range(data.draw(st.integers(1, 20))):
        space = buffer.space()
        if space is not None:
            at = buffer.end - 1000
            size = data.draw(st.integers(0, min(len(space), len(source) - at)))
            space[:size] = source[at : at + size]
            buffer.commit(size)
        assert counters[Cell.BUFFER_BYTES] <= 100_000 + 65_536
        if buffer.end > acked:
            start = data.draw(st.integers(acked, buffer.end - 1))
            end = data.draw(st.integers(start + 1, buffer.end))
            assert b"".join(buffer.views(start, end)) == source[start - 1000 : end - 1000]
            acked = data.draw(st.integers(acked, buffer.end))
            buffer.discard(acked)
    buffer.discard(buffer.end)
    assert counters[Cell.BUFFER_BYTES] == 0


def test_view_that_was_offered_survives_the_acknowledgment_of_all_data() -> None:
    buffer = SendBuffer(ChunkPool([0] * CELLS, 1 << 30, 10), 0, 100_000, 60_000)
    assert buffer.space() is not None
    buffer.commit(100)
    view = buffer.space()
    assert view is not None
    buffer.discard(100)
    view[:4] = b"next"
    buffer.commit(4)
    assert b"".join(buffer.views(100, 104)) == b"next"


def test_chunks_grow_while_reads_fill_them_and_shrink_again() -> None:
    counters = [0] * CELLS
    buffer = SendBuffer(ChunkPool(counters, 1 << 30, 10), 0, 1 << 20, 60_000)
    buffer.follow(1 << 20)
    sizes = []
    for part in (1, 1, 1, 0.001, 0.001, 0.001):
        space = buffer.space()
        assert space is not None
        sizes.append(len(space))
        buffer.commit(max(int(len(space) * part), 1))
        buffer.discard(buffer.end)
    assert sizes == [4096, 16384, 60_000, 60_000, 16384, 4096]


def test_large_chunks_are_used_again_and_given_up_once_nobody_needs_them() -> None:
    pool = ChunkPool([0] * CELLS, 1 << 30, 10)
    largest = len(CHUNK_SIZES) - 1
    chunks = [pool.take(largest) for _ in range(200)]
    mappings = [weakref.ref(chunk.obj) for chunk in chunks]
    while chunks:
        pool.give(largest, chunks.pop())
    assert all(mapping() is not None for mapping in mappings)
    again = [pool.take(largest) for _ in range(200)]
    assert {id(chunk.obj) for chunk in again} == {id(mapping()) for mapping in mappings}
    pool.trim()
    while again:
        pool.give(largest, again.pop())
    pool.trim()
    assert all(mapping() is not None for mapping in mappings), "they were all in use since the last call"
    for _ in range(50):
        pool.give(largest, pool.take(largest))
        pool.trim()
    assert [mapping() for mapping in mappings].count(None) == 199, "all but the one that is in use"
    pool.trim()
    pool.trim()
    assert all(mapping() is None for mapping in mappings)


def test_free_chunks_and_those_in_use_stay_within_the_limit() -> None:
    counters = [0] * CELLS
    largest = len(CHUNK_SIZES) - 1
    pool = ChunkPool(counters, 10 * CHUNK_SIZES[largest], 10)
    chunks = [pool.take(largest) for _ in range(30)]
    mappings = [weakref.ref(chunk.obj) for chunk in chunks]
    while chunks:
        pool.give(largest, chunks.pop())
    assert [mapping() for mapping in mappings].count(None) == 20
    assert counters[Cell.BUFFER_BYTES] == 0


@given(
    st.lists(st.tuples(st.sampled_from(["sack", "lose", "ack"]), st.integers(0, 99), st.integers(1, 30)), max_size=30)
)
def test_scoreboard_counts_what_its_segments_say(steps: list[tuple[str, int, int]]) -> None:
    flight = Flight()
    flight.segments = [Segment(at, at + 10, 0.0) for at in range(0, 100, 10)]
    una = 0
    for what, at, size in steps:
        if what == "sack" and una < at and at + size <= 100:
            assert all(not segment.lost and segment.sacked for segment in flight.mark_sacked(at, at + size))
        elif what == "lose" and flight.segments:
            flight.mark_lost(flight.segments[at % len(flight.segments)])
        elif what == "ack" and una < at:
            flight.drop_before(at)
            una = at
        spans = [(segment.start, segment.end) for segment in flight.segments]
        assert spans == sorted(spans)
        assert sum(end - start for start, end in spans) == 100 - una
        assert flight.sacked_bytes == sum(s.end - s.start for s in flight.segments if s.sacked)
        assert flight.lost_bytes == sum(s.end - s.start for s in flight.segments if s.lost)


def test_round_trip_follows_rfc_6298() -> None:
    rtt = RoundTrip()
    assert rtt.timeout == RTO_INITIAL
    rtt.sample(1.0)
    assert (rtt.smoothed, rtt.variation, rtt.timeout) == (1.0, 0.5, 3.0)
    rtt.sample(2.0)
    assert (rtt.smoothed, rtt.variation) == (1.125, 0.625)
    for _ in range(20):
        rtt.back_off()
    assert rtt.timeout == RTO_MAX
    rtt.sample(1.0)
    assert rtt.timeout < 5
    assert rtt.minimum == 1.0


def test_window_doubles_in_slow_start_and_falls_to_seven_tenths_on_loss() -> None:
    cubic = Cubic(1000)
    assert cubic.window == initial_window(1000) == 10_000
    cubic.on_ack(10_000, 1.0, 0.1)
    assert cubic.window == 20_000
    cubic.on_loss(20_000)
    assert cubic.window == cubic.ssthresh == 14_000


def test_window_comes_back_to_where_it_was_and_beyond() -> None:
    """RFC 9438 figure 1: concave up to W_max at time K, then convex."""
    cubic = Cubic(1000)
    cubic.window = 100_000
    cubic.on_loss(100_000)
    history = []
    now = 0.0
    while now < 12:
        cubic.on_ack(cubic.window, now, 0.1)
        history.append(cubic.window)
        now += 0.1
    k = (30 / 0.4) ** (1 / 3)  # seconds: 30 segments below W_max
    assert history[int(k * 10) - 10] < 101_000
    assert history[-1] > 120_000
    assert history == sorted(history)


def test_timeout_starts_again_from_one_segment() -> None:
    cubic = Cubic(1000)
    cubic.on_timeout(10_000)
    assert (cubic.window, cubic.ssthresh) == (1000, 7000)


@pytest.mark.parametrize(
    ("version", "offered", "expected"), [(4, None, 536), (6, None, 1220), (4, 9000, 1460), (4, 1, 88)]
)
def test_mss_of_a_syn(version: int, offered: int | None, expected: int) -> None:
    assert mss_of_syn(version, offered, 1460, timestamps=False) == expected
    assert mss_of_syn(version, offered, 1460, timestamps=True) == expected - 12


def test_mss_of_a_path_has_a_floor() -> None:
    assert mss_of_path(4, 1400, timestamps=True) == 1348
    assert mss_of_path(4, 68, timestamps=False) == 512
    assert mss_of_path(6, 600, timestamps=False) == 1220


@given(st.sampled_from([4, 6]), st.integers(76, 65_483))
def test_largest_payload_is_of_whole_segments_and_fits_a_packet(version: int, mss: int) -> None:
    size = largest_payload(version, mss)
    assert size + 32 + (20 if version == 4 else 40) <= 65535
    assert size % mss == 0 or mss > size
    assert size > 32_000
