"""Answers the workers' questions whose a flow is: for rules about processes and users, and for the loop guard."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from enum import IntEnum
from ipaddress import ip_address

import msgspec

from engine.loop_guard import is_local_address
from engine.loop_guard.guard import Bypassing, LoopGuard
from engine.loop_guard.proxies import Endpoint
from engine.processes import ProcessError, ProcessTable, open_process_table
from engine.processes.finder import ProcessFinder
from shared.config import Logical, Match, Policy, ProxyOutbound
from shared.control import FindProcess, LoopSuspected, ProcessFound
from shared.metrics import Counters
from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["FlowOwners", "Need", "local_upstreams", "need_of", "open_owners"]

log = logging.getLogger(__name__)


TELL_INTERVAL = 60.0  # seconds between two lines about circles


class Need(IntEnum):
    """What the rules of a policy ask for at most."""

    NOTHING = 0
    USER = 1
    """The owner of the socket, which the kernel tells at once."""
    PROCESS = 2
    """Who holds the socket, which takes a walk through /proc."""


def need_of(policy: Policy) -> Need:
    """Return what the route rules ask for."""
    return max((_need(condition) for condition in _conditions(policy)), default=Need.NOTHING)


def _conditions(policy: Policy) -> Iterator[Match | Logical]:
    yield from (rule.match for rule in policy.route.rules)
    for rule_set in policy.route.rule_sets:
        yield from rule_set.rules


def _need(condition: Match | Logical) -> Need:
    if isinstance(condition, Logical):
        return max(map(_need, condition.rules), default=Need.NOTHING)
    if condition.process_name or condition.process_path or condition.process_path_regex:
        return Need.PROCESS
    return Need.USER if condition.user or condition.user_id else Need.NOTHING


def local_upstreams(policy: Policy) -> list[Endpoint]:
    """Return address and port of the proxies that run on this machine."""
    proxies = (outbound.proxy for outbound in policy.outbounds if isinstance(outbound, ProxyOutbound))
    named = {(address.partition("%")[0], proxy.port) for proxy in proxies for address in proxy.addresses}
    return [(ip_address(address).packed, port) for address, port in sorted(named) if is_local_address(address)]


def _describe_loop(ends: Ends, process: ProcessInfo) -> str:
    """Name a circle and the rule that opens it."""
    source, destination = ip_address(ends.source), ip_address(ends.destination)
    where = f"{f'[{destination}]' if destination.version == 6 else destination}:{ends.destination_port}"
    rule: dict[str, str | int]
    if process.path:
        who, rule = f"{process.name} (pid {process.pid})", {"process_path": process.path}
    elif process.uid is not None:
        who, rule = f"a program of user {process.user or process.uid}", {"user_id": process.uid}
    else:
        who, rule = f"{source}", {"source_ip_cidr": f"{source}/{source.max_prefixlen}"}
    text = msgspec.json.encode(rule | {"outbound": "direct"}).decode()
    return (
        f"a circle was cut: what {who} sends to {where} goes to the proxy, and comes back from it; if that is the proxy itself, "
        f"let it out by the route rule {text}"
    )


def _fake_ranges(policy: Policy) -> list[str]:
    ranges = (text for server in policy.dns.servers for text in (server.inet4_range, server.inet6_range))
    return [text for text in ranges if text is not None]


Send = Callable[[int, ProcessFound], bool]
"""Gives a worker a message, and tells whether it could."""


def open_owners(counters: Counters, network: Bypassing, sockets: Sequence[int] = ()) -> "FlowOwners":
    """Open the process table of this network namespace, or of that which `sockets` are of, as far as there is one."""
    try:
        table: ProcessTable | None = open_process_table(sockets)
    except ProcessError as error:
        log.info("%s", error)
        table = None
    return FlowOwners(table, counters, network)


class FlowOwners:
    """`table` None: nothing can be found out on this machine, and every answer is empty. Takes over the table."""

    def __init__(self, table: ProcessTable | None, counters: Counters, network: Bypassing) -> None:
        self._finder = ProcessFinder(table, counters) if table is not None else None
        self._guard = LoopGuard(self._finder, network) if self._finder is not None else None
        self._need = Need.NOTHING
        self._guards = False
        self._tell_again_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # no more than workers may have questions under way

    def load(self, policy: Policy, *, guards: bool) -> Policy:
        """Answer what `policy` needs from now on; return it as workers are to get it.

        `guards`: what its proxies on this machine send may come out of the tun.
        """
        self._need = need_of(policy)
        upstreams = local_upstreams(policy) if guards else []
        self._guards = bool(upstreams) and self._guard is not None
        if self._guard is None and (upstreams or self._need):
            log.warning(
                "programs cannot be told by their flows here: a proxy on this machine must be let out by a rule"
            )
        if self._guard is not None and upstreams:
            self._guard.start(upstreams, fake_ranges=_fake_ranges(policy))
        return msgspec.structs.replace(policy, loop_guard=self._guards)

    @property
    def guards(self) -> bool:
        """Whether a proxy of the policy in force runs on this machine."""
        return self._guards

    async def close(self) -> None:
        """Answer no more."""
        for task in self._tasks:
            task.cancel()
        if self._guard is not None:
            await self._guard.close()
        if self._finder is not None:
            self._finder.close()

    def answer(self, worker: int, question: FindProcess, send: Send) -> None:
        """A worker has asked."""
        self._start(self._answer(worker, question, send))

    def suspect(self, suspicion: LoopSuspected) -> None:
        """A worker has noticed flows that seem to lead in a circle."""
        self._start(self._look_into(suspicion))

    async def _look_into(self, suspicion: LoopSuspected) -> None:
        ends = Ends(*(getattr(suspicion, field) for field in Ends._fields))
        if self._guards and self._guard is not None and await self._guard.follow(ends):
            return
        now = self._loop.time()
        if not suspicion.is_cut or now < self._tell_again_at:
            return
        self._tell_again_at = now + TELL_INTERVAL
        process = await self._finder.find(ends) if self._finder is not None else ProcessInfo()
        log.error("%s", _describe_loop(ends, process))

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, worker: int, question: FindProcess, send: Send) -> None:
        process, is_own, lasts = ProcessInfo(), False, False
        ends = Ends(*(getattr(question, field) for field in Ends._fields))
        try:
            if self._guards and self._guard is not None and not question.for_view:
                proxy, lasts = await self._guard.own_proxy(ends)
                process, is_own = proxy or process, proxy is not None
            need = Need.PROCESS if question.for_view else self._need
            if self._finder is not None and need and (not is_own or question.for_view):
                process = await self._finder.find(ends, user_only=need is Need.USER)
        except ProcessError as error:
            log.warning("%s", error)
        send(worker, ProcessFound(question.id, process, is_own, lasts))
