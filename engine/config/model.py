"""What the engine runs on: the user's file, complete and checked. Everything a worker needs is in `policy` and the limits."""

from typing import Literal

import msgspec

from engine.http import HttpOptions
from shared.config import Policy, StackConfig, UdpConfig

__all__ = ["CacheConfig", "EngineConfig", "LogConfig", "QueueConfig", "TunConfig"]

DEFAULT_ADDRESSES = ("198.18.0.1/30", "fdfe:dcba:9876::1/126")
"""The tun's own: of the benchmarking range (RFC 2544), which no LAN and no container network uses, and a unique local one."""
DEFAULT_HTTP = HttpOptions(addresses=(("127.0.0.1", 9464),), is_named=False)

UidRange = tuple[int, int]
"""First and last user id."""


class TunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The tun device, and which traffic is led into it."""

    tag: str = "tun-in"
    interface_name: str = ""
    """Empty: the kernel's choice, tunN."""
    mtu: int = 65535
    """Bytes of the largest packet."""
    offload: Literal["auto", "uso", "tso", "csum", "none", "no-header"] = "auto"
    addresses: tuple[str, ...] = DEFAULT_ADDRESSES
    """With number of bits. A family without address is not captured."""
    auto_route: bool = True
    strict_route: bool = False
    """A family without address is closed, so that nothing leaves past the tun."""
    route_address: tuple[str, ...] = ()
    """Prefixes that are led into the tun; empty: all."""
    route_exclude_address: tuple[str, ...] = ()
    """Prefixes that are not."""
    include_interface: tuple[str, ...] = ()
    exclude_interface: tuple[str, ...] = ()
    include_uid: tuple[UidRange, ...] = ()
    exclude_uid: tuple[UidRange, ...] = ()
    table: int = 2022
    priority: int = 9000
    """Of the first policy rule."""
    dns_addresses: tuple[str, ...] = ()
    """Addresses in the tun's networks at which the DNS service answers; what the system's resolver is pointed at."""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, and where."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    output: str | None = None
    """File; None: standard error."""
    timestamp: bool = True


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Packets that are on their way from the tun to the workers."""

    packets: int = 1024
    """That may wait for one worker; a power of two."""
    large_packets: int = 512
    """Above 2 KiB, for all workers, 68 KiB of (not yet touched) memory each."""


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept across a restart, beside the mode and what was chosen in selectors."""

    path: str | None = None
    """File; None: cache.db in the run directory."""
    cache_id: str | None = None
    store_fakeip: bool = False


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. Names of servers are not resolved yet."""

    policy: Policy
    tun: TunConfig = TunConfig()
    log: LogConfig = LogConfig()
    queues: QueueConfig = QueueConfig()
    stack: StackConfig = StackConfig(mtu=65535, offload=False)
    """Limits; mtu and offload are set when the tun is open."""
    udp: UdpConfig = UdpConfig()
    workers: int | None = None
    """None: as many as there are cores."""
    drain_timeout: float = 300.0
    """Seconds that flows may go on in workers that others have taken over from."""
    run_dir: str | None = None
    http: HttpOptions | None = DEFAULT_HTTP
    """Metrics and Clash API; None: nothing is served."""
    mode: str = "rule"
    """The mode until the Clash API sets another."""
    cache: CacheConfig | None = None
    kill_switch: bool = False
    files: tuple[str, ...] = ()
    """What was read, the rule-sets included."""
    warnings: tuple[str, ...] = ()
    """Lines for the user, `file:line:column: warning: ...`."""
