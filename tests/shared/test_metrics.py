"""shared/metrics.py: the layout of a row, which the master, the workers and the endpoints share."""

from shared.metrics import CELLS, DROPS, GAUGES, Cell
from shared.pool import Pool, PoolLayout


def test_every_cell_has_a_place_of_its_own_in_the_row() -> None:
    assert len({int(cell) for cell in Cell.__members__.values()}) == len(Cell.__members__)
    assert all(0 <= cell < CELLS for cell in Cell)


def test_drop_reasons_are_exactly_the_drop_cells() -> None:
    assert {cell.name for cell in DROPS} == {name for name in Cell.__members__ if name.startswith("DROP_")}
    assert DROPS[Cell.DROP_RING_FULL] == "ring_full"
    assert len(set(DROPS.values())) == len(DROPS)


def test_gauges_are_no_drop_counters() -> None:
    assert not set(GAUGES) & set(DROPS)


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
