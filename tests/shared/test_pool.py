"""shared/pool.py: the layout keeps its regions apart, and all mappings see the same memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics import CELLS
from shared.pool import SLOT_SIZE, Pool, PoolLayout

PACKET_MAX = 10 + 65535  # virtio header, largest IP packet


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool.create(PoolLayout(2, 8, 16))
    yield pool
    pool.close()


def memfds() -> int:
    links = list(Path("/proc/self/fd").iterdir())  # one of them is the listing's own, closed by now
    return sum(os.path.realpath(link).startswith("/memfd:tunloom") for link in links)


def test_slot_holds_the_largest_packet() -> None:
    assert SLOT_SIZE >= PACKET_MAX


@given(workers=st.integers(1, 64), slots=st.integers(1, 0x7FFE), bits=st.integers(0, 12))
def test_regions_are_whole_pages_and_free_rings_hold_every_slot(workers: int, slots: int, bits: int) -> None:
    layout = PoolLayout(workers, slots, 1 << bits)
    assert layout.counters_size >= (workers + 1) * CELLS * 8
    assert layout.free_entries > slots, "a worker must always be able to give a slot back"
    for size in (layout.counters_size, layout.ring_size, layout.free_size, layout.slots_at, layout.size):
        assert size % 4096 == 0


@settings(max_examples=20, deadline=None)
@given(workers=st.integers(1, 4), slots=st.integers(1, 6), bits=st.integers(0, 3))
def test_no_two_regions_overlap(workers: int, slots: int, bits: int) -> None:
    """Fill every region to the brim with a value of its own, then look at all of them."""
    pool = Pool.create(PoolLayout(workers, slots, 1 << bits))
    try:
        for number, row in enumerate(pool.counters):
            row[:] = memoryview(bytes([number + 1]) * 8 * CELLS).cast("Q")
        for slot, view in enumerate(pool.slots):
            view[:] = bytes([slot + 101]) * SLOT_SIZE
        rings = [pool.ring(worker) for worker in range(workers)]
        free_rings = [pool.free_ring(worker) for worker in range(workers)]
        for worker, (ring, free_ring) in enumerate(zip(rings, free_rings, strict=True)):
            while ring.push_inline(memoryview(bytes([worker + 201]) * 2048)):
                pass
            while free_ring.push(worker, 0):
                pass
        for number, row in enumerate(pool.counters):
            assert bytes(row) == bytes([number + 1]) * 8 * CELLS
        for slot, view in enumerate(pool.slots):
            assert view == bytes([slot + 101]) * SLOT_SIZE
        for worker, (ring, free_ring) in enumerate(zip(rings, free_rings, strict=True)):
            assert len(ring) == 1 << bits
            assert all(view == bytes([worker + 201]) * 2048 for view in ring.inline)
            assert len(free_ring) == pool.layout.free_entries
            ring.close()
            free_ring.close()
    finally:
        pool.close()


def test_attached_pool_sees_what_the_master_writes(pool: Pool) -> None:
    other = Pool.attach(os.dup(pool.fd), pool.layout)
    pool.slots[3][:5] = b"hello"
    other.counters[1][7] = 42
    ours, theirs = pool.ring(1), other.ring(1)
    ours.push(5, 3)
    assert theirs.pull() == (0, 5, 3)
    assert bytes(other.slots[3][:5]) == b"hello"
    assert pool.counters[1][7] == 42
    for ring in (ours, theirs):
        ring.close()
    other.close()


def test_reset_rings_empties_both_rings_of_one_worker_only(pool: Pool) -> None:
    rings = [pool.ring(0), pool.free_ring(0), pool.ring(1), pool.free_ring(1)]
    for ring in rings:
        ring.push(1, 1)
        ring.try_sleep()
    pool.reset_rings(0)
    fresh = [pool.ring(0), pool.free_ring(0), pool.ring(1), pool.free_ring(1)]
    assert [ring.pull() for ring in fresh] == [None, None, (0, 1, 1), (0, 1, 1)]
    assert not any(ring.must_wake() for ring in fresh[:2]), "a dead worker's sleep was kept"
    for ring in rings + fresh:
        ring.close()


def test_close_leaves_no_memfd() -> None:
    before = memfds()
    pool = Pool.create(PoolLayout(1, 4, 4))
    assert memfds() > before
    pool.close()
    assert memfds() == before


def test_create_that_fails_leaves_no_memfd() -> None:
    before = memfds()
    layout = PoolLayout(1, 4, 4)
    layout.size = 1 << 62
    with pytest.raises(OSError):
        Pool.create(layout)
    assert memfds() == before


def test_worker_pool_is_not_inherited_by_accident(pool: Pool) -> None:
    assert not os.get_inheritable(pool.fd)
