"""The DNS service: servers, and the rules that choose among them. Names and meaning are sing-box's."""

from typing import Literal

import msgspec

from shared.config.route import Logical, Match, Strategy

__all__ = ["DnsConfig", "DnsRule", "DnsServer"]


class DnsServer(msgspec.Struct, frozen=True, kw_only=True):
    """One server that questions can be given to."""

    tag: str
    kind: Literal["udp", "tcp", "tls", "https", "local", "hosts", "fakeip", "rcode", "addressee"]
    """`addressee`: the server that the program itself has asked, through `detour`; a server on a private network, which no
    proxy reaches, is replaced by `server`."""
    server: str = ""
    """Address or name."""
    others: tuple[str, ...] = ()
    """Kind addressee: addresses that are asked when `server` does not answer."""
    port: int = 53
    addresses: tuple[str, ...] = ()
    """Of a `server` that is a name, resolved by the master; empty for an address."""
    server_name: str | None = None
    """TLS name to verify, where it is not `server`."""
    insecure: bool = False
    """The certificate is not verified."""
    certificate: str | None = None
    """PEM of the authority to trust instead of the system's."""
    path: str = "/dns-query"
    detour: str | None = None
    """Tag of an outbound; None: directly."""
    strategy: Strategy | None = None
    client_subnet: str | None = None
    hosts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Kind hosts: name and its addresses."""
    rcode: str = "NOERROR"
    inet4_range: str | None = None
    inet6_range: str | None = None
    """Kind fakeip: where the addresses are taken from."""


class DnsRule(msgspec.Struct, frozen=True, kw_only=True):
    """The first rule that matches a question decides."""

    match: Match | Logical
    action: Literal["route", "route-options", "reject", "predefined"] = "route"
    server: str | None = None
    """Action route: tag of a server."""
    rcode: str = "NOERROR"
    """Actions reject (REFUSED by default) and predefined."""
    answer: tuple[str, ...] = ()
    """Action predefined: resource records in zone-file form."""
    drop: bool = False
    """Action reject: silence."""
    strategy: Strategy | None = None
    disable_cache: bool = False
    rewrite_ttl: int | None = None
    client_subnet: str | None = None
    origin: str = ""


class DnsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The DNS service of a worker."""

    servers: tuple[DnsServer, ...] = ()
    rules: tuple[DnsRule, ...] = ()
    final: str | None = None
    """Tag of a server; None: the first one."""
    strategy: Strategy | None = None
    disable_cache: bool = False
    disable_expire: bool = False
    """Answers are kept whatever their TTL says."""
    cache_capacity: int = 4096
    """Answers a worker keeps."""
    serve_stale: float = 0.0
    """Seconds after its end that an answer is still given while a fresh one is fetched (RFC 8767)."""
    reverse_mapping: bool = False
    """Remember which name an answered address belongs to, for rules about flows to that address."""
    client_subnet: str | None = None
    timeout: float = 10.0
    """Seconds for a server to answer."""
