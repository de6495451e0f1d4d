"""The program that a flow belongs to, as the master finds it out and as rules see it."""

import msgspec

__all__ = ["ProcessInfo"]


class ProcessInfo(msgspec.Struct, frozen=True):
    """Owner of a socket. What could not be found out is empty, and matches no rule."""

    pid: int | None = None
    name: str = ""
    """Last part of `path`."""
    path: str = ""
    """The executable's."""
    uid: int | None = None
    user: str = ""
    """Name of `uid`."""
