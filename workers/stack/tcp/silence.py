"""What becomes of a connection from which nothing is heard: probed when open, given up when half-closed, over in TIME-WAIT."""

import math
from enum import Enum, auto

from shared.config import StackConfig
from workers.stack.tcp.states import State

__all__ = ["HALF_CLOSED", "Silence", "Verdict"]

KEEPALIVE_INTERVAL = 75.0  # seconds between probes, and
KEEPALIVE_PROBES = 9  # probes in vain before giving up, as Linux
TIME_WAIT = 10.0  # seconds; RFC 9293: 2 MSL = 4 min against old duplicates, which a tun cannot keep

HALF_CLOSED = frozenset({State.FIN_WAIT_2, State.CLOSE_WAIT, State.CLOSED})
"""CLOSED: on the wire, while the upstream still takes the last text."""


class Verdict(Enum):
    """What the connection is to do."""

    WAIT = auto()
    PROBE = auto()
    GIVE_UP = auto()
    FINISH = auto()  # TIME-WAIT is over


class Silence:
    """`at`: when `act` is to be called (monotonic seconds), or infinity. `heard_at`: when the application was last heard."""

    __slots__ = ("_config", "_unanswered", "at")

    def __init__(self, config: StackConfig) -> None:
        self._config = config
        self._unanswered = 0  # probes
        self.at = math.inf

    def listen(self, state: State, heard_at: float, now: float) -> None:
        """Set the deadline of `state`, which was just entered, or whose end has come again (TIME-WAIT)."""
        if state is State.TIME_WAIT:
            self.at = now + TIME_WAIT
        else:
            patience = self._config.half_close_timeout if state in HALF_CLOSED else self._config.keepalive_idle
            self.at = heard_at + patience

    def act(self, state: State, heard_at: float, now: float) -> Verdict:
        """The deadline has passed: set the next one and say what to do."""
        if state is State.TIME_WAIT:
            self.at = math.inf
            return Verdict.FINISH
        if state in HALF_CLOSED:
            self.at = heard_at + self._config.half_close_timeout
            return Verdict.GIVE_UP if self.at <= now else Verdict.WAIT
        return self._keep_alive(heard_at, now)

    def _keep_alive(self, heard_at: float, now: float) -> Verdict:
        """RFC 9293 3.8.4."""
        if heard_at >= self.at - KEEPALIVE_INTERVAL:
            self._unanswered = 0  # heard after the last probe
        idle_at = heard_at + self._config.keepalive_idle
        if idle_at > now:
            self.at = idle_at
            return Verdict.WAIT
        if self._unanswered == KEEPALIVE_PROBES:
            return Verdict.GIVE_UP
        self._unanswered += 1
        self.at = now + KEEPALIVE_INTERVAL
        return Verdict.PROBE
