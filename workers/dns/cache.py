"""Answers, kept ready to be given again: a copy with the asker's identifier and spelling, its TTLs aged. Pure.

TTL (RFC 1035 3.2.1, RFC 2181 8), negative answers (RFC 2308), failures (RFC 9520), stale answers (RFC 8767).
"""

import math
from collections import OrderedDict
from struct import Struct

from workers.dns.wire import AA, AD, CD, HEADER, OPT_RECORD, QR, RA, RCODE, RD, TC, Query, Reply

__all__ = ["FAILURE_TTL", "Answer", "Cache"]

TTL_MAX = 86400
"""Seconds; longer ones are cut, as unbound does (cache-max-ttl)."""
NEGATIVE_TTL_MAX = 3 * 3600
"""Seconds that the absence of a name or record is believed; RFC 2308 section 5 asks for at most three hours."""
FAILURE_TTL = 1.0
"""Seconds before a question that no server answered is asked again: the least that RFC 9520 3.2 allows."""
STALE_TTL = 30
"""Seconds that a stale answer is said to live (RFC 8767 section 4)."""
BYTES_MAX = 16 * 1024 * 1024
"""Bytes of all answers of a cache: an answer may have 64 KiB."""
EXPIRE_INTERVAL, EXPIRE_STEP = 10.0, 2000
"""Seconds between two looks for answers whose time is up; for each so many that are kept, as many seconds more."""

NOERROR, NXDOMAIN = 0, 3
_SOA = 6
_ANSWER, _AUTHORITY = 1, 2
_STALE, _UNTOLD = -1, -2  # ages: of a stale answer; of one whose TTLs are not in place yet
_TTL = Struct(">I")
_pack = HEADER.pack


class Answer:
    """One answer of a server, without identifier, question and EDNS record.

    rcode       of the header
    addresses   packed; those among the answers
    expires_at  monotonic seconds; from then on it is stale
    recheck_at  when a refresh of the stale answer may be tried again
    lifetime    seconds that it may be kept; 0: not at all
    stored_at   monotonic seconds when it came
    """

    __slots__ = (
        "_aged",
        "_counts",
        "_flags",
        "_tail",
        "_tail_now",
        "_ttls",
        "addresses",
        "expires_at",
        "lifetime",
        "rcode",
        "recheck_at",
        "stored_at",
    )

    def __init__(self, data: bytes, reply: Reply, query: Query, now: float) -> None:
        """Take an answer to `query` out of a message; its EDNS record, if there is one, stands last."""
        begin = 12 + len(reply.question)
        end = reply.opt.start if reply.opt is not None else len(data)
        assert reply.opt is None or not reply.records or reply.opt.start >= reply.records[-1].end, "EDNS stands last"
        flags = reply.flags & (AA | AD | TC | RCODE)
        if query.flags & RD:
            flags &= ~AA  # it is ours now; who asks a name server itself (without RD) goes by this bit
        self.rcode = flags & RCODE
        self.addresses: tuple[bytes, ...] = ()
        self._flags = QR | flags | (reply.flags & RA) | (query.flags & (RD | CD))
        _, _, _, answers, authorities, additional = HEADER.unpack_from(data)
        self._counts = answers, authorities, additional - (reply.opt is not None)
        self._tail = self._tail_now = data[begin:end]
        self._ttls = tuple((record.ttl_at - begin, record.ttl) for record in reply.records)
        self.stored_at = now
        self._aged = 0
        self.lifetime = float(_lifetime(data, reply))
        self.expires_at = now + self.lifetime
        self.recheck_at = 0.0

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self._tail)

    def set_lifetime(self, seconds: float) -> None:
        """Let the answer, and all its records, live for so long; infinite: for ever, its TTLs as they are."""
        if math.isfinite(seconds):
            self._ttls = tuple((at, int(seconds)) for at, _ in self._ttls)
            self._aged = _UNTOLD
        self.lifetime = seconds
        self.expires_at = self.stored_at + seconds

    def render(self, query: Query, now: float, limit: int) -> bytes:
        """Return the message that answers `query`; when it is longer than `limit` bytes, an empty one with TC."""
        flags = self._flags
        if not query.do and not query.flags & AD:
            flags &= ~AD  # RFC 6840 5.7
        opt = OPT_RECORD[query.do] if query.edns else b""
        tail = self._tail_at(now)
        if 12 + len(query.question) + len(tail) + len(opt) > limit:
            return _pack(query.ident, flags | TC, 1, 0, 0, query.edns) + query.question + opt
        answers, authorities, additional = self._counts
        return _pack(query.ident, flags, 1, answers, authorities, additional + query.edns) + query.question + tail + opt

    def same_until(self, now: float) -> float:
        """Return until when `render` gives the same: the next second of its age, or its end."""
        next_second = self.stored_at + int(now - self.stored_at) + 1
        return min(next_second, self.expires_at) if now < self.expires_at else now

    def _tail_at(self, now: float) -> bytes:
        """The records with the TTLs that are left; those of a second ago are not made twice."""
        if self.expires_at == math.inf:
            return self._tail_now
        is_stale = now >= self.expires_at and self.lifetime > 0
        age = _STALE if is_stale else int(now - self.stored_at)
        if age == self._aged:
            return self._tail_now
        tail = bytearray(self._tail)
        for at, ttl in self._ttls:
            _TTL.pack_into(tail, at, STALE_TTL if is_stale else max(ttl - age, 0))
        self._aged = age
        self._tail_now = bytes(tail)
        return self._tail_now


def _lifetime(data: bytes, reply: Reply) -> int:
    """Return for how many seconds an answer may be kept; 0: not at all."""
    rcode = reply.flags & RCODE
    if reply.flags & TC or rcode not in (NOERROR, NXDOMAIN):
        return 0
    ttl = min((record.ttl for record in reply.records), default=0)
    if (
        rcode == NOERROR
        and any(record.section == _ANSWER for record in reply.records)
        and not _is_negative(data, reply)
    ):
        return min(ttl, TTL_MAX)
    for record in reply.records:
        if record.section == _AUTHORITY and record.rtype == _SOA and record.end - record.data_at >= 22:
            minimum = int.from_bytes(data[record.end - 4 : record.end], "big")
            return min(ttl, minimum, NEGATIVE_TTL_MAX)
    return 0  # RFC 2308 section 5: without an SOA it should not be kept


def _is_negative(data: bytes, reply: Reply) -> bool:
    """Whether the answers only lead to a name (CNAME) that has no record of the type (RFC 2308 2.2)."""
    qtype = int.from_bytes(reply.question[-4:-2], "big")
    types = {record.rtype for record in reply.records if record.section == _ANSWER}
    return types == {5} and qtype not in (5, 255)


class Cache:
    """Answers by key, bounded in number and bytes: the least recently used are dropped first. `now` is monotonic seconds.

    Those whose time is up are dropped as well, now and then: names that nobody asks for again would fill it for ever.
    """

    def __init__(self, capacity: int, *, serve_stale: float = 0.0) -> None:
        """`serve_stale`: seconds that an answer is kept after its end."""
        self._capacity = capacity
        self._serve_stale = serve_stale
        self._entries: OrderedDict[bytes, Answer] = OrderedDict()
        self._expire_at = 0.0
        self.size = 0  # bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> Answer | None:
        """Return the answer, fresh or stale (`expires_at` tells), and count it as used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.expires_at + self._serve_stale:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in place of an earlier one."""
        self._drop(key)
        if not self._capacity or answer.lifetime <= 0:
            return
        if answer.stored_at >= self._expire_at:
            self._expire(answer.stored_at)
        self._entries[key] = answer
        self.size += answer.size + len(key)
        while len(self._entries) > self._capacity or self.size > BYTES_MAX:
            self._drop(next(iter(self._entries)))

    def _expire(self, now: float) -> None:
        """Drop every answer that `get` would not return."""
        self._expire_at = now + EXPIRE_INTERVAL * (1 + len(self._entries) // EXPIRE_STEP)
        for key in [key for key, entry in self._entries.items() if now >= entry.expires_at + self._serve_stale]:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= entry.size + len(key)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size = 0
