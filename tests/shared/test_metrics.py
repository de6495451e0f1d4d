"""shared/metrics.py: the layout of a row, which the master, the workers and the endpoints share."""

import pytest

from shared.metrics import (
    BOUNDS,
    CELLS,
    DROPS,
    OUTBOUNDS_MAX,
    Cell,
    Histogram,
    OutboundCell,
    end_gauges,
    observe,
    outbound_at,
)
from shared.pool import Pool, PoolLayout


def test_every_cell_has_a_place_of_its_own_in_the_row() -> None:
    assert len({int(cell) for cell in Cell.__members__.values()}) == len(Cell.__members__)
    assert all(0 <= cell < CELLS for cell in Cell)


def test_drop_reasons_are_exactly_the_drop_cells() -> None:
    assert {cell.name for cell in DROPS} == {name for name in Cell.__members__ if name.startswith("DROP_")}
    assert DROPS[Cell.DROP_RING_FULL] == "ring_full"
    assert len(set(DROPS.values())) == len(DROPS)


def test_parts_of_a_row_do_not_touch() -> None:
    histogram = len(BOUNDS) + 2  # one bucket above the last bound, and the sum
    places = [int(cell) for cell in Cell]
    places += [first + i for first in Histogram for i in range(histogram)]
    for row in range(OUTBOUNDS_MAX):
        places += [outbound_at(row) + cell for cell in OutboundCell if cell is not OutboundCell.CONNECT]
        places += [outbound_at(row) + OutboundCell.CONNECT + i for i in range(histogram)]
    assert len(set(places)) == len(places)
    assert max(places) < CELLS


def test_outbounds_that_are_too_many_share_the_last_row() -> None:
    assert outbound_at(OUTBOUNDS_MAX) == outbound_at(10_000) == outbound_at(OUTBOUNDS_MAX - 1)
    assert outbound_at(OUTBOUNDS_MAX - 2) != outbound_at(OUTBOUNDS_MAX - 1)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (0.3, 8), (10.0, len(BOUNDS) - 1), (10.1, len(BOUNDS)), (1e6, len(BOUNDS))],
)
def test_observation_goes_into_the_bucket_whose_bound_it_does_not_exceed(seconds: float, bucket: int) -> None:
    row = [0] * CELLS
    observe(row, Histogram.DNS, seconds)
    assert row[Histogram.DNS + bucket] == 1
    assert row[Histogram.DNS + len(BOUNDS) + 1] == pytest.approx(seconds * 1e6, abs=1)
    assert sum(1 for value in row if value) == (2 if seconds else 1)


def test_flows_of_a_dead_process_are_closed_and_its_counters_stay() -> None:
    row = [0] * CELLS
    row[Cell.TCP_OPENED], row[Cell.TCP_CLOSED], row[Cell.TCP_ACTIVE] = 9, 4, 5
    row[Cell.UDP_OPENED], row[Cell.UDP_ACTIVE] = 2, 2
    row[Cell.TCP_HALF_OPEN], row[Cell.BUFFER_BYTES], row[Cell.PACKETS_IN] = 1, 4096, 100
    last = outbound_at(OUTBOUNDS_MAX - 1)
    row[last + OutboundCell.TCP_OPENED], row[last + OutboundCell.TCP_ACTIVE] = 9, 5
    end_gauges(row)
    assert row[Cell.TCP_OPENED] == row[Cell.TCP_CLOSED] == 9
    assert row[Cell.UDP_OPENED] == row[Cell.UDP_CLOSED] == 2
    assert row[Cell.TCP_ACTIVE] == row[Cell.UDP_ACTIVE] == row[Cell.TCP_HALF_OPEN] == row[Cell.BUFFER_BYTES] == 0
    assert row[last + OutboundCell.TCP_ACTIVE] == 0
    assert (row[last + OutboundCell.TCP_OPENED], row[Cell.PACKETS_IN]) == (9, 100)


def test_rows_do_not_touch_and_start_at_zero() -> None:
    pool = Pool.create(PoolLayout(3, 1, 1))
    try:
        assert all(value == 0 for row in pool.counters for value in row)
        for number, row in enumerate(pool.counters):
            for cell in Cell:
                row[cell] += number * 1000 + cell
        for number, row in enumerate(pool.counters):
            assert [row[cell] for cell in Cell] == [number * 1000 + cell for cell in Cell]
    finally:
        pool.close()


def test_cell_takes_a_full_64_bit_count() -> None:
    pool = Pool.create(PoolLayout(1, 1, 1))
    try:
        pool.counters[0][Cell.BYTES_IN] = 2**64 - 1
        assert pool.counters[0][Cell.BYTES_IN] == 2**64 - 1
    finally:
        pool.close()
