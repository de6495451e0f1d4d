"""Which name an address was answered for: what one worker's DNS service has told a program, all workers know.

    per worker: NAMES places of  check (4) | length (1) | padding (3) | time (8) | address (16) | name (253)

A worker writes its own part, and all read all parts: the program's connection may belong to another worker than its question
did. An address has one place in each part, found by its hash; a later one takes the place. A place that is read while it is
written fails its check sum and counts as empty, so that nobody waits for anybody.
"""

from collections.abc import Callable
from struct import Struct
from zlib import crc32

from shared.buffer import Buffer

__all__ = ["PART_SIZE", "AnsweredNames"]

NAMES = 4096
"""Addresses remembered for a worker; a power of two."""
NAME_MAX = 253  # characters (RFC 1035, 2.3.4)
_HEAD = Struct("=IB3xQ16s")
_PLACE = _HEAD.size + NAME_MAX + 3
PART_SIZE = NAMES * _PLACE
"""Bytes of one worker's part; pages that are never written take no memory."""


class AnsweredNames:
    """The parts of all workers, PART_SIZE bytes each. `own`: the number of the part that this process writes.

    `used` tells how many parts, from the first on, can hold a name: reading the others would take memory for them.
    """

    def __init__(self, parts: list[memoryview], own: int, used: Callable[[], int] | None = None) -> None:
        self._parts = parts
        self._own = parts[own]
        self._used = used if used is not None else lambda: len(parts)

    def put(self, address: bytes, name: str, now: float) -> None:
        """A program has been told that `name` has this packed address. `now`: seconds of a clock that all processes share."""
        raw = name.encode("ascii", "replace")[:NAME_MAX]
        padded = address.ljust(16, b"\0")
        at = _place(address)
        stamp = int(now * 1e6)
        check = _check(stamp, len(address), padded, raw)
        self._own[at : at + _HEAD.size + len(raw)] = _HEAD.pack(check, len(raw), stamp, padded) + raw

    def find(self, address: bytes) -> str | None:
        """Return the name last answered with this packed address, as far as it is remembered."""
        at = _place(address)
        padded = address.ljust(16, b"\0")
        latest, found = -1, None
        for part in self._parts[: self._used()]:
            check, length, stamp, there = _HEAD.unpack_from(part, at)
            if there != padded or stamp <= latest or not length:
                continue
            raw = bytes(part[at + _HEAD.size : at + _HEAD.size + length])
            if check == _check(stamp, len(address), padded, raw):
                latest, found = stamp, raw
        return found.decode("ascii") if found is not None else None

    def close(self) -> None:
        """Release the memory."""
        for part in self._parts:
            part.release()


def _place(address: Buffer) -> int:
    return (crc32(address) & (NAMES - 1)) * _PLACE


def _check(stamp: int, size: int, address: bytes, name: bytes) -> int:
    return crc32(name, crc32(address, (stamp ^ size) & 0xFFFFFFFF))
