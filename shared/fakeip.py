"""The fake-IP table: a name and the address that stands for it, one table for all workers, in shared memory.

    | header: magic, ranges, key, cursors | stamps[n], when used last | entries[n]: check (4), length (1), name (253) | index |

Entry i is the name behind address FIRST + i of both ranges, so that an address is looked up without a search. A name is looked
up in the index, a hash table with linear probing whose words are  tag (32 bits of the hash) << 32 | entry + 1.

Any process looks names and addresses up without a lock, and one at a time gives a name its address. CPython has no atomics, so:
  * Writers exclude each other by a record lock of the kernel on the memory's descriptor, 2 us for a new name. The kernel releases
    it when its holder dies, so that a death in the middle of a write stops nobody.
  * A name counts only if it agrees with its check sum, and the index is but a hint: what it points to is compared with the name
    that was asked for. So a half-written entry is no entry, whether its writer is still at it or dead, and whatever a death
    leaves in the index costs some steps and is never believed. What was missed is looked for again under the lock.
  * When the range is used up, the entry is taken that was not used for longest. Someone who uses it at that very moment and the
    evictor meet as in Dekker's pattern (see ring.py): the user stamps the entry and then reads the name, the evictor makes the
    name unreadable and then looks at the stamp. Either the user finds no name any more, or the evictor lets it live.
  * A stamp or a word of the index is one aligned 8-byte store: seen whole or not at all.

The memory is a memfd, or a file: then it survives the engine however that ends, and `load` finds every name at its address.
"""

import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from zlib import crc32

from shared.ring import fence
from shared.system import create_memory

__all__ = ["NAMES", "FakeIpLayout", "FakeIpTable", "fake_ip_layout"]

NAMES = 1 << 17
"""Names in a table that is not told otherwise: as many as 198.18.0.0/15 has addresses, in 36 MiB once all are used."""
NAME_MAX = 253  # characters (RFC 1035, 2.3.4)
FIRST = 4  # addresses of a range that are not given out at its beginning: the network's, the tun's, that of its DNS, one to spare
LAST = 1  # and at its end: the broadcast address
EVICTION_SAMPLE = 256
"""Entries behind the last evicted one, and as many spread over the table, among which the one unused for longest goes. Of a
table of this size it is the one unused for longest of all."""
LOCK_TIMEOUT = 0.25  # seconds for another process to finish its write of a few microseconds, or to be killed
LOCK_RETRY = 50e-6  # seconds; spinning would keep the other from its processor

_MAGIC = b"tunloom fake-IP\n"
_ENTRY = 4 + 1 + NAME_MAX
_SIGNATURE = slice(16, 48)
_KEY = slice(48, 64)
_USED = 64 // 8  # entries [0, used) have been given out at least once
_HAND = 72 // 8  # where the last eviction was
_HEADER = mmap.PAGESIZE


class FakeIpLayout:
    """Sizes and offsets; equal in all processes that were told the same. Raises ValueError for ranges that hold no name."""

    def __init__(self, inet4: IPv4Network | None, inet6: IPv6Network | None, names: int = NAMES) -> None:
        ranges: dict[int, IPv4Network | IPv6Network] = {net.version: net for net in (inet4, inet6) if net is not None}
        if not ranges:
            raise ValueError("fake-IP needs an IPv4 or an IPv6 range")
        for net in ranges.values():
            if net.num_addresses <= FIRST + LAST:
                raise ValueError(
                    f"the fake-IP range {net} is too small: {FIRST + LAST} of its addresses are not given out"
                )
        self.names = min(names, *(net.num_addresses - FIRST - LAST for net in ranges.values()))
        self.first = {version: int(net.network_address) + FIRST for version, net in ranges.items()}
        self.index_words = 1 << (2 * self.names - 1).bit_length()  # at most half full
        self.entries_at = _HEADER + 8 * self.names
        self.index_at = _up(self.entries_at + _ENTRY * self.names, 8)
        self.size = _up(self.index_at + 8 * self.index_words, mmap.PAGESIZE)
        self.signature = hashlib.blake2b(repr((1, self.names, self.first)).encode(), digest_size=32).digest()


def fake_ip_layout(inet4: str | None, inet6: str | None) -> FakeIpLayout:
    """Return the layout of a table for ranges given as text. Raises ValueError."""
    return FakeIpLayout(
        IPv4Network(inet4, strict=False) if inet4 else None, IPv6Network(inet6, strict=False) if inet6 else None
    )


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _microseconds() -> int:
    return time.monotonic_ns() // 1000


class FakeIpTable:
    """A mapping of the table. `create` or `load` in the master, `attach` in the workers. For one thread of a process.

    allocated, evicted    names that this process has given an address, and those whose address it took for that
    busy                  calls that found nothing because another process did not finish its write in LOCK_TIMEOUT
    """

    def __init__(self, fd: int, layout: FakeIpLayout, now: Callable[[], int] = _microseconds) -> None:
        """`now`: microseconds of a clock that all processes share, and that never is 0."""
        self.fd = fd
        self.layout = layout
        self.allocated = self.evicted = self.busy = 0
        self._now = now
        self._map = mmap.mmap(fd, layout.size)
        self._memory = memoryview(self._map)
        self._header = self._memory[:_HEADER].cast("Q")
        self._stamps = self._memory[_HEADER : layout.entries_at].cast("Q")
        self._index = self._memory[layout.index_at : layout.index_at + 8 * layout.index_words].cast("Q")
        self._mask = layout.index_words - 1
        self._key = bytes(self._memory[_KEY])

    @classmethod
    def create(cls, layout: FakeIpLayout, now: Callable[[], int] = _microseconds) -> "FakeIpTable":
        """Make an empty table in memory; its pages are taken only when first written. Raises OSError."""
        fd = create_memory("fakeip", layout.size)
        try:
            return cls._initialise(fd, layout, now)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def load(cls, path: Path, layout: FakeIpLayout, now: Callable[[], int] = _microseconds) -> "FakeIpTable":
        """Map the table kept in a file, which is made if need be. One of other ranges or another size begins anew.

        Not while a worker has it mapped. Raises ValueError when the file is something else, OSError when it cannot be used:
        BlockingIOError when another engine uses it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by every descriptor made from this one
            size = os.fstat(fd).st_size
            beginning = os.pread(fd, _HEADER, 0)
            if size and beginning[: len(_MAGIC)] != _MAGIC and any(beginning):
                raise ValueError(f"{path} is not a fake-IP table: remove it, or choose another file")
            if size == layout.size and beginning[_SIGNATURE] == layout.signature:
                table = cls(fd, layout, now)
                table._mend()
                return table
            os.ftruncate(fd, 0)
            os.posix_fallocate(fd, 0, layout.size)  # a page that the disk has no room for would kill its writer
            return cls._initialise(fd, layout, now)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, layout: FakeIpLayout, now: Callable[[], int] = _microseconds) -> "FakeIpTable":
        """Map the memory behind an inherited descriptor."""
        return cls(fd, layout, now)

    @classmethod
    def _initialise(cls, fd: int, layout: FakeIpLayout, now: Callable[[], int]) -> "FakeIpTable":
        os.pwrite(fd, _MAGIC + layout.signature + os.urandom(16), 0)
        return cls(fd, layout, now)

    def save(self) -> None:
        """Have the kernel write a table in a file to its disk now; without, it does so within half a minute."""
        self._map.flush()

    def close(self) -> None:
        """Unmap and close."""
        for view in (self._header, self._stamps, self._index, self._memory):
            view.release()
        self._map.close()
        os.close(self.fd)

    # for everyone, without a lock

    def __len__(self) -> int:
        """Names that have an address."""
        return self._header[_USED]

    def __contains__(self, address: bytes) -> bool:
        """Whether a packed address is one that is given out, to a name or not yet."""
        return self._entry_of(address) is not None

    def name_of(self, address: bytes) -> str | None:
        """Return the name behind a packed address; None if it has none (any more)."""
        entry = self._entry_of(address)
        if entry is None or not self._stamps[entry]:
            return None
        self._stamps[entry] = self._now()
        fence()  # stamp before the name: see the module docstring
        name = self._read(entry)
        if name is None and self._lock():  # perhaps a writer was at it, and lets it live
            name = self._read(entry)
            self._unlock()
        return None if name is None else name.decode("ascii")

    def address_of(self, name: str, version: int) -> bytes | None:
        """Return the packed address (of IP `version`) that stands for a name, given to it now if need be.

        Letters of both cases and a trailing dot make no difference. None when there is no range of that version, when this is no
        name (not ASCII, empty or too long), or when the table is busy.
        """
        first = self.layout.first.get(version)
        if first is None or not name.isascii():
            return None
        raw = name.lower().removesuffix(".").encode("ascii")
        if not 0 < len(raw) <= NAME_MAX:
            return None
        tag = self._tag(raw)
        entry = self._find(raw, tag)
        if entry is None:
            entry = self._allocate(raw, tag)
        return None if entry is None else (first + entry).to_bytes(4 if version == 4 else 16, "big")

    def clear(self) -> int | None:
        """Forget all names; return how many there were, or None when the table is busy.

        The addresses are given out again only after all that were never used: programs may remember them for a while, and
        are to be refused then rather than led to another name.
        """
        if not self._lock():
            return None
        try:
            layout, used = self.layout, self._header[_USED]
            first = layout.entries_at + 4
            lengths = self._memory[first : first + _ENTRY * used : _ENTRY]
            names = used - bytes(lengths).count(0)
            lengths[:] = bytes(used)
            self._stamps[:used] = memoryview(bytes(8 * used)).cast("Q")
            self._memory[layout.index_at : layout.index_at + 8 * layout.index_words] = bytes(8 * layout.index_words)
            return names
        finally:
            self._unlock()

    def _entry_of(self, address: bytes) -> int | None:
        first = self.layout.first.get(4 if len(address) == 4 else 6)
        if first is None:
            return None
        entry = int.from_bytes(address, "big") - first
        return entry if 0 <= entry < self.layout.names else None

    def _read(self, entry: int) -> bytes | None:
        """Return the name in an entry; None if there is none, or half of one."""
        at = self.layout.entries_at + _ENTRY * entry
        length = self._memory[at + 4]
        copy = bytes(self._memory[at : at + 5 + length])
        name = copy[5:]
        whole = 0 < length == copy[4] and int.from_bytes(copy[:4], "little") == crc32(name, entry)
        return name if whole else None

    def _tag(self, name: bytes) -> int:
        """Keyed, so that nobody can choose names that meet in the index."""
        return int.from_bytes(hashlib.blake2b(name, digest_size=4, key=self._key).digest(), "little")

    def _find(self, name: bytes, tag: int) -> int | None:
        """Return the entry of a name, stamped as used now."""
        for _, word in self._probe(tag):
            entry = (word & 0xFFFFFFFF) - 1
            if word >> 32 == tag and 0 <= entry < self.layout.names:
                self._stamps[entry] = self._now()
                fence()  # stamp before the name: see the module docstring
                if self._read(entry) == name:
                    return entry
        return None

    def _probe(self, at: int) -> Iterator[tuple[int, int]]:
        """Yield places of the index and their words: from `at` on up to an empty one, or all."""
        index, mask = self._index, self._mask
        for place in range(at, at + mask + 1):
            word = index[place & mask]
            yield place & mask, word
            if not word:
                return

    # for one process at a time

    def _allocate(self, name: bytes, tag: int) -> int | None:
        if not self._lock():
            return None
        try:
            entry = self._find(name, tag)  # another process may have been faster
            if entry is None:
                entry = self._unused() if self._header[_USED] < self.layout.names else self._evict()
                self._write(entry, name)
                self._insert(entry, tag)
                self.allocated += 1
            return entry
        finally:
            self._unlock()

    def _lock(self) -> bool:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
                if time.monotonic() > deadline:
                    self.busy += 1
                    return False
                time.sleep(LOCK_RETRY)

    def _unlock(self) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def _unused(self) -> int:
        entry = self._header[_USED]
        self._header[_USED] = entry + 1
        return entry

    def _write(self, entry: int, name: bytes) -> None:
        self._stamps[entry] = self._now()
        at = self.layout.entries_at + _ENTRY * entry
        self._memory[at : at + 5 + len(name)] = crc32(name, entry).to_bytes(4, "little") + bytes((len(name),)) + name

    def _insert(self, entry: int, tag: int) -> None:
        for place, word in self._probe(tag):
            if not word:
                fence()  # the name before what leads to it
                self._index[place] = tag << 32 | entry + 1
                return
        self._reindex(self._names())  # it is full of what deaths have left in it

    def _evict(self) -> int:
        """Free the entry that was not used for longest; return it."""
        while True:
            entry, stamp = self._oldest()
            name = self._read(entry)
            length_at = self.layout.entries_at + _ENTRY * entry + 4
            self._memory[length_at] = 0
            fence()  # no name before the look at the stamp: see the module docstring
            if self._stamps[entry] != stamp:  # used meanwhile: it lives
                self._memory[length_at] = len(name or b"")
                continue
            if name is not None:
                self._remove(entry, self._tag(name))
                self.evicted += 1
            return entry

    def _oldest(self) -> tuple[int, int]:
        """Return an entry and its stamp: the oldest behind the last eviction or, if that is older, of a sample of all."""
        names, stamps = self.layout.names, self._stamps
        hand = self._header[_HAND] % names
        near = stamps[hand : hand + EVICTION_SAMPLE].tolist()
        near += stamps[: min(hand, EVICTION_SAMPLE - len(near))].tolist()
        stamp = min(near)
        entry = (hand + near.index(stamp)) % names
        step = max(1, names // EVICTION_SAMPLE)
        offset = hand % step
        far = stamps[offset::step].tolist()
        if min(far) < stamp:
            stamp = min(far)
            entry, hand = offset + step * far.index(stamp), hand + 1  # onwards, so that the next sample is another one
        else:
            hand = entry + 1
        self._header[_HAND] = hand
        return entry, stamp

    def _remove(self, entry: int, tag: int) -> None:
        """Take an entry out of the index and close the gap behind it, word by word, so that no probe ends too early.

        A word is copied before its old place is overwritten: a death in between leaves it twice, which harms nobody.
        """
        index, mask = self._index, self._mask
        gap = next((place for place, word in self._probe(tag) if word == tag << 32 | entry + 1), None)
        if gap is None:
            return  # a death had kept it out of the index
        for place, word in self._probe(gap + 1):
            if word and (place - (word >> 32) & mask) >= (
                place - gap & mask
            ):  # its probe begins at the gap or before it
                index[gap] = word
                gap = place
        index[gap] = 0

    def _mend(self) -> None:
        """Make stamps, index and cursor anew from the names: whatever a crash or another boot left in them is gone."""
        names = self._names()
        ages = sorted((self._stamps[entry], entry) for entry in names)
        self._memory[_HEADER : self.layout.entries_at] = bytes(8 * self.layout.names)
        for age, (_, entry) in enumerate(ages, 1):  # older than whatever is used from now on
            self._stamps[entry] = age
        self._header[_USED] = max(names, default=-1) + 1
        self._reindex(names)

    def _names(self) -> dict[int, bytes]:
        """Return every entry that holds a name, and the name."""
        layout = self.layout
        lengths = self._memory[layout.entries_at + 4 : layout.entries_at + _ENTRY * layout.names : _ENTRY].tolist()
        used = [(entry, self._read(entry)) for entry, length in enumerate(lengths) if length]
        return {entry: name for entry, name in used if name is not None}

    def _reindex(self, names: dict[int, bytes]) -> None:
        at = self.layout.index_at
        self._memory[at : at + 8 * self.layout.index_words] = bytes(8 * self.layout.index_words)
        for entry, name in names.items():
            self._insert(entry, self._tag(name))
