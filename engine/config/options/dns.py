"""The DNS section as it stands in the file."""

from typing import Annotated

import msgspec

from engine.config.decode import Options
from engine.config.fields import (
    FLAT,
    Duration,
    Hidden,
    Ignored,
    Listable,
    Port,
    Required,
    Shorthand,
    Strategy,
    Unsupported,
    Variants,
)
from engine.config.names import HostName, IpCidr, OneAddress, Prefix
from engine.config.options.outbound import Resolver
from engine.config.options.rule import DNS_RULE, DnsRuleOptions, LogicalDnsRuleOptions

__all__ = [
    "DNS_SERVER",
    "DnsOptions",
    "DnsServerOptions",
    "FakeipServerOptions",
    "HostsServerOptions",
    "HttpsServerOptions",
    "LocalServerOptions",
    "PlainServerOptions",
    "RcodeServerOptions",
    "TlsOptions",
    "TlsServerOptions",
]


class DnsServerOptions(Options, frozen=True, kw_only=True):
    """What all DNS servers have."""

    type: Annotated[str, Hidden()] = ""
    tag: str = ""
    """Name that rules use."""
    strategy: Strategy | None = None
    """Not in sing-box since 1.14."""
    client_subnet: IpCidr | None = None
    """Not in sing-box since 1.14."""


class _Reached(Options, frozen=True, kw_only=True):
    """How a DNS server is reached."""

    detour: str | None = None
    """Tag of the outbound that leads there; nothing: directly."""
    domain_resolver: Resolver = None
    """Who finds the address of a server that is a name: at the start the system does."""

    bind_interface: Annotated[
        object, Unsupported("bind_interface is not supported for a DNS server: name a direct outbound as detour")
    ] = None
    routing_mark: Annotated[
        object, Unsupported("routing_mark is not supported for a DNS server: name a direct outbound as detour")
    ] = None
    inet4_bind_address: Annotated[object, Unsupported("inet4_bind_address is not supported: delete the key")] = None
    inet6_bind_address: Annotated[object, Unsupported("inet6_bind_address is not supported: delete the key")] = None
    netns: Annotated[object, Unsupported("netns is not supported: delete the key")] = None
    connect_timeout: Annotated[object, Ignored("connect_timeout has no effect here: dns.timeout holds")] = None
    reuse_addr: Annotated[object, Ignored("reuse_addr has no effect")] = None
    tcp_fast_open: Annotated[object, Ignored("tcp_fast_open has no effect")] = None
    tcp_multi_path: Annotated[object, Ignored("tcp_multi_path has no effect")] = None
    udp_fragment: Annotated[object, Ignored("udp_fragment has no effect")] = None
    network_strategy: Annotated[object, Ignored("network_strategy has no effect")] = None
    fallback_delay: Annotated[object, Ignored("fallback_delay has no effect")] = None


class TlsOptions(Options, frozen=True, kw_only=True):
    """TLS to a DNS server."""

    enabled: Annotated[bool, Hidden()] = True
    server_name: str | None = None
    """Name that the certificate must bear; nothing: the server's."""
    insecure: bool = False
    """Take every certificate."""
    certificate: Listable[str] = ()
    """Lines of the PEM certificate of the authority to trust."""
    certificate_path: str | None = None
    """File with it."""

    disable_sni: Annotated[object, Unsupported("disable_sni is not supported: delete the key")] = None
    alpn: Annotated[object, Ignored("alpn has no effect")] = None
    min_version: Annotated[object, Ignored("min_version has no effect: TLS 1.2 or newer is spoken")] = None
    max_version: Annotated[object, Ignored("max_version has no effect")] = None
    cipher_suites: Annotated[object, Ignored("cipher_suites has no effect")] = None
    utls: Annotated[object, Unsupported("utls is not supported: delete the key")] = None
    ech: Annotated[object, Unsupported("ech is not supported: delete the key")] = None
    reality: Annotated[object, Unsupported("reality is not supported: delete the key")] = None
    fragment: Annotated[object, Unsupported("fragment is not supported: delete the key")] = None
    record_fragment: Annotated[object, Unsupported("record_fragment is not supported: delete the key")] = None


_SERVER = Required("write the address or name of the DNS server")


class PlainServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Types udp and tcp."""

    server: Annotated[HostName, _SERVER] = ""
    server_port: Port = 53
    reached: Annotated[_Reached, FLAT] = _Reached()


class TlsServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Type tls: DNS over TLS (RFC 7858)."""

    server: Annotated[HostName, _SERVER] = ""
    server_port: Port = 853
    tls: TlsOptions = TlsOptions()
    reached: Annotated[_Reached, FLAT] = _Reached()


class HttpsServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Type https: DNS over HTTPS (RFC 8484)."""

    server: Annotated[HostName, _SERVER] = ""
    server_port: Port = 443
    path: str = "/dns-query"
    tls: TlsOptions = TlsOptions()
    reached: Annotated[_Reached, FLAT] = _Reached()

    headers: Annotated[object, Unsupported("headers are not supported: delete the key")] = None
    method: Annotated[object, Ignored("method has no effect: POST is used")] = None


class LocalServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Type local: the resolver of this machine."""

    prefer_go: Annotated[object, Ignored("prefer_go has no effect")] = None
    reached: Annotated[_Reached, FLAT] = _Reached()


class HostsServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Type hosts: names and addresses of a file."""

    path: Listable[str] = ()
    """Files as /etc/hosts, which is used when nothing is said."""
    predefined: dict[str, Listable[OneAddress]] = msgspec.field(default_factory=dict)
    """Names and their addresses."""


class FakeipServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Type fakeip: an address of these ranges stands for each name."""

    inet4_range: Prefix | None = None
    inet6_range: Prefix | None = None


class RcodeServerOptions(DnsServerOptions, frozen=True, kw_only=True):
    """Type rcode: always the same answer. Not in sing-box since 1.14; there: a rule with the action predefined."""

    rcode: str = "NOERROR"


class OptimisticOptions(Options, frozen=True, kw_only=True):
    """Answers whose time is up are given while fresh ones are fetched (RFC 8767)."""

    enabled: bool = False
    timeout: Duration = 259200.0
    """For how long after their end."""


_QUIC = 'use {"type": "https"} or {"type": "tls"}: the same server usually offers them'
DNS_SERVER = Variants(
    "type",
    {
        "udp": PlainServerOptions,
        "tcp": PlainServerOptions,
        "tls": TlsServerOptions,
        "https": HttpsServerOptions,
        "local": LocalServerOptions,
        "hosts": HostsServerOptions,
        "fakeip": FakeipServerOptions,
        "rcode": RcodeServerOptions,
    },
    refused={
        "quic": _QUIC,
        "h3": _QUIC,
        "dhcp": 'use {"type": "local"}: the resolver of this machine knows the server that DHCP gave',
        "mdns": "multicast never enters the tun",
        "tailscale": 'name the server by its address: {"type": "udp", "server": "100.100.100.100"}',
        "resolved": 'use {"type": "local"}',
    },
    what="a DNS server",
)


class DnsOptions(Options, frozen=True, kw_only=True):
    """The DNS service, which answers what rules with the action hijack-dns lead to it."""

    servers: "tuple[Annotated[DnsServerOptions, DNS_SERVER], ...]" = ()
    rules: tuple[Annotated[DnsRuleOptions | LogicalDnsRuleOptions, DNS_RULE], ...] = ()
    final: str | None = None
    """Tag of the server for questions that no rule takes; nothing: the first one."""
    strategy: Strategy | None = None
    """Which addresses are asked for. `ipv4_only`: questions for IPv6 addresses get an empty answer."""
    disable_cache: bool = False
    disable_expire: bool = False
    """Answers are kept whatever their TTL says."""
    cache_capacity: int = 4096
    """Answers that each worker keeps; at least 1024."""
    reverse_mapping: bool = False
    """Rules see the name that an address was the answer for."""
    client_subnet: IpCidr | None = None
    """Told to the servers (RFC 7871)."""
    optimistic: Annotated[OptimisticOptions, Shorthand("enabled", bool)] = OptimisticOptions()
    timeout: Duration = 10.0
    """For a server to answer."""

    independent_cache: Annotated[
        object, Ignored("independent_cache has no effect: each server has a cache of its own")
    ] = None
