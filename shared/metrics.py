"""Counters in shared memory: one writer per cell, read by the master without stopping anyone.

Each process owns one row of CELLS 8-byte cells:

    0          64      128          256
    +----------+-------+------------+---------------------------------------------------------------+
    | counters | drops | histograms | per outbound OUTBOUND_CELLS: counters, histogram of connecting |
    +----------+-------+------------+---------------------------------------------------------------+

A cell is written by one aligned 8-byte store, so a reader sees the old or the new value, never half of one. Gauges
(`*_ACTIVE`, TCP_HALF_OPEN, BUFFER_BYTES, DNS_WAITING) live in the same row. Rows are never reset: a worker that is started
again, or that is given a place which another one had before, goes on where that one ended.
"""

from bisect import bisect_left
from enum import IntEnum
from typing import Protocol

__all__ = [
    "BOUNDS",
    "CELLS",
    "DROPS",
    "GAUGES",
    "OUTBOUNDS_MAX",
    "Cell",
    "Counters",
    "Histogram",
    "OutboundCell",
    "UdpState",
    "cells_used",
    "end_gauges",
    "observe",
    "outbound_at",
]

OUTBOUNDS_MAX = 128
"""Outbounds of a run that have a row of cells of their own; the last one is shared by all that are too many."""
OUTBOUND_CELLS = 32
_OUTBOUNDS_AT = 256
CELLS = _OUTBOUNDS_AT + OUTBOUNDS_MAX * OUTBOUND_CELLS
"""Cells per process. What is never written takes no memory."""

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram's buckets, in seconds; one more bucket counts what is above the last."""
_SUM = len(BOUNDS) + 1
"""Behind the buckets: the sum of all that was observed, in microseconds."""


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
    """Monotonic milliseconds when the process last said that it lives."""

    NO_LOCAL_PORT = 28
    """Connections that were not made since all local ports were in use."""

    UDP_EVICTED = 29
    """UDP endpoints that were closed to make room for others (max_associations)."""

    # rules
    REJECTED = 27
    """Connections and datagrams that a rule refused."""

    # DNS service (workers/dns)
    DNS_QUERIES = 32
    DNS_CACHE_HITS = 33
    DNS_STALE_HITS = 34
    DNS_JOINED = 35
    """Queries that waited for the answer to an equal one."""
    DNS_UPSTREAM = 36
    """Questions that a server was asked."""
    DNS_FAILED = 37
    """Of these, those without an answer, or answered SERVFAIL or REFUSED."""
    DNS_TRUNCATED = 38
    DNS_WAITING = 39
    """Gauge: questions under way."""

    # owners of flows (engine/processes)
    PROCESS_LOOKUPS = 48
    PROCESS_UNKNOWN = 49

    # generations of workers (engine/generations.py)
    PLACES_USED = 56
    """Of the master's row: places in shared memory, from the first on, that have ever had a worker."""
    DRAIN_CUT = 57
    """Of the master's row: flows that were reset since their worker's time to drain was up."""

    # views (workers/relay)
    USAGE_LOST = 60
    """Pairs of program and destination whose usage the master could not be told."""
    LOG_LOST = 61
    """Lines of the log that who follows it was not told."""

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
    DROP_SYN_FLOOD = 82
    """SYNs that are to come again, while too many lead to nothing."""
    DROP_RULE = 80
    DROP_LOOP = 81
    """Rejected without an answer."""
    DROP_DNS_MALFORMED = 90
    """Messages to port 53 that are no queries; those with a header are answered with an error."""
    DROP_DNS_LIMIT = 91
    """Queries above the limits of what may be under way."""
    DROP_DNS_RULE = 92
    """Queries that a rule leaves unanswered."""


DROPS: dict[Cell, str] = {
    cell: cell.name.removeprefix("DROP_").lower() for cell in Cell if cell.name.startswith("DROP_")
}
"""Cell of each drop reason -> the reason as it stands in status and metrics."""


class Histogram(IntEnum):
    """First cell of a histogram: len(BOUNDS) + 1 buckets, then the sum. Written by `observe`."""

    DNS = 128
    """Seconds from a question to its answer, of those that a server was asked for."""
    LOOP_LAG = 144
    """Seconds that a timer fired late: how long whatever is ready waits for its turn."""


class OutboundCell(IntEnum):
    """Index of a cell within an outbound's cells; `outbound_at` tells where these begin."""

    TCP_OPENED = 0
    TCP_ACTIVE = 1
    UDP_OPENED = 2
    UDP_ACTIVE = 3
    BYTES_UP = 4
    """Payload from applications."""
    BYTES_DOWN = 5
    REFUSED = 6
    """Attempts that the outbound answered, with a refusal of the destination."""
    FAILED = 7
    """Attempts that failed since the outbound itself does not work."""
    WORKED_AT = 8
    """Monotonic milliseconds of the last attempt that showed that the outbound works."""
    FAILED_AT = 9
    """Monotonic milliseconds of the last attempt that showed that it does not."""
    UDP = 10
    """Of a proxy: a UdpState."""
    CONNECT = 16
    """Histogram: seconds that a TCP connection took to be made."""


class UdpState(IntEnum):
    """What is known of the UDP of a proxy."""

    UNKNOWN = 0
    NONE = 1
    """It relays none."""
    UNVERIFIED = 2
    """It opens associations."""
    WORKS = 3
    """An answer has come through one."""


GAUGES = (Cell.TCP_ACTIVE, Cell.UDP_ACTIVE, Cell.TCP_HALF_OPEN, Cell.BUFFER_BYTES, Cell.DNS_WAITING)
"""Cells that say how much there is now; all others but HEARTBEAT only ever grow."""


def outbound_at(row: int) -> int:
    """Return the cell at which the cells of the outbound with this row begin."""
    return _OUTBOUNDS_AT + min(row, OUTBOUNDS_MAX - 1) * OUTBOUND_CELLS


def cells_used(outbounds: int) -> int:
    """Return how many cells of a row can be other than zero with this many outbounds."""
    return _OUTBOUNDS_AT + min(outbounds, OUTBOUNDS_MAX) * OUTBOUND_CELLS


def observe(counters: Counters, histogram: int, seconds: float) -> None:
    """Count one observation in the histogram that begins at this cell."""
    counters[histogram + bisect_left(BOUNDS, seconds)] += 1
    counters[histogram + _SUM] += int(seconds * 1e6)


def end_gauges(counters: Counters) -> None:
    """The process that owned the row is dead, and its flows with it: they count as closed. What it knew is out of date."""
    counters[Cell.TCP_CLOSED] += counters[Cell.TCP_ACTIVE]
    counters[Cell.UDP_CLOSED] += counters[Cell.UDP_ACTIVE]
    for gauge in GAUGES:
        counters[gauge] = 0
    for row in range(OUTBOUNDS_MAX):
        at = outbound_at(row)
        for cell in (OutboundCell.TCP_ACTIVE, OutboundCell.UDP_ACTIVE, OutboundCell.UDP):
            if counters[at + cell]:
                counters[at + cell] = 0
