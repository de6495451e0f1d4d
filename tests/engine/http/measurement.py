"""A measurement as the master would make it, with counters that the test sets."""

import msgspec

from engine.requests import EngineStatus, Measurement, WorkerStatus
from shared.metrics import CELLS, Cell, cells_used
from tests.engine.test_control import STATUS, WORKER

NOW = 1000.0  # monotonic seconds

__all__ = ["NOW", "Rows", "status"]


def status(workers: int = 2, **changes: object) -> EngineStatus:
    """An engine whose workers all run."""
    rows: list[WorkerStatus] = [msgspec.structs.replace(WORKER, index=i, state="running") for i in range(workers)]
    return msgspec.structs.replace(STATUS, workers=rows, **changes)


class Rows:
    """Rows of counters: of workers, and the master's, the last."""

    def __init__(self, workers: int = 2) -> None:
        self.rows = [[0] * CELLS for _ in range(workers + 1)]
        for row in self.rows:
            row[Cell.HEARTBEAT] = int(NOW * 1000)

    def measure(self, *outbounds: str, **changes: object) -> Measurement:
        """The measurement of these counters."""
        cells = cells_used(len(outbounds))
        whole = [row[:cells] for row in self.rows]
        return Measurement(
            status=status(len(self.rows) - 1, **changes),
            now=NOW,
            outbounds=list(outbounds),
            cells=cells,
            places=len(self.rows) - 1,
            rows=b"".join(value.to_bytes(8, "little") for row in whole for value in row),
        )
