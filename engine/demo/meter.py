"""How the load measures itself and tells whoever started it: messages on stdout, each a line of JSON.

`Progress` when a phase begins and some times a second, one `PhaseResult` when it ends.
"""

import threading
from collections.abc import Callable
from time import monotonic

import msgspec

__all__ = ["Meter", "PhaseResult", "Progress", "decode_message", "say"]

PROGRESS_INTERVAL = 0.2
"""Seconds between two messages of progress."""


class Progress(msgspec.Struct, tag="progress"):
    """How fast a phase is, in its unit, since it began."""

    phase: str
    rate: float


class PhaseResult(msgspec.Struct, tag="result", kw_only=True):
    """How a phase ended; it is all right when `errors` is empty."""

    phase: str
    rate: float = 0.0
    """In the unit of the phase."""
    bytes_verified: int = 0
    """Payload bytes that came back, or arrived at the target, and were found right."""
    datagrams: dict[int, tuple[int, int]] = {}
    """UDP only: payload size -> (sent, received)."""
    errors: list[str] = []


_encode = msgspec.json.Encoder().encode
decode_message: Callable[[str], Progress | PhaseResult] = msgspec.json.Decoder(Progress | PhaseResult).decode


class Meter:
    """Counts what a phase has done and reports its progress. For several threads."""

    def __init__(self, phase: str, scale: float = 1.0) -> None:
        """`scale` turns a count per second into the unit of the phase."""
        self.count = 0
        self._phase = phase
        self._scale = scale
        self._began_at = self._reported_at = monotonic()
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        """Count `amount` more."""
        with self._lock:
            self.count += amount
            now = monotonic()
            if now - self._reported_at >= PROGRESS_INTERVAL:
                self._reported_at = now
                say(Progress(self._phase, self.rate()))

    def rate(self) -> float:
        """Return the average since the beginning, in the unit of the phase."""
        return self.count * self._scale / (monotonic() - self._began_at)


def say(message: Progress | PhaseResult) -> None:
    """Print a message."""
    print(_encode(message).decode(), flush=True)
