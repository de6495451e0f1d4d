"""Counters in shared memory: one writer per cell, read by the master without stopping anyone.

Each process owns one row of CELLS 8-byte cells. A cell is written by one aligned 8-byte store, so a reader sees the old
or the new value, never half of one. Gauges (`*_active`, `*_bytes_held`) live in the same row.
"""

from enum import IntEnum
from typing import Protocol

__all__ = ["CELLS", "DROPS", "GAUGES", "Cell", "Counters"]

CELLS = 128
"""Cells per process; room for later counters without a change of the layout."""


class Counters(Protocol):
    """One process's row: a memoryview of the shared memory, or a list in tests."""

    def __getitem__(self, cell: int, /) -> int: ...

    def __setitem__(self, cell: int, value: int, /) -> None: ...


class Cell(IntEnum):
    """Index of a counter in its row. Names are those of the metrics: `drop_*` is one reason of packets_dropped_total."""

    # traffic: "in" is read from the tun (towards the proxy), "out" is written to the tun
    PACKETS_IN = 0
    BYTES_IN = 1
    PACKETS_OUT = 2
    BYTES_OUT = 3
    WAKEUPS = 4
    DOORBELLS = 5

    # flows
    TCP_OPENED = 8
    TCP_CLOSED = 9
    TCP_ACTIVE = 10
    UDP_OPENED = 11
    UDP_CLOSED = 12
    UDP_ACTIVE = 13
    TCP_HALF_OPEN = 14
    CONNECT_FAILED = 15
    TCP_RETRANSMITS = 16
    TCP_RESETS_SENT = 17
    TCP_RESETS_RECEIVED = 18
    TCP_CHALLENGE_ACKS = 19
    ICMP_ECHO_REPLIES = 20
    ICMP_ERRORS_SENT = 21
    UDP_REFUSED = 22
    BUFFER_BYTES = 23
    FRAGMENTS_REASSEMBLED = 24
    CALLBACK_ERRORS = 25
    HEARTBEAT = 26

    # owners of flows (engine/processes)
    PROCESS_LOOKUPS = 48
    PROCESS_UNKNOWN = 49

    # drops by reason
    DROP_RING_FULL = 64
    DROP_POOL_EMPTY = 65
    DROP_MALFORMED = 66
    DROP_CHECKSUM = 67
    DROP_FRAGMENT = 68
    DROP_UNSUPPORTED = 69
    DROP_TUN_WRITE = 70
    DROP_FLOW_LIMIT = 71
    DROP_OUT_OF_WINDOW = 72
    DROP_UDP_UPSTREAM = 73
    DROP_UDP_QUEUE = 74
    DROP_RATE_LIMIT = 75
    DROP_STALE = 76
    DROP_BUFFER_LIMIT = 78
    DROP_HALF_OPEN = 79


DROPS: dict[Cell, str] = {
    cell: cell.name.removeprefix("DROP_").lower() for cell in Cell if cell.name.startswith("DROP_")
}
"""Cell of each drop reason -> the reason as it stands in status and metrics."""

GAUGES = (Cell.TCP_ACTIVE, Cell.UDP_ACTIVE, Cell.TCP_HALF_OPEN, Cell.BUFFER_BYTES)
"""Cells that say how much there is now; zeroed when their process dies. All others only ever grow."""
