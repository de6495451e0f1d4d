"""Address sets of all rules in one table: which of them hold an address costs one bisection, however many there are.

A set is a bit of a mask. Ranges of all sets are cut at each other's ends into intervals that belong to the same sets throughout.
"""

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

__all__ = ["PRIVATE", "AddressTable", "parse_range"]

PRIVATE = (
    "0.0.0.0", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4",
    "::", "::1", "fc00::/7", "fe80::/10", "ff00::/8",
)  # fmt: skip
"""What `ip_is_private` means: everything that sing-box does not call public. Neither 100.64.0.0/10 nor 198.18.0.0/15."""

Range = tuple[int, int, int]
"""Bytes of an address (4 or 16), first and last address as numbers."""


def parse_range(text: str) -> Range:
    """Parse a prefix (host bits are ignored), an address, or `first-last`. Raises ValueError."""
    first, dash, last = text.partition("-")
    if dash:
        low, high = ip_address(first.strip()), ip_address(last.strip())
        if low.version != high.version or int(low) > int(high):
            raise ValueError(f"{text!r} is no range of addresses")
        return _size(low), int(low), int(high)
    network = ip_interface(_without_zone(text)).network
    return _size(network.network_address), int(network.network_address), int(network.broadcast_address)


def _size(address: IPv4Address | IPv6Address) -> int:
    return 4 if address.version == 4 else 16


def _without_zone(text: str) -> str:
    address, percent, rest = text.partition("%")
    return address + rest[rest.find("/") :] if percent and "/" in rest else address


class AddressTable:
    """Filled with `add`, asked with `find`; it is sorted when it is asked first."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int, int]]] = {4: [], 16: []}  # first, last, bit
        self._starts: dict[int, list[int]] = {}
        self._masks: dict[int, list[int]] = {}
        self._is_sorted = False

    def add(self, texts: Iterable[str], bit: int) -> None:
        """The set `bit` (a power of two) holds these prefixes, addresses and ranges. Raises ValueError."""
        for text in texts:
            size, first, last = parse_range(text)
            self._ranges[size].append((first, last, bit))
        self._is_sorted = False

    def find(self, address: bytes) -> int:
        """Return the bits of the sets that hold this packed address; 0 for an empty one."""
        if not self._is_sorted:
            self._sort()
        starts = self._starts.get(len(address))
        if not starts:
            return 0
        at = bisect_right(starts, int.from_bytes(address, "big"))
        return self._masks[len(address)][at - 1] if at else 0

    def _sort(self) -> None:
        for size, ranges in self._ranges.items():
            self._starts[size], self._masks[size] = _cut(ranges)
        self._is_sorted = True


def _cut(ranges: list[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """Return where intervals begin, ascending, and the mask of each."""
    edges = [edge for first, last, bit in ranges for edge in ((first, bit, 1), (last + 1, bit, -1))]
    edges.sort()
    starts: list[int] = []
    masks: list[int] = []
    depths: dict[int, int] = {}  # bit -> ranges of it that are open here
    interned: dict[int, int] = {}  # one object for equal masks: there are few, and they may be long
    mask = 0
    for at, bit, step in edges:
        depth = depths[bit] = depths.get(bit, 0) + step
        mask = mask | bit if depth else mask & ~bit
        shared = interned.setdefault(mask, mask)
        if starts and starts[-1] == at:
            masks[-1] = shared
        else:
            starts.append(at)
            masks.append(shared)
    return starts, masks
