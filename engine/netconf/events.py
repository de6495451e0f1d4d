"""What has happened to this machine's network while the engine runs: for the log, `engine status` and metrics."""

import logging
from collections import deque
from collections.abc import Callable
from time import time
from typing import Literal, NamedTuple, get_args

__all__ = ["EVENTS_MAX", "KINDS", "Event", "EventBook", "Kind"]

log = logging.getLogger(__name__)

EVENTS_MAX = 32
"""Events that are remembered; the counts are of all."""

Kind = Literal[
    "interface_up",
    "interface_down",
    "address_changed",
    "default_route_moved",
    "local_networks_changed",
    "tun_up",
    "tun_down",
    "made_again",
    "conflict",
    "suspended",
    "clock_jumped",
]
"""made_again: another program had removed a change of ours; conflict: it made one that ours does not go with."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class Event(NamedTuple):
    """Something that happened."""

    time: float
    """Unix time."""
    kind: Kind
    text: str


class EventBook:
    """The last events, and how many there were of each kind."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.on_event: Callable[[Event], None] | None = None
        """Told of each event, once it is remembered."""

    def note(self, kind: Kind, text: str, *, level: int | None = logging.INFO) -> None:
        """Something has happened. `level`: of its line in the log; None: somebody else tells it there."""
        event = Event(self._clock(), kind, text)
        self.events.append(event)
        self.counts[kind] += 1
        if level is not None:
            log.log(level, "%s", text)
        if self.on_event is not None:
            self.on_event(event)
