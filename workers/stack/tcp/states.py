"""The states of a connection and what leads from one to the next. This stack only ever answers a SYN (the passive side)."""

from enum import IntEnum, auto

__all__ = ["TRANSITIONS", "Event", "State"]


class State(IntEnum):
    """RFC 9293 3.3.2. LISTEN is the stack itself; SYN-SENT does not exist on the passive side.

    IntEnum because it hashes in C; states are looked up in sets and in the table for every packet that is not predicted.
    """

    DIALING = auto()
    """SYN-RECEIVED in which the SYN-ACK is held back until the upstream has connected."""
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    FIN_WAIT_1 = auto()
    FIN_WAIT_2 = auto()
    CLOSE_WAIT = auto()
    CLOSING = auto()
    LAST_ACK = auto()
    TIME_WAIT = auto()
    CLOSED = auto()


class Event(IntEnum):
    """What changes a state."""

    ACCEPT = auto()  # our SYN-ACK goes out
    SYN_ACKED = auto()
    FIN_RECEIVED = auto()  # and everything before it
    FIN_SENT = auto()
    FIN_ACKED = auto()
    ABORT = auto()  # RST either way, a refusal, a time-out; legal in every state


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.DIALING, Event.ACCEPT): State.SYN_RECEIVED,
    (State.SYN_RECEIVED, Event.SYN_ACKED): State.ESTABLISHED,
    (State.ESTABLISHED, Event.FIN_SENT): State.FIN_WAIT_1,
    (State.ESTABLISHED, Event.FIN_RECEIVED): State.CLOSE_WAIT,
    (State.FIN_WAIT_1, Event.FIN_ACKED): State.FIN_WAIT_2,
    (State.FIN_WAIT_1, Event.FIN_RECEIVED): State.CLOSING,
    (State.FIN_WAIT_2, Event.FIN_RECEIVED): State.TIME_WAIT,
    (State.CLOSING, Event.FIN_ACKED): State.TIME_WAIT,
    (State.CLOSE_WAIT, Event.FIN_SENT): State.LAST_ACK,
    (State.LAST_ACK, Event.FIN_ACKED): State.CLOSED,
    **{(state, Event.ABORT): State.CLOSED for state in State},
}
"""A missing entry is a mistake of ours: KeyError."""
