"""All lines of the table."""

from loadtests.crash import anyone, ends, journal, network, processes, proxies, reload
from loadtests.crash.report import Row

__all__ = ["ROWS"]

ROWS: dict[str, Row] = {
    row.name: row for part in (journal, ends, processes, proxies, network, reload, anyone) for row in part.ROWS
}
"""By name, in the order in which they are played."""
