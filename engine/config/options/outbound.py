"""Outbounds as they stand in the file: proxies, direct, block, and groups."""

from typing import Annotated, Literal

from engine.config.decode import Options
from engine.config.fields import (
    FLAT,
    Duration,
    Fwmark,
    Hidden,
    Ignored,
    Port,
    Read,
    Required,
    Shorthand,
    Strategy,
    Unsupported,
    Variants,
    integer,
)
from engine.config.names import Credential, HostName, InterfaceName

__all__ = [
    "OUTBOUND",
    "BlockOptions",
    "DialOptions",
    "DirectOptions",
    "DnsOutboundOptions",
    "FallbackOptions",
    "HttpOptions",
    "OutboundOptions",
    "Resolver",
    "ResolverOptions",
    "SelectorOptions",
    "SocksOptions",
    "UrltestOptions",
]


class ResolverOptions(Options, frozen=True, kw_only=True):
    """The DNS server that finds the address of a server."""

    server: Annotated[str, Required("write the tag of a DNS server")] = ""
    """Tag of a DNS server."""
    strategy: Strategy | None = None

    disable_cache: Annotated[object, Ignored("disable_cache has no effect here")] = None
    rewrite_ttl: Annotated[object, Ignored("rewrite_ttl has no effect here")] = None
    client_subnet: Annotated[object, Ignored("client_subnet has no effect here")] = None
    timeout: Annotated[object, Ignored("timeout has no effect here")] = None


Resolver = Annotated[ResolverOptions | None, Shorthand("server", str)]
_NETWORKS = "only apps for phones choose networks"


class DialOptions(Options, frozen=True, kw_only=True):
    """How the sockets of an outbound are made."""

    bind_interface: InterfaceName | None = None
    """Interface that the sockets are bound to. One that is not here is waited for; a name of macOS (en0) is passed over."""
    routing_mark: Fwmark | None = None
    """Mark of the sockets (SO_MARK): a number, or a string as in "0xff"."""
    connect_timeout: Duration = 10.0
    """For a connection to be made."""
    disable_tcp_keep_alive: bool = False
    """Do not ask the other end of a silent connection whether it is still there."""
    tcp_keep_alive: Duration = 30.0
    """Silence until it is asked. Whole seconds, at most 32767."""
    tcp_keep_alive_interval: Duration = 10.0
    """Time between two such questions; after three without an answer the connection is given up."""
    domain_resolver: Resolver = None
    """DNS server that finds the address of the server; of a direct outbound: of the destinations."""
    domain_strategy: Strategy | None = None
    """Before sing-box 1.12; now: domain_resolver.strategy."""

    detour: Annotated[
        str | None,
        Unsupported("detour is not supported for an outbound: let the local proxy make the chain, and name that proxy"),
    ] = None
    inet4_bind_address: Annotated[object, Unsupported("inet4_bind_address is not supported: use bind_interface")] = None
    inet6_bind_address: Annotated[object, Unsupported("inet6_bind_address is not supported: use bind_interface")] = None
    netns: Annotated[object, Unsupported("netns is not supported here: use `engine start --netns NAME`")] = None
    reuse_addr: Annotated[object, Ignored("reuse_addr has no effect")] = None
    bind_address_no_port: Annotated[object, Ignored("bind_address_no_port has no effect")] = None
    tcp_fast_open: Annotated[object, Ignored("tcp_fast_open has no effect")] = None
    tcp_multi_path: Annotated[object, Ignored("tcp_multi_path has no effect")] = None
    udp_fragment: Annotated[object, Ignored("udp_fragment has no effect: datagrams of every size are carried")] = None
    network_strategy: Annotated[object, Ignored(f"network_strategy has no effect: {_NETWORKS}")] = None
    network_type: Annotated[object, Ignored(f"network_type has no effect: {_NETWORKS}")] = None
    fallback_network_type: Annotated[object, Ignored(f"fallback_network_type has no effect: {_NETWORKS}")] = None
    fallback_delay: Annotated[object, Ignored("fallback_delay has no effect: addresses are tried in turn")] = None


_TAG = Required("write a name of your own, which rules use")
_SERVER = Required("write the name or address of the proxy")
_PORT = Required("write the port of the proxy")


def _server_port(value: object) -> int:
    return integer(value, 1, 65535, "a port")


ServerPort = Annotated[int, Read(_server_port, {"type": "integer", "minimum": 1, "maximum": 65535})]


class OutboundOptions(Options, frozen=True, kw_only=True):
    """What all outbounds have."""

    type: Annotated[str, Hidden()] = ""
    tag: str = ""
    """Name that rules and groups use."""


class SocksOptions(OutboundOptions, frozen=True, kw_only=True):
    """A SOCKS proxy."""

    server: Annotated[HostName, _SERVER] = ""
    server_port: Annotated[ServerPort, _PORT] = 0
    version: Literal["5", "4a", "4"] = "5"
    username: Credential | None = None
    password: Credential | None = None
    network: Literal["tcp", "udp"] | None = None
    """Carry only this."""
    dial: Annotated[DialOptions, FLAT] = DialOptions()

    udp_over_tcp: Annotated[
        object, Ignored("udp_over_tcp has no effect: UDP goes by SOCKS5's own UDP ASSOCIATE (RFC 1928)")
    ] = None


class HttpOptions(OutboundOptions, frozen=True, kw_only=True):
    """An HTTP proxy, spoken to by CONNECT; it carries no UDP."""

    server: Annotated[HostName, _SERVER] = ""
    server_port: Annotated[ServerPort, _PORT] = 0
    username: Credential | None = None
    password: Credential | None = None
    dial: Annotated[DialOptions, FLAT] = DialOptions()

    path: Annotated[object, Unsupported("path is not supported for an HTTP proxy: delete the key")] = None
    headers: Annotated[object, Unsupported("headers are not supported for an HTTP proxy: delete the key")] = None
    tls: Annotated[
        object, Unsupported("tls to an HTTP proxy is not supported: put a local proxy such as stunnel in between")
    ] = None


class DirectOptions(OutboundOptions, frozen=True, kw_only=True):
    """Past the proxy."""

    override_address: HostName | None = None
    """Before sing-box 1.11: the destination is replaced. Now: a rule with override_address."""
    override_port: Port | None = None
    dial: Annotated[DialOptions, FLAT] = DialOptions()

    proxy_protocol: Annotated[object, Unsupported("proxy_protocol is not supported: delete the key")] = None


class DnsOutboundOptions(OutboundOptions, frozen=True, kw_only=True):
    """The engine's DNS service, before sing-box 1.11. Now: a rule with the action hijack-dns."""


class BlockOptions(OutboundOptions, frozen=True, kw_only=True):
    """Nowhere. Since sing-box 1.11 a rule with the action reject says the same."""


class SelectorOptions(OutboundOptions, frozen=True, kw_only=True):
    """The member that the user chooses."""

    outbounds: tuple[str, ...] = ()
    """Tags of the members."""
    default: str | None = None
    interrupt_exist_connections: bool = False


class UrltestOptions(OutboundOptions, frozen=True, kw_only=True):
    """The member that fetches a URL fastest."""

    outbounds: tuple[str, ...] = ()
    """Tags of the members."""
    url: str = "https://www.gstatic.com/generate_204"
    interval: Duration = 180.0
    tolerance: int = 50
    """Milliseconds by which another member must be faster."""
    idle_timeout: Duration = 1800.0
    interrupt_exist_connections: bool = False


class FallbackOptions(OutboundOptions, frozen=True, kw_only=True):
    """The first member that works, judged by the flows that fail: nothing is probed. Not in sing-box."""

    outbounds: tuple[str, ...] = ()
    """Tags of the members, in order of preference."""
    failures: int = 1
    """Failures of a member in a row after which it is passed over."""
    retry: Duration = 30.0
    """Time until it is tried again."""


_OTHER_PROTOCOL = (
    "this engine speaks SOCKS and HTTP to proxies. Let the program that has this outbound (sing-box, Xray, mihomo) listen "
    'on this machine, and name that port: {"type": "socks", "server": "127.0.0.1", "server_port": 1080}'
)
OUTBOUND = Variants(
    "type",
    {
        "socks": SocksOptions,
        "http": HttpOptions,
        "direct": DirectOptions,
        "block": BlockOptions,
        "dns": DnsOutboundOptions,
        "selector": SelectorOptions,
        "urltest": UrltestOptions,
        "fallback": FallbackOptions,
    },
    refused={
        "wireguard": "set WireGuard up with `wg-quick`, and use a direct outbound with bind_interface",
        **dict.fromkeys(
            ("shadowsocks", "vmess", "vless", "trojan", "naive", "hysteria", "hysteria2", "tuic", "shadowtls", "anytls",
             "ssh", "tor", "shadowsocksr", "tailscale", "snell", "mieru", "juicity"),
            _OTHER_PROTOCOL,
        ),
    },
    what="an outbound",
)  # fmt: skip
