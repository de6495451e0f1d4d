"""One question to one server: what is sent, and what of the answer is believed, changed, and kept for how long."""

import math
from time import monotonic

from workers.dns import Server
from workers.dns.answers import HTTPS, SVCB, addresses_in, filter_bindings, subnet_option, without_edns
from workers.dns.cache import FAILURE_TTL, Answer
from workers.dns.rules import Choice
from workers.dns.wire import AD, CD, RCODE, RD, BadReply, Query, Reply, build_query, parse_reply

__all__ = ["exchange"]

FORMERR, SERVFAIL, NOTIMP, REFUSED = 1, 2, 4, 5
ANY = 255


async def exchange(server: Server, query: Query, choice: Choice, *, offers_h3: bool, expires: bool) -> Answer:
    """Return the server's answer to `query`. Raises ServerFailed, BadReply.

    `offers_h3`: HTTPS records may offer HTTP/3; `expires` False: it is kept for ever.
    """
    # AD asks whether the data is authentic without all of DNSSEC (RFC 6840 5.7); it is told to whoever asks for it.
    asked = query._replace(flags=query.flags & (RD | CD) | AD)
    subnet = query.subnet or (subnet_option(choice.client_subnet) if choice.client_subnet else b"")
    data = await server.exchange(build_query(asked, subnet=subnet))
    reply = _checked(data, query)
    if reply.flags & RCODE in (FORMERR, NOTIMP) and reply.opt is None:
        data = await server.exchange(build_query(asked, edns=False))  # RFC 6891 7
        reply = _checked(data, query)
    if query.qtype in (HTTPS, SVCB, ANY):
        data = filter_bindings(
            data,
            h3=offers_h3,
            ipv4_hints=choice.strategy != "ipv6_only",
            ipv6_hints=choice.strategy != "ipv4_only",
        )
        reply = parse_reply(data)
    if reply.opt is not None and reply.records and reply.records[-1].start > reply.opt.start:
        data = without_edns(data)
        reply = parse_reply(data)
    answer = Answer(data, reply, query, monotonic())
    answer.addresses = tuple(addresses_in(data, reply))
    if choice.rewrite_ttl is not None:
        answer.set_lifetime(choice.rewrite_ttl)
    elif answer.rcode in (SERVFAIL, REFUSED):
        answer.set_lifetime(FAILURE_TTL)
    elif answer.lifetime and not expires:
        answer.set_lifetime(math.inf)
    return answer


def _checked(data: bytes, query: Query) -> Reply:
    """Take an answer apart that must be one to `query`. Raises BadReply."""
    reply = parse_reply(data)
    if reply.question.lower() == query.question.lower():
        return reply
    if not reply.question and not reply.records and reply.flags & RCODE:
        return reply
    raise BadReply("an answer to another question")
