"""Names that the worker itself looks up: of direct flows, of `resolve` rules, of outbounds' servers."""

import asyncio

from shared.config import Strategy
from workers.dns.answers import AAAA, IN, A, addresses_in
from workers.dns.service import STREAM_LIMIT, DnsService, Question
from workers.dns.wire import HEADER, RCODE, RD, parse_query, parse_reply, wire_name

__all__ = ["LookupFailed", "look_up"]

_FAMILIES: dict[Strategy | None, tuple[int, ...]] = {
    None: (A, AAAA),
    "prefer_ipv4": (A, AAAA),
    "prefer_ipv6": (AAAA, A),
    "ipv4_only": (A,),
    "ipv6_only": (AAAA,),
}
"""Types asked for, whose addresses come first."""
_RCODES = {0: "it has none", 2: "no server answered", 3: "it does not exist", 5: "the server refused"}


class LookupFailed(Exception):
    """A name has no address for us; the text says why."""


async def look_up(
    service: DnsService,
    name: str,
    *,
    server: str | None = None,
    outbound: str | None = None,
    strategy: Strategy | None = None,
    disable_cache: bool = False,
    rewrite_ttl: int | None = None,
) -> tuple[bytes, ...]:
    """Return the packed addresses of a name, in the order in which to try them. Raises LookupFailed.

    `server`: tag of the server to be asked, else the DNS rules choose. `outbound`: it is the name of this outbound's server.
    """
    overrides: dict[str, object] = {}
    if disable_cache:
        overrides["disable_cache"] = True
    if rewrite_ttl is not None:
        overrides["rewrite_ttl"] = rewrite_ttl
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[bytes]] = []
    try:
        encoded = wire_name(name)
    except ValueError as error:
        raise LookupFailed(f"the address of {name} is not to be had: {error}") from error
    for qtype in _FAMILIES[strategy]:
        answer: asyncio.Future[bytes] = loop.create_future()
        answers.append(answer)
        query = parse_query(HEADER.pack(0, RD, 1, 0, 0, 0) + encoded + bytes((0, qtype, 0, IN)))
        assert query is not None, "it is a query"

        def respond(data: bytes, answer: asyncio.Future[bytes] = answer) -> None:
            if not answer.done():
                answer.set_result(data)

        service.decide(Question(query, None, respond, STREAM_LIMIT, server, outbound, overrides))
    found: list[bytes] = []
    reason = _RCODES[0]
    for data in await asyncio.gather(*answers):
        found += addresses_in(data, parse_reply(data))
        reason = _RCODES.get(data[3] & RCODE, "the server failed") if data[3] & RCODE else reason
    if not found:
        raise LookupFailed(f"the address of {name} is not to be had: {reason}")
    return tuple(found)
