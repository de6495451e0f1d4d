"""Inbounds as they stand in the file: the tun."""

from typing import Annotated, Literal

from engine.config.decode import Options
from engine.config.fields import (
    Duration,
    Hidden,
    Ignored,
    Listable,
    Read,
    Required,
    SecondsOrDuration,
    Strategy,
    Uid,
    UidRange,
    Unsupported,
    Variants,
    integer,
)
from engine.config.names import InterfaceAddress, InterfaceName, OneAddress, Prefix

__all__ = ["INBOUND", "MTU_MAX", "MTU_MIN", "ListenerOptions", "TunOptions"]

MTU_MIN, MTU_MAX = 1280, 65535  # RFC 8200 (5); the largest IP packet


def _number(low: int, high: int, what: str) -> Read:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Read(lambda value: integer(value, low, high, what), schema)


_REDIRECT = "auto_redirect has no effect: this engine routes by policy rules alone"
_NAT = "has no effect: every mapping is endpoint-independent"


class TunOptions(Options, frozen=True, kw_only=True):
    """The tun device and what is led into it."""

    type: Annotated[str, Hidden()] = "tun"
    tag: str = "tun-in"
    """Name that the rule field `inbound` uses."""
    interface_name: InterfaceName | None = None
    """Nothing: the first free tunN."""
    mtu: Annotated[int, _number(MTU_MIN, MTU_MAX, "mtu")] = MTU_MAX
    """Bytes of the largest packet."""
    address: Annotated[
        Listable[InterfaceAddress],
        Required(
            'write "address": ["198.18.0.1/30", "fdfe:dcba:9876::1/126"]; a family without address is not captured'
        ),
    ] = ()
    """The tun's own addresses. A family without one is not captured."""
    auto_route: bool = False
    """Lead the machine's traffic into the tun."""
    strict_route: bool = False
    """A family without address is closed, so that nothing leaves past the tun."""
    route_address: Listable[Prefix] = ()
    """Only these destinations go into the tun; nothing: all."""
    route_exclude_address: Listable[Prefix] = ()
    """These destinations do not."""
    route_address_set: Listable[str] = ()
    """Tags of rule-sets whose addresses are added to route_address, as they are at the start."""
    route_exclude_address_set: Listable[str] = ()
    """Tags of rule-sets whose addresses are added to route_exclude_address, as they are at the start."""
    include_interface: Listable[InterfaceName] = ()
    """Of forwarded packets only those that came in by these interfaces."""
    exclude_interface: Listable[InterfaceName] = ()
    include_uid: Listable[Uid] = ()
    """Only programs of these users."""
    include_uid_range: Listable[UidRange] = ()
    exclude_uid: Listable[Uid] = ()
    """Not programs of these users."""
    exclude_uid_range: Listable[UidRange] = ()
    iproute2_table_index: Annotated[int, _number(1, 2**32 - 1, "a route table")] = 2022
    iproute2_rule_index: Annotated[int, _number(1, 32000, "a priority of rules")] = 9000
    udp_timeout: SecondsOrDuration = 300.0
    """Without a datagram for so long a mapping ends: a duration, or seconds as a number."""
    dns_mode: Literal["disabled", "native", "hijack"] = "hijack"
    """`disabled`: no automatic hijack of questions to the tun's own DNS address. `native` is as `hijack`."""
    dns_address: Listable[OneAddress] = ()
    """DNS addresses of the tun; nothing: the one after each of its own."""

    sniff: bool = False
    """Before sing-box 1.11; now: a rule with the action sniff."""
    sniff_override_destination: bool = False
    """Before sing-box 1.11: the proxy is asked for the name that was found."""
    sniff_timeout: Duration = 0.3
    domain_strategy: Strategy | None = None
    """Before sing-box 1.11; now: a rule with the action resolve."""
    udp_disable_domain_unmapping: bool = False
    """Before sing-box 1.11; now: a rule with the action route-options."""

    stack: Annotated[
        Literal["system", "gvisor", "mixed"] | None, Ignored("stack has no effect: the engine has one stack, its own")
    ] = None
    gso: Annotated[bool | None, Ignored("gso has no effect: offloads are used where the kernel grants them")] = None
    auto_redirect: Annotated[bool | None, Ignored(_REDIRECT)] = None
    auto_redirect_input_mark: Annotated[object, Ignored(_REDIRECT)] = None
    auto_redirect_output_mark: Annotated[object, Ignored(_REDIRECT)] = None
    auto_redirect_reset_mark: Annotated[object, Ignored(_REDIRECT)] = None
    auto_redirect_nfqueue: Annotated[object, Ignored(_REDIRECT)] = None
    auto_redirect_iproute2_fallback_rule_index: Annotated[object, Ignored(_REDIRECT)] = None
    exclude_mptcp: Annotated[object, Ignored("exclude_mptcp has no effect: MPTCP falls back to TCP")] = None
    endpoint_independent_nat: Annotated[object, Ignored(f"endpoint_independent_nat {_NAT}")] = None
    udp_mapping: Annotated[
        Literal["endpoint_independent", "address_dependent", "address_and_port_dependent"] | None,
        Ignored(f"udp_mapping {_NAT}"),
    ] = None
    udp_filtering: Annotated[
        Literal["endpoint_independent", "address_dependent", "address_and_port_dependent"] | None,
        Ignored("udp_filtering has no effect: the proxy filters"),
    ] = None
    udp_nat_max: Annotated[object, Ignored("udp_nat_max has no effect: use engine.udp.max_associations")] = None
    loopback_address: Annotated[object, Unsupported("loopback_address is not supported: delete the key")] = None
    include_android_user: Annotated[
        object, Unsupported("include_android_user is not supported: use include_uid_range")
    ] = None
    include_package: Annotated[object, Unsupported("include_package is not supported: only Android has packages")] = (
        None
    )
    exclude_package: Annotated[object, Unsupported("exclude_package is not supported: only Android has packages")] = (
        None
    )
    include_mac_address: Annotated[
        object, Unsupported("include_mac_address is not supported: use include_interface")
    ] = None
    exclude_mac_address: Annotated[
        object, Unsupported("exclude_mac_address is not supported: use exclude_interface")
    ] = None
    netns: Annotated[object, Unsupported("netns is not supported here: use `engine start --netns NAME`")] = None
    platform: Annotated[object, Ignored("platform has no effect: only apps for phones use it")] = None


class ListenerOptions(Options, frozen=True, kw_only=True):
    """A proxy that sing-box would open beside the tun (types mixed, socks, http). The engine opens none, and says so."""

    type: Annotated[str, Hidden()] = ""
    tag: str = ""
    listen: Annotated[object, Hidden()] = None
    listen_port: int | None = None
    users: Annotated[object, Hidden()] = None
    tls: Annotated[object, Hidden()] = None
    set_system_proxy: Annotated[object, Hidden()] = None
    domain_resolver: Annotated[object, Hidden()] = None
    bind_interface: Annotated[object, Hidden()] = None
    routing_mark: Annotated[object, Hidden()] = None
    reuse_addr: Annotated[object, Hidden()] = None
    netns: Annotated[object, Hidden()] = None
    tcp_fast_open: Annotated[object, Hidden()] = None
    tcp_multi_path: Annotated[object, Hidden()] = None
    disable_tcp_keep_alive: Annotated[object, Hidden()] = None
    tcp_keep_alive: Annotated[object, Hidden()] = None
    tcp_keep_alive_interval: Annotated[object, Hidden()] = None
    udp_fragment: Annotated[object, Hidden()] = None
    udp_timeout: Annotated[object, Hidden()] = None
    detour: Annotated[object, Hidden()] = None
    sniff: Annotated[object, Hidden()] = None
    sniff_override_destination: Annotated[object, Hidden()] = None
    sniff_timeout: Annotated[object, Hidden()] = None
    domain_strategy: Annotated[object, Hidden()] = None
    udp_disable_domain_unmapping: Annotated[object, Hidden()] = None


INBOUND = Variants(
    "type",
    {"tun": TunOptions, "mixed": ListenerOptions, "socks": ListenerOptions, "http": ListenerOptions},
    refused=dict.fromkeys(
        ("redirect", "tproxy", "shadowsocks", "vmess", "trojan", "naive", "hysteria", "shadowtls", "vless", "tuic",
         "hysteria2", "anytls", "direct", "cloudflared"),
        "the engine has one inbound, the tun, and listens on no port. Delete it, or run it in sing-box itself",
    ),
    what="an inbound",
)  # fmt: skip
