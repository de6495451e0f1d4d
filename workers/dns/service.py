"""The DNS service: what becomes of a query.

    ask        1 parsed; in the cache and fresh: answered here and now
               2 stale: answered, and asked anew beside (RFC 8767)
    decide     3 which server, by the rules
    _follow    4 what needs no server: a rule's own answer, `strategy`, servers that know
    _wait      5 somebody waits for the same answer: wait with them
    _fetch     6 a task: the server's answer is kept, and given to all who wait
    lookup.py    the worker's own questions, which come in at 3

A failure is an answer too (SERVFAIL), kept for a second. Bounds: FETCHES_MAX questions under way, WAITERS_MAX for one of them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple

from shared.config import DnsConfig
from shared.metrics import Cell, Counters, Histogram, observe
from shared.process import ProcessInfo
from shared.rules.flow import Ends, Flow
from shared.rules.matcher import NeedProcess
from workers.dns import KnowingServer, Respond, Server, ServerFailed
from workers.dns.answers import AAAA, IN, A, describe, predefined_reply, rcode_reply
from workers.dns.cache import FAILURE_TTL, Answer, Cache
from workers.dns.exchange import exchange
from workers.dns.rules import Choice, Chooser, Verdict, flow_of
from workers.dns.servers.addressee import AddresseeServers, scope_of
from workers.dns.servers.legs import LegPath
from workers.dns.wire import BadQuery, BadReply, Query, check_name, parse_query, parse_reply

__all__ = ["DnsService", "Question", "Servers"]

log = logging.getLogger(__name__)

FETCHES_MAX = 1024
"""Questions of a worker under way; one more is answered SERVFAIL at once (DNS_REFUSED)."""
WAITERS_MAX = 256
"""Programs that wait for one answer; one more gets none, and will ask again (DNS_REFUSED)."""
RECHECK_AFTER = 30.0
"""Seconds before the refresh of a stale answer is tried again (RFC 8767 section 5)."""
SCOPES_MAX = 4096
"""Addresses whose scope is remembered; then they are found out anew."""
READY_MAX, READY_SIZE_MAX = 4096, 1500
"""Answers, and bytes of one, that are kept ready beside the cache for the very same message; then all are forgotten."""
READY_FOR = 1.0
"""Seconds after which they are all forgotten: none is good for longer."""
STREAM_LIMIT = 65535
"""Bytes of an answer over TCP."""

SERVFAIL, NOTIMP, REFUSED = 2, 4, 5
# Plain integers: an attribute of an Enum and its conversion cost more than the rest of the count.
_QUERIES, _CACHE_HITS = int(Cell.DNS_QUERIES), int(Cell.DNS_CACHE_HITS)
_TRANSFERS = (251, 252)  # IXFR, AXFR: any number of messages, between name servers
_UNWANTED = {"ipv4_only": AAAA, "ipv6_only": A}


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a configuration, by tag; each tag is in one of the three."""

    asking: dict[str, Server]
    knowing: dict[str, KnowingServer]
    addressees: dict[str, AddresseeServers]
    paths: tuple[LegPath, ...] = ()
    """What they share."""

    def close(self) -> None:
        """Close all connections and legs."""
        for server in self.asking.values():
            server.close()
        for addressees in self.addressees.values():
            addressees.close()
        for path in self.paths:
            path.close()


class Question(NamedTuple):
    """One query and how its answer is given. `respond` None: nobody waits, the cache is to be refreshed."""

    query: Query
    asker: Ends | None
    """None: the worker itself."""
    respond: Respond | None
    limit: int
    """Bytes of the longest answer."""
    server: str | None = None
    """Tag of the server to be asked, whatever the rules say."""
    outbound: str | None = None
    """The question is about the server of this outbound."""
    overrides: Mapping[str, Any] = MappingProxyType({})
    """Fields of the Choice that are as said here, whatever the rules say."""


class DnsService:
    """The service of one configuration.

    `find_owner` says which program a flow belongs to. `on_addresses`, when it is given, is told each name that a program
    gets addresses of (on the wire, lower case), with these.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: DnsConfig,
        chooser: Chooser,
        servers: Servers,
        counters: Counters,
        *,
        find_owner: Callable[[Ends], Awaitable[ProcessInfo]] | None = None,
        on_addresses: Callable[[bytes, tuple[bytes, ...]], None] | None = None,
    ) -> None:
        self._loop = loop
        self._config = config
        self._chooser = chooser
        self._by_question = chooser.by_question
        self._servers = servers
        self._counters = counters
        self._find_owner = find_owner
        self._on_addresses = on_addresses
        self._offers_h3 = True
        self._cache = Cache(config.cache_capacity, serve_stale=config.serve_stale)
        self._fetches: dict[bytes, list[Question]] = {}  # those who wait, by key
        self._tasks: set[asyncio.Task[None]] = set()
        self._scopes: dict[bytes, bytes] = {}  # of the addresses that programs ask
        # Answers without identifier, and until when they stay as they are, by address asked and message without identifier.
        self._ready: dict[tuple[bytes, bytes], tuple[float, bytes]] = {}
        self._ready_until = 0.0

    def close(self) -> None:
        """Give up what is under way, without answers, and close all servers."""
        for task in self._tasks:
            task.cancel()
        self._counters[Cell.DNS_WAITING] -= len(self._fetches)
        self._fetches.clear()
        self._servers.close()

    def forget(self) -> None:
        """Forget all answers."""
        self._cache.clear()
        self._ready.clear()

    def set_h3(self, offered: bool) -> None:
        """Say whether QUIC is carried; if not, HTTPS records are not to offer it, and those in the cache are forgotten."""
        if offered is not self._offers_h3:
            self._offers_h3 = offered
            self._cache.clear()
            self._ready.clear()

    # a query, as far as the cache

    def answer_at_once(self, data: bytes, destination: bytes, now: float) -> bytes | None:
        """Return the answer to a message over UDP when it is in the cache; None: it is to be given to `ask`.

        `destination`: packed address that the program asks. The same message again, but for its identifier, is not even
        parsed until the answer has aged by a second.
        """
        ready = self._ready.get((destination, data[2:]))
        if ready is None or now >= ready[0]:
            return self._find_at_once(data, destination, now)
        counters = self._counters
        counters[_QUERIES] += 1
        counters[_CACHE_HITS] += 1
        return data[:2] + ready[1]

    def _find_at_once(self, data: bytes, destination: bytes, now: float) -> bytes | None:
        if not self._by_question:
            return None
        try:
            query = parse_query(data)
        except BadQuery:
            return None
        if query is None:
            return None
        answer = self._cache.get(self._scope(destination) + query.key, now)
        if answer is None or now >= answer.expires_at:
            return None
        rendered = answer.render(query, now, query.size)
        counters = self._counters
        counters[_QUERIES] += 1
        counters[_CACHE_HITS] += 1
        if rendered[2] & 0x02:
            counters[Cell.DNS_TRUNCATED] += 1
        elif self._on_addresses is not None:
            if answer.addresses:
                self._on_addresses(query.name, answer.addresses)
        elif len(rendered) <= READY_SIZE_MAX:
            if now >= self._ready_until or len(self._ready) >= READY_MAX:
                self._ready.clear()
                self._ready_until = now + READY_FOR
            self._ready[destination, data[2:]] = answer.same_until(now), rendered[2:]
        return rendered

    def ask(self, data: bytes, asker: Ends, respond: Respond) -> None:
        """Answer one message of a program by a call of `respond`, now or later; what is no query gets no answer."""
        counters = self._counters
        try:
            query = parse_query(data)
        except BadQuery as bad:
            counters[Cell.DROP_DNS_MALFORMED] += 1
            respond(bad.reply())
            return
        if query is None:
            counters[Cell.DROP_DNS_MALFORMED] += 1
            return
        counters[Cell.DNS_QUERIES] += 1
        question = Question(query, asker, respond, query.size if asker.network == "udp" else STREAM_LIMIT)
        if not self._by_question or not self._answer_kept(self._scope(asker.destination) + query.key, question):
            self.decide(question)

    def _scope(self, address: bytes) -> bytes:
        """What the answers for those who ask this address are kept under: servers that programs ask are not mixed."""
        if not self._servers.addressees:
            return b"\0"
        scope = self._scopes.get(address)
        if scope is None:
            if len(self._scopes) >= SCOPES_MAX:
                self._scopes.clear()
            scope = self._scopes[address] = scope_of(address)
        return scope

    def _answer_kept(self, key: bytes, question: Question) -> bool:
        """Answer out of the cache. False: it does not have the answer."""
        now = monotonic()
        answer = self._cache.get(key, now)
        if answer is None:
            return False
        if now < answer.expires_at:
            self._counters[Cell.DNS_CACHE_HITS] += 1
            self._give(answer, question, now)
            return True
        self._counters[Cell.DNS_STALE_HITS] += 1
        self._give(answer, question, now)
        if now >= answer.recheck_at:
            answer.recheck_at = now + RECHECK_AFTER
            self.decide(question._replace(respond=None))
        return True

    def _give(self, answer: Answer, question: Question, now: float) -> None:
        if question.respond is None:
            return
        query = question.query
        data = answer.render(query, now, question.limit)
        if len(data) > question.limit or data[2] & 0x02:
            self._counters[Cell.DNS_TRUNCATED] += 1
        if self._on_addresses is not None and answer.addresses and question.asker is not None:
            self._on_addresses(query.name, answer.addresses)
        question.respond(data)

    # by whom it is answered

    def decide(self, question: Question) -> None:
        """Answer a question by the rules; the worker's own come in here."""
        query = question.query
        try:
            check_name(query)
        except BadQuery as bad:
            self._counters[Cell.DROP_DNS_MALFORMED] += 1
            if question.respond is not None:
                question.respond(bad.reply())
            return
        if query.qtype in _TRANSFERS:
            self._give_reply(rcode_reply(query, NOTIMP), question)
            return
        if question.server is not None:
            self._follow(self._chooser.server(question.server), question)
            return
        flow = flow_of(query, question.asker, question.outbound)
        if self._chooser.needs_process and self._find_owner is not None and question.asker is not None:
            self._start(self._decide_with_owner(flow, question))
            return
        flow.process = ProcessInfo()
        self._choose(flow, question)

    async def _decide_with_owner(self, flow: Flow, question: Question) -> None:
        assert self._find_owner is not None and question.asker is not None
        flow.process = await self._find_owner(question.asker)
        self._choose(flow, question)

    def _choose(self, flow: Flow, question: Question) -> None:
        choice = self._chooser.choose(flow, real=question.asker is None)
        assert not isinstance(choice, NeedProcess), "the process has been filled in"
        self._follow(choice, question)

    def _follow(self, choice: Choice | Verdict, question: Question) -> None:
        query = question.query
        if isinstance(choice, Verdict):
            if choice.drop:
                self._counters[Cell.DROP_DNS_RULE] += 1
            elif choice.records:
                self._give_reply(predefined_reply(query, choice.rcode, choice.records), question)
            else:
                self._give_reply(rcode_reply(query, choice.rcode), question)
            return
        if question.overrides:
            choice = replace(choice, **question.overrides)
        if query.qclass == IN and _UNWANTED.get(choice.strategy or "") == query.qtype:
            self._give_reply(rcode_reply(query, 0), question)
            return
        knowing = self._servers.knowing.get(choice.server)
        if knowing is not None:
            self._give_reply(knowing.answer(query), question)
            return
        self._ask_server(choice, question)

    def _give_reply(self, data: bytes, question: Question) -> None:
        """Answer with a message that is made for this question, and not kept."""
        now = monotonic()
        answer = Answer(data, parse_reply(data), question.query, now)
        self._give(answer, question, now)

    def _ask_server(self, choice: Choice, question: Question) -> None:
        asker = question.asker
        address = b"" if asker is None else asker.destination
        scope = self._scope(address)
        addressees = self._servers.addressees.get(choice.server)
        server = addressees.find(address) if addressees is not None else self._servers.asking[choice.server]
        if not self._by_question or asker is None:
            # The question alone does not tell the server.
            scope = b"\xff" + choice.server.encode() + b"\0" + scope
            key = scope + question.query.key
            if question.respond is not None and not choice.disable_cache and self._answer_kept(key, question):
                return
        else:
            key = scope + question.query.key
        self._wait(key, choice, server, question)

    # servers

    def _wait(self, key: bytes, choice: Choice, server: Server, question: Question) -> None:
        waiting = self._fetches.get(key)
        if waiting is not None:
            if len(waiting) >= WAITERS_MAX:
                self._counters[Cell.DROP_DNS_LIMIT] += 1
            else:
                self._counters[Cell.DNS_JOINED] += 1
                waiting.append(question)
            return
        if len(self._fetches) >= FETCHES_MAX:
            self._counters[Cell.DROP_DNS_LIMIT] += 1
            self._give_reply(rcode_reply(question.query, SERVFAIL), question)
            return
        self._fetches[key] = [question]
        self._counters[Cell.DNS_WAITING] += 1
        self._start(self._fetch(key, choice, server, question.query))

    async def _fetch(self, key: bytes, choice: Choice, server: Server, query: Query) -> None:
        started = monotonic()
        answer = await self._ask_in_time(choice, server, query)
        waiting = self._fetches.pop(key)
        self._counters[Cell.DNS_WAITING] -= 1
        now = monotonic()
        observe(self._counters, Histogram.DNS, now - started)
        if answer.rcode in (SERVFAIL, REFUSED):
            self._counters[Cell.DNS_FAILED] += 1
            answer = self._cache.get(key, now) or answer  # a stale answer is better than none (RFC 8767 section 4)
        if not choice.disable_cache:
            self._cache.put(key, answer)
        for question in waiting:
            self._give(answer, question, now)

    async def _ask_in_time(self, choice: Choice, server: Server, query: Query) -> Answer:
        """Return the server's answer, or SERVFAIL."""
        self._counters[Cell.DNS_UPSTREAM] += 1
        try:
            async with asyncio.timeout(self._config.timeout):
                return await exchange(
                    server, query, choice, offers_h3=self._offers_h3, expires=not self._config.disable_expire
                )
        except TimeoutError:
            log.debug("%s: server %s gave no answer in %g s", describe(query), choice.server, self._config.timeout)
        except (ServerFailed, BadReply) as error:
            log.debug("%s: server %s: %s", describe(query), choice.server, error)
        except Exception:
            self._counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("%s: server %s", describe(query), choice.server)
        data = rcode_reply(query, SERVFAIL)
        answer = Answer(data, parse_reply(data), query, monotonic())
        answer.set_lifetime(FAILURE_TTL)
        return answer

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
