"""The pipe whose writing end the master alone holds: its end of file is the master's death."""

import select

from engine.netconf import NetworkError

__all__ = ["refuse_without_master"]


def refuse_without_master(guard_fd: int | None) -> None:
    """Raise NetworkError when the master, whose life line's reading end is `guard_fd`, is gone."""
    if guard_fd is not None and _is_closed(guard_fd):
        raise NetworkError("The engine that asked for the change of the network is gone; nothing was changed.")


def _is_closed(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)  # POLLHUP is reported without being asked for
    return bool(poll.poll(0))
