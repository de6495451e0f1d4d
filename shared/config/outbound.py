"""Where flows leave: proxies, directly, nowhere, and groups that choose among others.

The names are sing-box's (outbound types and fields), but for `proxy`, which stands for its `socks` and `http`.
"""

from typing import Literal

import msgspec

from shared.config.route import Strategy

__all__ = [
    "BlockOutbound",
    "DialConfig",
    "DirectOutbound",
    "FallbackOutbound",
    "OutboundConfig",
    "PassedOver",
    "ProxyConfig",
    "ProxyOutbound",
    "SelectorOutbound",
    "UrltestOutbound",
]


class ProxyConfig(msgspec.Struct, frozen=True):
    """The upstream proxy."""

    kind: Literal["socks5", "socks4", "http"]
    """Protocol; `socks4` speaks 4a when the destination is a name."""
    host: str
    """Name or address as the user wrote it; shown in messages."""
    port: int
    username: str | None = None
    password: str | None = None
    addresses: tuple[str, ...] = ()
    """Addresses of `host`, resolved by the master before the routes were taken; dialled in this order."""

    def __repr__(self) -> str:
        """Without the password: this text may reach a log or a traceback."""
        user = f"{self.username}:***@" if self.username is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{user}{host}:{self.port}"

    __str__ = __repr__


class DialConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the sockets of an outbound are made."""

    bind_interface: str | None = None
    """SO_BINDTODEVICE; None: as the machine's routes say."""
    routing_mark: int | None = None
    """SO_MARK; workers keep CAP_NET_ADMIN when any outbound has one."""
    connect_timeout: float = 10.0
    """Seconds for a connection to be made, and again for a proxy to answer a CONNECT."""
    keep_alive: bool = True
    """Ask the other end of a connection in silence whether it is still there."""
    keep_alive_idle: int = 30
    """Seconds of silence until the first such question,"""
    keep_alive_interval: int = 10
    """and seconds between two."""
    domain_resolver: str | None = None
    """Direct outbounds: tag of the DNS server that finds the addresses of a destination that is a name; None:
    RouteConfig.default_domain_resolver."""
    strategy: Strategy | None = None
    """Direct outbounds: which of those addresses are tried; None: that of the DNS service."""


class ProxyOutbound(msgspec.Struct, frozen=True, kw_only=True, tag="proxy"):
    """Through a SOCKS5, SOCKS4a or HTTP proxy."""

    tag: str
    proxy: ProxyConfig
    network: Literal["tcp", "udp"] | None = None
    """Carries only this; None: both, as far as the proxy can."""
    dial: DialConfig = DialConfig()


class DirectOutbound(msgspec.Struct, frozen=True, kw_only=True, tag="direct"):
    """Past the proxy, from the worker's own sockets, which are exempt from the tun."""

    tag: str
    dial: DialConfig = DialConfig()


class BlockOutbound(msgspec.Struct, frozen=True, kw_only=True, tag="block"):
    """Nowhere: TCP is refused, datagrams are answered with ICMP port unreachable."""

    tag: str


class SelectorOutbound(msgspec.Struct, frozen=True, kw_only=True, tag="selector"):
    """The member that the user has chosen (control socket, Clash API)."""

    tag: str
    outbounds: tuple[str, ...]
    """Tags of the members, at least one."""
    default: str | None = None
    """Chosen at first; None: the first member."""
    interrupt_exist_connections: bool = False
    """A change resets the flows that go through the group."""


class UrltestOutbound(msgspec.Struct, frozen=True, kw_only=True, tag="urltest"):
    """The member that fetches `url` fastest."""

    tag: str
    outbounds: tuple[str, ...]
    url: str = "https://www.gstatic.com/generate_204"
    interval: float = 180.0
    """Seconds between tests."""
    tolerance: float = 0.05
    """Seconds by which another member must be faster to be taken."""
    idle_timeout: float = 1800.0
    """Seconds without a new flow after which no more tests are made."""
    interrupt_exist_connections: bool = False
    default: str | None = None
    """Used until it is tested; None: the first member."""


class FallbackOutbound(msgspec.Struct, frozen=True, kw_only=True, tag="fallback"):
    """The first member that works, judged by the flows that fail: nothing is probed. Not in sing-box."""

    tag: str
    outbounds: tuple[str, ...]
    failures: int = 1
    """Failures of the proxy itself (not of a destination) in a row after which a member is passed over."""
    retry: float = 30.0
    """Seconds until a member that was passed over is tried again."""


class PassedOver(msgspec.Struct, frozen=True, kw_only=True, tag="passed_over"):
    """A fallback group passes a member over, as the flows of one worker have found out."""

    group: str
    member: str
    until: float
    """Monotonic seconds (of one clock for all processes); 0: it works again."""


OutboundConfig = ProxyOutbound | DirectOutbound | BlockOutbound | SelectorOutbound | UrltestOutbound | FallbackOutbound
