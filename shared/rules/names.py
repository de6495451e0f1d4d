"""Domain names of all rules in one table: which rules name a host costs one look-up for each of its labels.

A set of names is a bit of a mask, as in addresses.py.
"""

from collections.abc import Iterable

__all__ = ["NameTable"]


class NameTable:
    """Exact names and suffixes; case does not matter."""

    def __init__(self) -> None:
        self._exact: dict[str, int] = {}
        self._below: dict[str, int] = {}  # of names with more labels than this
        self._interned: dict[int, int] = {}

    def add(self, domains: Iterable[str], suffixes: Iterable[str], bit: int) -> None:
        """The set `bit` (a power of two) holds `domains`, what ends in a suffix, and a suffix itself if it begins with no dot."""
        for domain in domains:
            self._add(self._exact, domain.lower(), bit)
        for suffix in suffixes:
            name = suffix.lower()
            if not name.startswith("."):
                self._add(self._exact, name, bit)
            self._add(self._below, name.removeprefix("."), bit)

    def _add(self, table: dict[str, int], name: str, bit: int) -> None:
        mask = table.get(name, 0) | bit
        table[name] = self._interned.setdefault(mask, mask)

    def find(self, host: str) -> int:
        """Return the bits of the sets that hold `host`, a name in lower case without the final dot."""
        mask = self._exact.get(host, 0)
        below = self._below
        if below:
            dot = host.find(".")
            while dot >= 0:
                if found := below.get(host[dot + 1 :]):
                    mask |= found
                dot = host.find(".", dot + 1)
        return mask
