"""DNS of one worker: the service of the policy in force, and what names addresses have.

It provides DnsService of workers/relay/services.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from shared.config import DnsConfig, DnsServer, FakeIpConfig, Policy, Resolve, Strategy
from shared.metrics import Counters
from shared.process import ProcessInfo
from shared.rules.flow import Ends
from shared.rules.matcher import Compiler
from workers.dns import Respond
from workers.dns.lookup import LookupFailed, look_up
from workers.dns.names import KnownNames
from workers.dns.rules import Chooser
from workers.dns.servers.build import build_servers, check_servers
from workers.dns.service import DnsService
from workers.dns.udp_probe import UdpProbe, proxy_behind, server_to_ask
from workers.stack import Refusal
from workers.upstream import DestinationRefused, Outbound, UdpUnsupported, WrongNetwork
from workers.upstream.proxy import ProxyUpstream

__all__ = ["WorkerDns"]

SYSTEM = DnsConfig(servers=(DnsServer(tag="local", kind="local"),))
"""The service of a policy that names no servers: names are what the machine's own resolver says."""


class WorkerDns:
    """`fake_ip`: the ranges of the table of fake addresses. `own`: addresses of the engine's own DNS service, which the
    machine's resolver configuration may name.

    `find_owner`, set by the composition root, says which program a flow belongs to.
    """

    find_owner: Callable[[Ends], Awaitable[ProcessInfo]]

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        names: KnownNames,
        *,
        fake_ip: FakeIpConfig | None,
        own: frozenset[str],
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._names = names
        self._own = own
        self._fake_ip = fake_ip
        self._service: DnsService | None = None
        self._system: DnsService | None = None  # for names that are looked up past all proxies, whatever the policy
        self._loaded: tuple[object, ...] = ()
        self._strategy: Strategy | None = None
        self._final: Outbound | None = None
        self._server_to_ask = server_to_ask(SYSTEM)
        self._probes: dict[ProxyUpstream, UdpProbe] = {}
        self.name_of = names.name_of

    def prepare(
        self, policy: Policy, compiler: Compiler
    ) -> Callable[[Mapping[str, Outbound], Outbound, Outbound], None]:
        """Look through the DNS part of a policy; return what takes it. Raises ValueError."""
        config = policy.dns if policy.dns.servers else SYSTEM
        check_servers(config, self._fake_ip)
        return partial(self._take, policy, config, Chooser(config, policy.route.rule_sets, compiler))

    def _take(
        self,
        policy: Policy,
        config: DnsConfig,
        chooser: Chooser,
        outbounds: Mapping[str, Outbound],
        direct: Outbound,
        final: Outbound,
    ) -> None:
        """`direct`: of servers without detour. `final`: of flows that no rule takes; its UDP decides about HTTP/3."""
        self._load_servers(policy, config, chooser, outbounds, direct)
        self._strategy = config.strategy
        self._final = final
        self._server_to_ask = server_to_ask(config)
        for proxy in [proxy for proxy in self._probes if not any(proxy is kept for kept in outbounds.values())]:
            self._probes.pop(proxy).close()
        self.note_outbounds()

    def _load_servers(
        self,
        policy: Policy,
        config: DnsConfig,
        chooser: Chooser,
        outbounds: Mapping[str, Outbound],
        direct: Outbound,
    ) -> None:
        self._names.remembers = config.reverse_mapping
        loaded = (config, policy.route.rule_sets, {id(outbound) for outbound in outbounds.values()})
        if loaded == self._loaded:
            return  # and the cache stays
        self._loaded = loaded
        if self._system is None:
            self._system = self._new_service(SYSTEM, Chooser(SYSTEM, (), Compiler(())), {}, direct)
        if self._service is not None:
            # Who waits for an answer gets it yet.
            self._loop.call_later(config.timeout, self._service.close)
        self._service = self._new_service(config, chooser, outbounds, direct)

    def _new_service(
        self, config: DnsConfig, chooser: Chooser, outbounds: Mapping[str, Outbound], direct: Outbound
    ) -> DnsService:
        servers = build_servers(
            self._loop, config, outbounds, direct, names=self._names.fake, own=self._own, on_silence=self._doubt
        )
        return DnsService(
            self._loop,
            config,
            chooser,
            servers,
            self._counters,
            find_owner=self.find_owner,
            on_addresses=self._names.remember if config.reverse_mapping else None,
        )

    def close(self) -> None:
        """Give up what is under way and close all connections."""
        for service in self._service, self._system:
            if service is not None:
                service.close()
        for probe in self._probes.values():
            probe.close()

    # UDP

    def note_outbounds(self) -> None:
        """What outbounds carry, or which members groups have chosen, may have changed."""
        final = self._final
        if final is None or self._service is None:
            return
        proxy = proxy_behind(final)
        if proxy is not None and proxy not in self._probes:
            self._probe(proxy)
        refused = final.refuses_udp()
        # A proxy that cannot be reached at all says nothing about UDP.
        self._service.set_h3(final.carries("udp") and not isinstance(refused, UdpUnsupported | WrongNetwork))

    def _probe(self, proxy: ProxyUpstream) -> None:
        self._probes[proxy] = UdpProbe(self._loop, proxy, self._server_to_ask, self.note_outbounds)

    def _doubt(self, outbound: Outbound) -> None:
        """Servers answer through this outbound over TCP, and not over UDP."""
        proxy = proxy_behind(outbound)
        if proxy is None:
            return
        if proxy in self._probes:
            self._probes[proxy].doubt()
        else:
            self._probe(proxy)

    # names

    def ask(self, query: bytes, ends: Ends, respond: Respond) -> None:
        """Answer one message of a program by a call of `respond`, now or later, or never."""
        assert self._service is not None, "a policy is loaded before packets flow"
        self._service.ask(query, ends, respond)

    def answer_at_once(self, query: bytes, destination: bytes, now: float) -> bytes | None:
        """Return the answer to a message over UDP when it is known; None: it is to be given to `ask`."""
        assert self._service is not None, "a policy is loaded before packets flow"
        return self._service.answer_at_once(query, destination, now)

    def forget(self) -> None:
        """Forget all answers."""
        if self._service is not None:
            self._service.forget()

    async def look_up(self, name: str, how: Resolve) -> Sequence[bytes]:
        """Return the packed addresses of `name`, best first; `how` as a rule says. Raises UpstreamError."""
        assert self._service is not None, "a policy is loaded before packets flow"
        try:
            return await look_up(
                self._service,
                name,
                server=how.server,
                strategy=how.strategy or self._strategy,
                disable_cache=how.disable_cache,
                rewrite_ttl=how.rewrite_ttl,
            )
        except LookupFailed as error:
            raise DestinationRefused(str(error), Refusal.HOST_UNREACHABLE) from error

    async def look_up_directly(self, name: str) -> Sequence[bytes]:
        """Return the packed addresses of `name`, as the machine's own resolver says, past all proxies. Raises UpstreamError."""
        assert self._system is not None, "a policy is loaded before anybody asks"
        try:
            return await look_up(self._system, name, disable_cache=True)
        except LookupFailed as error:
            raise DestinationRefused(str(error), Refusal.HOST_UNREACHABLE) from error
