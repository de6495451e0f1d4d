"""Messages for tests of the DNS service, made and read by dnspython: an implementation that is not ours."""

from collections.abc import Sequence

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from workers.dns.wire import Query, parse_query

__all__ = ["ask", "query", "read", "reply", "texts"]


def ask(name: str = "example.com", qtype: str = "A", *, ident: int = 0x1234, rd: bool = True, **edns: object) -> bytes:
    """A query as a resolver sends it; `edns`: arguments of Message.use_edns, none for a query without."""
    message = dns.message.make_query(name, qtype, id=ident, flags=dns.flags.RD if rd else 0)
    if edns:
        message.use_edns(**{"edns": 0, **edns})  # type: ignore[arg-type]
    return message.to_wire()


def query(name: str = "example.com", qtype: str = "A", **options: object) -> Query:
    """The same, parsed by us."""
    parsed = parse_query(ask(name, qtype, **options))  # type: ignore[arg-type]
    assert parsed is not None
    return parsed


def reply(
    question: bytes,
    *answers: str,
    authority: Sequence[str] = (),
    rcode: str = "NOERROR",
    flags: int = 0,
    edns: int = -1,
) -> bytes:
    """What a server answers to the query `question`; records in zone-file form."""
    message = dns.message.make_response(dns.message.from_wire(question), recursion_available=True)
    message.use_edns(edns)
    message.flags |= flags
    message.set_rcode(dns.rcode.from_text(rcode))
    for section, records in ((message.answer, answers), (message.authority, authority)):
        for record in records:
            name, ttl, rdclass, rdtype, data = record.split(None, 4)
            rrset = dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data)
            known = message.get_rrset(section, rrset.name, rrset.rdclass, rrset.rdtype)
            if known is None:
                section.append(rrset)
            else:
                known.update(rrset)
    return message.to_wire(max_size=65535)


def read(data: bytes) -> dns.message.Message:
    """A message of ours, as another implementation reads it."""
    return dns.message.from_wire(data)


def texts(data: bytes) -> list[str]:
    """The answers of a message in zone-file form, sorted."""
    return sorted(
        f"{rrset.name} {rrset.ttl} {rrset.rdtype.name} {rdata.to_text()}"
        for rrset in read(data).answer
        for rdata in rrset
    )
