"""DNS messages as far as the service itself looks into them (RFC 1035 section 4, RFC 6891). Pure.

    parse_query    what a program asks           build_query   what a server is asked
    parse_reply    what a server answers         Query, Reply  small values over the bytes

Whole messages with all their record types are dnspython's (answers.py); this is what every query needs, a hundred times
cheaper. A name is kept as it stands on the wire and compared in lower case: labels are at most 63 bytes long, so that the
bytes that say how long they are cannot be taken for letters.
"""

from struct import Struct
from typing import NamedTuple

__all__ = [
    "AA",
    "AD",
    "CD",
    "CLIENT_SUBNET",
    "EDNS_SIZE",
    "HEADER",
    "OPT_RECORD",
    "QR",
    "RA",
    "RCODE",
    "RD",
    "TC",
    "BadQuery",
    "BadReply",
    "Query",
    "Record",
    "Reply",
    "build_query",
    "check_name",
    "name_text",
    "parse_query",
    "parse_reply",
    "wire_name",
]

HEADER = Struct(">HHHHHH")
"""Identifier, flags, and the number of questions, answers, authority and additional records."""
QR, AA, TC, RD, RA, AD, CD, RCODE = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010, 0x000F
"""Bits of the flags (RFC 1035 4.1.1, RFC 4035 3.2.3)."""
EDNS_SIZE = 1232
"""Bytes of UDP payload that we say we take: what passes IPv6's least MTU without fragments (DNS flag day 2020)."""
CLIENT_SUBNET = 8
"""Option of EDNS (RFC 7871)."""

_OPCODE = 0x7800
_DO = 0x8000  # flag of EDNS: DNSSEC records are wanted (RFC 3225)
_OPT = 41  # type of the pseudo record of EDNS
_UDP_SIZE = 512  # bytes that every resolver takes over UDP (RFC 1035 4.2.1)
_NAME_MAX, _LABEL_MAX = 255, 63  # bytes, RFC 1035 2.3.4
_POINTER = 0xC0  # RFC 1035 4.1.4
_FORMERR, _NOTIMP, _BADVERS = 1, 4, 16

_header = HEADER.unpack_from
_OPT_HEAD = Struct(">BHHBBHH")  # root name, type, payload size, extended rcode, version, flags, length of the options
_OPTION = Struct(">HH")
_RECORD = Struct(">HHIH")  # type, class, TTL, length of the data

OPT_RECORD = tuple(_OPT_HEAD.pack(0, _OPT, EDNS_SIZE, 0, 0, flags, 0) for flags in (0, _DO))
"""The EDNS record of an answer: without and with DO."""

_VARIANTS = tuple(bytes((variant,)) for variant in range(256))
_DO_VARIANT = 2  # beside RD (0x10) and CD (0x01) of the flags


class BadQuery(Exception):
    """A message that is answered with an error only; `rcode` may be an extended one (RFC 6891 6.1.3)."""

    def __init__(self, rcode: int, ident: int, flags: int) -> None:
        super().__init__(rcode)
        self.rcode = rcode
        self.ident = ident
        self.flags = flags

    def reply(self) -> bytes:
        """The answer: a header, and the EDNS record when the rcode needs it."""
        flags = QR | (self.flags & (_OPCODE | RD)) | (self.rcode & RCODE)
        if self.rcode <= RCODE:
            return HEADER.pack(self.ident, flags, 0, 0, 0, 0)
        opt = _OPT_HEAD.pack(0, _OPT, EDNS_SIZE, self.rcode >> 4, 0, 0, 0)
        return HEADER.pack(self.ident, flags, 0, 0, 0, 1) + opt


class BadReply(Exception):
    """A server's message that is no DNS answer to the question, or not a well-formed one."""


class Query(NamedTuple):
    """One question of a program."""

    ident: int
    flags: int
    """As sent; only RD, AD and CD are of interest."""
    question: bytes
    """Name, type and class, spelt as the program spelt them."""
    key: bytes
    """The same in lower case, and what else makes it another question: RD, CD, DO, the client subnet."""
    size: int
    """Bytes of the largest answer over UDP."""
    edns: bool = False
    do: bool = False
    subnet: bytes = b""
    """Data of the client-subnet option; empty without one."""

    @property
    def qtype(self) -> int:
        """Type of the question."""
        return int.from_bytes(self.question[-4:-2], "big")

    @property
    def qclass(self) -> int:
        """Class of the question."""
        return int.from_bytes(self.question[-2:], "big")

    @property
    def name(self) -> bytes:
        """The name on the wire, in lower case."""
        return self.question[:-4].lower()


def parse_query(data: bytes) -> Query | None:
    """Return the question of a message; None for one that gets no answer: too short for a header, or itself an answer.

    Raises BadQuery. Whether the name is well-formed is for `check_name` to say: one that is not is never found in a cache.
    """
    size = len(data)
    if size < 12:
        return None
    ident, flags, questions, answers, authorities, additional = _header(data)
    if flags & QR:
        return None
    if flags & _OPCODE:
        raise BadQuery(_NOTIMP, ident, flags)
    # A name ends with the first zero byte, unless there are zeros within its labels, which `check_name` refuses.
    at = data.find(0, 12) + 5
    if questions != 1 or answers or authorities or at < 17 or at > size:
        raise BadQuery(_FORMERR, ident, flags)
    question = data[12:at]
    # Type and class are no letters: TYPE65 (HTTPS) is not TYPE97.
    key = question[:-4].lower() + question[-4:]
    variant = (flags >> 4) & 0x11  # RD and CD
    if not additional:
        return Query(ident, flags, question, key + _VARIANTS[variant], _UDP_SIZE)
    try:
        opt = _find_opt(data, at, additional)
    except BadReply:
        raise BadQuery(_FORMERR, ident, flags) from None
    if opt is None:
        return Query(ident, flags, question, key + _VARIANTS[variant], _UDP_SIZE)
    udp_size, version, opt_flags, options = opt
    if version:
        raise BadQuery(_BADVERS, ident, flags)
    do = bool(opt_flags & _DO)
    key += _VARIANTS[variant | _DO_VARIANT if do else variant]
    subnet = b""
    if options:
        try:
            subnet = _find_option(options, CLIENT_SUBNET)
        except BadReply:
            raise BadQuery(_FORMERR, ident, flags) from None
        key += subnet
    return Query(ident, flags, question, key, max(udp_size, _UDP_SIZE), True, do, subnet)


def check_name(query: Query) -> None:
    """Raise BadQuery unless the name of the question is well-formed: labels within the limits, no pointers, no zeros."""
    name = query.question[:-4]
    at = 0
    while name[at]:
        if name[at] > _LABEL_MAX or at + name[at] + 1 >= len(name):
            raise BadQuery(_FORMERR, query.ident, query.flags)
        at += name[at] + 1
    if len(name) > _NAME_MAX:
        raise BadQuery(_FORMERR, query.ident, query.flags)


def build_query(query: Query, *, subnet: bytes = b"", edns: bool = True) -> bytes:
    """Return a message, identifier 0, that asks a server what `query` asks; `subnet`: data of a client-subnet option."""
    flags = query.flags & (RD | AD | CD)
    if not edns:
        return HEADER.pack(0, flags, 1, 0, 0, 0) + query.question
    options = _OPTION.pack(CLIENT_SUBNET, len(subnet)) + subnet if subnet else b""
    opt = _OPT_HEAD.pack(0, _OPT, EDNS_SIZE, 0, 0, _DO if query.do else 0, len(options))
    return HEADER.pack(0, flags, 1, 0, 0, 1) + query.question + opt + options


class Record(NamedTuple):
    """Where one record of a message stands."""

    section: int
    """1 answer, 2 authority, 3 additional."""
    start: int
    rtype: int
    ttl_at: int
    ttl: int
    data_at: int
    end: int


class Reply(NamedTuple):
    """A server's answer."""

    ident: int
    flags: int
    question: bytes
    """As the server repeats it; empty when it does not (some do not in errors)."""
    records: tuple[Record, ...]
    """All but the EDNS record."""
    opt: Record | None


def parse_reply(data: bytes) -> Reply:
    """Take an answer apart. Raises BadReply."""
    if len(data) < 12:
        raise BadReply("shorter than a header")
    ident, flags, questions, *counts = _header(data)
    if not flags & QR or flags & _OPCODE or questions > 1:
        raise BadReply("not an answer to one question")
    at = 12
    if questions:
        at = _skip_name(data, at) + 4
        if at > len(data):
            raise BadReply("ends within the question")
    question = data[12:at]
    records = []
    opt = None
    for section, count in enumerate(counts, start=1):
        for _ in range(count):
            record = _parse_record(data, at, section)
            at = record.end
            if record.rtype != _OPT:
                records.append(record)
            elif opt is not None or section != 3:
                raise BadReply("more than one EDNS record")
            else:
                opt = record
    return Reply(ident, flags, question, tuple(records), opt)


def _parse_record(data: bytes, start: int, section: int) -> Record:
    at = _skip_name(data, start)
    if at + _RECORD.size > len(data):
        raise BadReply("ends within a record")
    rtype, _, ttl, length = _RECORD.unpack_from(data, at)
    data_at = at + _RECORD.size
    if data_at + length > len(data):
        raise BadReply("ends within a record's data")
    if ttl >> 31 and rtype != _OPT:
        ttl = 0  # RFC 2181 section 8
    return Record(section, start, rtype, at + 4, ttl, data_at, data_at + length)


def _skip_name(data: bytes, at: int) -> int:
    """Return where the name at `at` ends. A pointer ends it; where that leads is not looked at. Raises BadReply."""
    size = len(data)
    while at < size:
        length = data[at]
        if length >= _POINTER:
            return at + 2
        at += length + 1
        if not length:
            return at
        if length > _LABEL_MAX:
            raise BadReply("a label of an unknown kind")
    raise BadReply("ends within a name")


def _find_opt(data: bytes, at: int, count: int) -> tuple[int, int, int, bytes] | None:
    """Return payload size, version, flags and options of the EDNS record among `count` records. Raises BadReply."""
    if count == 1 and data[at : at + 3] == b"\0\0\x29" and len(data) >= at + _OPT_HEAD.size:
        _, _, size, _, version, flags, length = _OPT_HEAD.unpack_from(data, at)
        end = at + _OPT_HEAD.size + length
        if end > len(data):
            raise BadReply("ends within the EDNS options")
        return size, version, flags, data[at + _OPT_HEAD.size : end]
    found = None
    for _ in range(count):
        record = _parse_record(data, at, 3)
        if record.rtype == _OPT:
            if found is not None or data[at]:
                raise BadReply("more than one EDNS record")
            _, _, size, _, version, flags, _ = _OPT_HEAD.unpack_from(data, at)
            found = size, version, flags, data[record.data_at : record.end]
        at = record.end
    return found


def _find_option(options: bytes, wanted: int) -> bytes:
    """Return the data of one EDNS option, empty when it is not there. Raises BadReply."""
    at = 0
    while at < len(options):
        if at + 4 > len(options):
            raise BadReply("ends within an EDNS option")
        code, length = _OPTION.unpack_from(options, at)
        at += 4
        if at + length > len(options):
            raise BadReply("ends within an EDNS option")
        if code == wanted:
            return options[at : at + length]
        at += length
    return b""


def wire_name(text: str) -> bytes:
    """Return a host name in wire form, lower case. Raises ValueError when it is none."""
    try:
        labels = text.rstrip(".").lower().encode("ascii").split(b".") if text.rstrip(".") else []
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is not written in ASCII") from error
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(name) > _NAME_MAX or any(not 0 < len(label) <= _LABEL_MAX for label in labels):
        raise ValueError(f"{text!r} is not a domain name")
    return name


def name_text(name: bytes) -> str:
    """Return a well-formed wire name as rules and logs see it: lower case, no final dot; odd bytes escaped (RFC 1035 5.1)."""
    labels = []
    at = 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += name[at] + 1
    text = b".".join(labels)
    if text.isascii() and text.decode().isprintable() and b"." not in b"".join(labels):
        return text.decode().lower()
    return ".".join("".join(_escaped(byte) for byte in label) for label in labels).lower()


def _escaped(byte: int) -> str:
    return f"\\{byte:03}" if byte in b".\\" or not 0x21 <= byte <= 0x7E else chr(byte)
