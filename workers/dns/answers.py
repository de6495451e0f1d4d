"""Answers that the service makes or changes itself. Record types beyond addresses are dnspython's business. Pure."""

from collections.abc import Iterable, Sequence
from struct import Struct

import dns.edns
import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.zonefile
from dns.rdtypes.svcbbase import ALPNParam, MandatoryParam, Param, ParamKey, SVCBBase

from workers.dns.wire import HEADER, QR, RA, BadReply, Query, Reply, name_text

__all__ = [
    "AAAA",
    "HTTPS",
    "IN",
    "SVCB",
    "A",
    "addresses_in",
    "addresses_reply",
    "filter_bindings",
    "parse_record",
    "predefined_reply",
    "rcode_reply",
    "subnet_option",
    "without_edns",
]

A, AAAA, SVCB, HTTPS, IN = 1, 28, 64, 65, 1
"""Types and class of records."""
PREDEFINED_TTL = 600
"""Seconds, of records that say none."""
_SIZES = {A: 4, AAAA: 16}
_RECORD = Struct(">HHHIH")  # pointer to the question's name, type, class, TTL, length
_NAME_OF_QUESTION = 0xC00C
_ANSWER = 1


def rcode_reply(query: Query, rcode: int) -> bytes:
    """An answer without records."""
    return HEADER.pack(0, QR | RA | rcode, 1, 0, 0, 0) + query.question


def addresses_reply(query: Query, addresses: Iterable[bytes], ttl: int) -> bytes:
    """An answer with those of the packed addresses that the question asks for (A or AAAA)."""
    size = _SIZES[query.qtype]
    records = [
        _RECORD.pack(_NAME_OF_QUESTION, query.qtype, IN, ttl, size) + address
        for address in addresses
        if len(address) == size
    ]
    return HEADER.pack(0, QR | RA, 1, len(records), 0, 0) + query.question + b"".join(records)


def predefined_reply(query: Query, rcode: int, records: Sequence[str]) -> bytes:
    """An answer with records in zone-file form, such as `name. IN A 192.0.2.1`. Raises ValueError for one that is none."""
    message = dns.message.from_wire(HEADER.pack(0, 0, 1, 0, 0, 0) + query.question)
    response = dns.message.make_response(message, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for text in records:
        response.answer.extend(parse_record(text))
    return response.to_wire(max_size=65535)


def parse_record(text: str) -> list[dns.rrset.RRset]:
    """Read a record in zone-file form; TTL and class may be left out. Raises ValueError when it is none."""
    try:
        found = dns.zonefile.read_rrsets(text, rdclass=None, default_ttl=PREDEFINED_TTL)
    except (dns.exception.DNSException, ValueError) as error:
        raise ValueError(f"{text!r} is not a resource record such as `name. IN A 192.0.2.1`: {error}") from error
    if not found:
        raise ValueError(f"{text!r} is not a resource record such as `name. IN A 192.0.2.1`")
    return found


def subnet_option(text: str) -> bytes:
    """Return the data of a client-subnet option (RFC 7871) for a prefix or an address. Raises ValueError."""
    address, slash, length = text.partition("/")
    try:
        option = dns.edns.ECSOption(address, int(length)) if slash else dns.edns.ECSOption(address)
    except (ValueError, dns.exception.DNSException) as error:
        raise ValueError(f"{text!r} is neither an address nor a prefix such as 192.0.2.0/24") from error
    wire = option.to_wire()
    assert wire is not None, "without a file it returns the data"
    return wire


def addresses_in(data: bytes, reply: Reply) -> list[bytes]:
    """Return the packed addresses among the answers."""
    return [
        data[record.data_at : record.end]
        for record in reply.records
        if record.section == _ANSWER and _SIZES.get(record.rtype) == record.end - record.data_at
    ]


def without_edns(data: bytes) -> bytes:
    """Return a message without its EDNS record. Raises BadReply."""
    message = _parse(data)
    message.use_edns(False)
    return _render(message)


def filter_bindings(data: bytes, *, h3: bool, ipv4_hints: bool, ipv6_hints: bool) -> bytes:
    """Return a message with HTTPS and SVCB records (RFC 9460) that offer no more than what is True. Raises BadReply.

    A record whose only protocol is HTTP/3 goes; without it browsers begin with TCP, instead of trying QUIC for seconds.
    """
    message = _parse(data)
    removed = {ParamKey.IPV4HINT} if not ipv4_hints else set()
    removed |= {ParamKey.IPV6HINT} if not ipv6_hints else set()
    for section in (message.answer, message.additional):
        for rrset in tuple(section):
            if rrset.rdtype not in (HTTPS, SVCB):
                continue
            kept = [changed for rdata in rrset if (changed := _filtered(rdata, removed, h3=h3)) is not None]
            if kept:
                place = section.index(rrset)
                section[place] = dns.rrset.from_rdata_list(rrset.name, rrset.ttl, kept)
            else:
                section.remove(rrset)
    return _render(message)


def _filtered(rdata: dns.rdata.Rdata, removed: set[ParamKey], *, h3: bool) -> dns.rdata.Rdata | None:
    if not isinstance(rdata, SVCBBase):  # of another class than IN: unknown to all
        return rdata
    params: dict[ParamKey, Param | None] = {key: value for key, value in rdata.params.items() if key not in removed}
    alpn = params.get(ParamKey.ALPN)
    if not h3 and isinstance(alpn, ALPNParam):
        ids = [name for name in alpn.ids if name != b"h3" and not name.startswith(b"h3-")]
        if ids:
            params[ParamKey.ALPN] = ALPNParam(ids)
        elif ParamKey.NO_DEFAULT_ALPN in params:
            return None
        else:
            del params[ParamKey.ALPN]  # what is left is the default, HTTP/1.1 over TLS
    mandatory = params.get(ParamKey.MANDATORY)
    if isinstance(mandatory, MandatoryParam):
        keys = [key for key in mandatory.keys if key in params]
        if keys:
            params[ParamKey.MANDATORY] = MandatoryParam(keys)
        else:
            del params[ParamKey.MANDATORY]
    return rdata.replace(params=params)


def _parse(data: bytes) -> dns.message.Message:
    try:
        return dns.message.from_wire(data, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError) as error:
        raise BadReply(f"not a DNS message: {error}") from error


def _render(message: dns.message.Message) -> bytes:
    try:
        return message.to_wire(max_size=65535)
    except dns.exception.DNSException as error:
        raise BadReply(f"too long without compression: {error}") from error


def describe(query: Query) -> str:
    """The question for the log: `example.com AAAA`."""
    return f"{name_text(query.name)} {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(query.qtype))}"
