"""Names of servers -> addresses, while the machine's own routes and resolver are still in force."""

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import msgspec

from engine.config.model import EngineConfig
from shared.config import DnsServer, OutboundConfig, ProxyOutbound

__all__ = ["ResolveError", "resolve", "upstream_addresses"]

THREADS = 16
"""Names that are looked up at the same time: each may take the resolver's whole time-out."""


class ResolveError(Exception):
    """No proxy of the configuration can be reached by its name; the text is one sentence."""


def resolve(config: EngineConfig, known: Mapping[str, tuple[str, ...]] | None = None) -> tuple[EngineConfig, list[str]]:
    """Return the configuration with the addresses of proxies and DNS servers, and a sentence for each name without any.

    `known`: addresses that names had before, used for those that are not found now.
    Raises ResolveError when there are proxies, and none of them has an address.
    """
    outbounds, servers = config.policy.outbounds, config.policy.dns.servers
    names = {outbound.proxy.host for outbound in outbounds if isinstance(outbound, ProxyOutbound)}
    names |= {server.server for server in servers if server.kind in ("udp", "tcp", "tls", "https")}
    found, troubles = _look_up(names)
    for name in troubles.keys() & (known or {}).keys():
        assert known is not None, "there is something in it"
        found[name] = known[name]
        troubles[name] += f" Until then it keeps {', '.join(known[name])}."
    policy = msgspec.structs.replace(
        config.policy,
        outbounds=tuple(_outbound(outbound, found) for outbound in outbounds),
        dns=msgspec.structs.replace(config.policy.dns, servers=tuple(_server(server, found) for server in servers)),
    )
    proxies = [outbound.proxy for outbound in policy.outbounds if isinstance(outbound, ProxyOutbound)]
    if proxies and not any(proxy.addresses for proxy in proxies):
        raise ResolveError(troubles[proxies[0].host])
    return msgspec.structs.replace(config, policy=policy), list(troubles.values())


def upstream_addresses(config: EngineConfig) -> tuple[str, ...]:
    """Return the addresses of all proxies, which are never led into the tun."""
    proxies = (outbound.proxy for outbound in config.policy.outbounds if isinstance(outbound, ProxyOutbound))
    return tuple(dict.fromkeys(address for proxy in proxies for address in proxy.addresses))


def _look_up(names: set[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    found, troubles = {}, {}
    with ThreadPoolExecutor(THREADS) as pool:
        for name, answer in zip(sorted(names), pool.map(_addresses, sorted(names)), strict=True):
            if isinstance(answer, str):
                troubles[name] = answer
            else:
                found[name] = answer
    return found, troubles


def _addresses(name: str) -> tuple[str, ...] | str:
    """Return the addresses of a name, or the sentence that says why there are none."""
    try:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid name"
        return f"the server {name!r} cannot be resolved ({reason}); is it spelled right?"
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in entries))
    for address in addresses:
        parsed = ip_address(address.partition("%")[0])
        if parsed.is_unspecified or parsed.is_multicast:
            return f"the server {name!r} has the address {address}, which is nobody's; a local one is 127.0.0.1"
    return addresses


def _outbound(outbound: OutboundConfig, found: dict[str, tuple[str, ...]]) -> OutboundConfig:
    if not isinstance(outbound, ProxyOutbound):
        return outbound
    proxy = msgspec.structs.replace(outbound.proxy, addresses=found.get(outbound.proxy.host, ()))
    return msgspec.structs.replace(outbound, proxy=proxy)


def _server(server: DnsServer, found: dict[str, tuple[str, ...]]) -> DnsServer:
    addresses = found.get(server.server, ())
    return msgspec.structs.replace(server, addresses=addresses if addresses != (server.server,) else ())
