"""Whether outbounds work, as the flows of all workers have shown, and which members groups use."""

from collections.abc import Mapping, Sequence

from engine.requests import OutboundHealth
from shared.metrics import OUTBOUNDS_MAX, Counters, OutboundCell, outbound_at

__all__ = ["outbound_health", "outbound_states"]


def outbound_states(workers: Sequence[Counters], counted: Sequence[str]) -> dict[str, bool]:
    """Return for each outbound that a flow has tried whether it works, as the last attempt of any worker showed.

    `workers`: their rows of counters; `counted`: tags in the order of their cells.
    """
    states = {}
    for row, tag in enumerate(counted[: OUTBOUNDS_MAX - 1]):
        at = outbound_at(row)
        worked_at, failed_at = (
            max(worker[at + cell] for worker in workers) for cell in (OutboundCell.WORKED_AT, OutboundCell.FAILED_AT)
        )
        if worked_at or failed_at:
            states[tag] = worked_at >= failed_at
    return states


def outbound_health(
    tags: Sequence[str],
    states: Mapping[str, bool],
    used: Mapping[str, str],
    passed_over: Mapping[tuple[str, str], float],
) -> list[OutboundHealth]:
    """Return what status shows of the outbounds `tags`. `used` and `passed_over` as engine.groups.Groups has them."""
    return [
        OutboundHealth(
            tag=tag,
            works=states.get(tag),
            used=used.get(tag),
            passed_over={member: seconds for (group, member), seconds in passed_over.items() if group == tag},
        )
        for tag in tags
    ]
