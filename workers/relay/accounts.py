"""What flows have carried: added to the counters of their outbounds, and to the usage by program and destination.

Nothing is done per packet: flows count their own bytes, and are looked at when they end and every few seconds. The usage of a
few seconds goes to the master (Usage), which keeps it across restarts (engine/usage).
"""

import logging
from collections.abc import Callable
from time import monotonic

from shared.control import FromWorker, Usage, UsageOf
from shared.log import FLOWS
from shared.metrics import Cell, Counters
from shared.process import ProcessInfo
from workers.relay.facts import FlowFacts
from workers.upstream.sockets import address_text

__all__ = ["Accounts"]

log = logging.getLogger(__name__)

KEYS_MAX = 1024
"""Pairs of program and destination between two messages; what is beyond goes to OTHERS."""
OTHERS = ("", "")
IN_MESSAGE = 100
"""Pairs in one message: some 15 KB at most."""
NOBODY = ProcessInfo()

_Sums = list[int]
"""Flows, bytes up, bytes down."""


class Accounts:
    """`tell` sends a message to the master."""

    def __init__(self, counters: Counters, tell: Callable[[FromWorker], bool]) -> None:
        self._counters = counters
        self._tell = tell
        self._sums: dict[tuple[str, str], _Sums] = {}  # by program (its path, empty when not known) and destination

    def opened(self, facts: FlowFacts) -> None:
        """The last outbound of its trail carries the flow from now on."""
        facts.opened(self._counters)
        self._sums_of(facts)[0] += 1
        if log.isEnabledFor(FLOWS):
            rule = f"by the rule at {facts.rule}" if facts.rule else "as no rule takes it"
            log.log(FLOWS, "%s opened through %s, %s", facts, facts.trail[-1].tag, rule)

    def count(self, facts: FlowFacts, up: int, down: int) -> None:
        """So many bytes have passed so far."""
        more_up, more_down = facts.count_bytes(self._counters, up, down)
        if more_up or more_down:
            sums = self._sums_of(facts)
            sums[1] += more_up
            sums[2] += more_down

    def closed(self, facts: FlowFacts, up: int, down: int) -> None:
        """The flow is over."""
        self.count(facts, up, down)
        if log.isEnabledFor(FLOWS):
            log.log(
                FLOWS, "%s closed after %.1f s, %d bytes up, %d down", facts, monotonic() - facts.started_at, up, down
            )
        facts.closed(self._counters)

    def flush(self) -> None:
        """Tell the master what has come together since the last time."""
        sums, self._sums = list(self._sums.items()), {}
        for start in range(0, len(sums), IN_MESSAGE):
            part = tuple(UsageOf(*key, *values) for key, values in sums[start : start + IN_MESSAGE])
            if not self._tell(Usage(part)):
                self._counters[Cell.USAGE_LOST] += len(part)

    def _sums_of(self, facts: FlowFacts) -> _Sums:
        flow = facts.decision.flow
        process = flow.process or NOBODY
        key = (
            process.path or process.name,
            flow.domain or flow.destination_name or address_text(facts.ends.destination),
        )
        sums = self._sums.get(key)
        if sums is None:
            if len(self._sums) >= KEYS_MAX:
                key = OTHERS
            sums = self._sums.setdefault(key, [0, 0, 0])
        return sums
