"""The proxy of the command line: with a file it takes the place of the default outbound, without one it is all there is."""

import msgspec

from engine.config.build.dns import default_dns
from engine.config.build.route import own_rules
from engine.config.build.tun import dns_addresses
from engine.config.model import EngineConfig, TunConfig
from shared.config import Policy, ProxyConfig, ProxyOutbound, RouteConfig

__all__ = ["for_proxy", "with_proxy"]


def for_proxy(proxy: ProxyConfig) -> EngineConfig:
    """Return the configuration of an engine without a file: everything goes to `proxy`, DNS included."""
    outbound = ProxyOutbound(tag="proxy", proxy=proxy)
    addresses = dns_addresses(None)
    route = RouteConfig(rules=tuple(own_rules(addresses, every_server=True)), final=outbound.tag)
    policy = Policy(outbounds=(outbound,), route=route, dns=default_dns(outbound.tag))
    return EngineConfig(policy=policy, tun=TunConfig(dns_addresses=addresses))


def with_proxy(config: EngineConfig, proxy: ProxyConfig) -> EngineConfig:
    """Return `config` with its default outbound replaced by `proxy` (a ProxyConfig), as the option --proxy says.

    A default outbound that is a proxy keeps its tag, so that rules which name it follow. Another kind (a group, direct)
    stays for the rules that name it, and the proxy becomes what flows take that no rule takes.
    """
    policy = config.policy
    default = policy.route.final
    outbounds = list(policy.outbounds)
    for index, outbound in enumerate(outbounds):
        if outbound.tag == default and isinstance(outbound, ProxyOutbound):
            outbounds[index] = msgspec.structs.replace(outbound, proxy=proxy)
            return msgspec.structs.replace(config, policy=msgspec.structs.replace(policy, outbounds=tuple(outbounds)))
    tag = "proxy"
    while any(outbound.tag == tag for outbound in outbounds):
        tag += "'"
    route = msgspec.structs.replace(policy.route, final=tag)
    # Without a section of its own, DNS goes where flows go that no rule takes.
    servers = tuple(
        msgspec.structs.replace(server, detour=tag) if server.kind == "addressee" else server
        for server in policy.dns.servers
    )
    dns = msgspec.structs.replace(policy.dns, servers=servers)
    outbounds.insert(0, ProxyOutbound(tag=tag, proxy=proxy))
    return msgspec.structs.replace(
        config, policy=msgspec.structs.replace(policy, outbounds=tuple(outbounds), route=route, dns=dns)
    )
