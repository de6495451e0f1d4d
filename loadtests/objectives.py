"""What a run must keep to, judged when it ends: the exit code of locust is 1 when it does not.

every request      no failure (a protocol failure, a wrong byte), but for those that --allow-failures names
latency            95 % of the answers to small requests within --slo-p95 milliseconds
datagrams          at most --slo-loss per cent of the echoes and DNS answers lost
something          at least one request of every kind that was asked for succeeded: a run without answers proves nothing
"""

from collections.abc import Collection
from typing import Protocol

__all__ = ["Entry", "is_about_loss", "judge"]


class Entry(Protocol):
    """All requests of one kind: locust.stats.Entry, which is not imported since locust replaces the library's sockets."""

    method: str
    name: str
    num_requests: int
    num_failures: int

    def get_response_time_percentile(self, percent: float) -> float:
        """Milliseconds within which that share (0 to 1) was answered."""


SMALL = frozenset({
    "GET keep-alive",
    "GET short",
    "GET office page",
    "hold: GET",
    "connect, echo, close",
    "message",
    "echo",
    "A",
})  # fmt: skip
"""Requests whose time is one round trip or two. A transfer takes as long as it is to take."""
DATAGRAMS = frozenset({"echo", "A"})
"""Requests of which some may be lost (loadtests/users/udp.py)."""
ENOUGH = 20
"""Answers without which a percentile means nothing."""


def judge(entries: Collection[Entry], *, p95: float, loss: float) -> tuple[list[str], list[str]]:
    """Return a sentence on each objective that was missed, and on each that was kept.

    p95   milliseconds within which 95 % of small requests are to be answered
    loss  per cent of datagrams that may be lost
    """
    missed: list[str] = []
    kept: list[str] = []
    answered = sum(entry.num_requests - entry.num_failures for entry in entries)
    (kept if answered else missed).append(f"{answered:,} requests succeeded")
    failed = [entry for entry in entries if entry.num_failures]
    missed += [f"{_name(entry)}: {entry.num_failures} of {entry.num_requests} failed" for entry in failed]
    if not failed:
        kept.append("none failed")
    for entry in entries:
        if entry.name in SMALL and entry.num_requests >= ENOUGH:
            slow = entry.get_response_time_percentile(0.95)
            verdict = missed if slow > p95 else kept
            verdict.append(f"{_name(entry)}: 95 % within {slow:.0f} ms, to be {p95:.0f} ms")
        missing = _lost(entry, entries)
        if missing is not None:
            share = 100 * missing / max(entry.num_requests + missing, 1)
            verdict = missed if share > loss else kept
            verdict.append(f"{_name(entry)}: {missing} lost ({share:.2f} %), to be {loss:g} %")
    return missed, kept


def is_about_loss(sentence: str) -> bool:
    """Whether a sentence of `judge` is on requests that failed, or on datagrams that were lost."""
    return sentence.endswith("failed") or " lost (" in sentence


def _name(entry: Entry) -> str:
    return f"{entry.method} {entry.name}"


def _lost(entry: Entry, entries: Collection[Entry]) -> int | None:
    """Datagrams of this kind that were lost; None when it is none that is counted so."""
    if entry.name not in DATAGRAMS:
        return None
    return sum(other.num_requests for other in entries if _name(other) == f"{_name(entry)} lost")
