"""What a worker is told when it starts: the stack, UDP, and how flows leave (Policy)."""

from typing import Literal

import msgspec

from shared.config.dns import DnsConfig
from shared.config.outbound import OutboundConfig, PassedOver
from shared.config.route import RouteConfig

__all__ = ["FakeIpConfig", "Policy", "StackConfig", "UdpConfig", "WorkerConfig"]


class StackConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The TCP/IP stack of one worker."""

    mtu: int
    """Bytes of the largest IP packet on the tun."""
    offload: bool
    """The tun has virtio headers: 64 KiB GSO segments and partial checksums may be written."""
    receive_buffer: int = 1024 * 1024
    """Bytes a TCP flow may hold that the upstream has not taken; the largest window offered to the application."""
    send_buffer: int = 4 * 1024 * 1024
    """Bytes a TCP flow may hold that the application has not acknowledged; a path that cannot use so much gets less."""
    max_tcp_flows: int = 20000
    """Flows per worker; a SYN beyond it is dropped and counted (flow_limit)."""
    max_half_open: int = 2048
    """Flows per worker that wait for the upstream or for the third packet of the handshake; beyond it the oldest goes."""
    syn_ack_retries: int = 3
    """Times a SYN-ACK is sent again, after 1, 2, 4 ... seconds, before the flow is given up."""
    max_buffers: int = 1024 * 1024 * 1024
    """Bytes that all flows of a worker may hold. Half is for whoever comes first, of the other half each flow has its share;
    beyond it the upstream is not read, and what a slow upstream does not take is dropped, to be sent again (buffer_limit)."""
    reassembly_buffer: int = 8 * 1024 * 1024
    """Bytes of IP fragments that the master holds; beyond it the oldest go (fragment)."""
    keepalive_idle: float = 7200.0
    """Seconds without a packet before a keep-alive probe (RFC 9293, 3.8.4)."""
    half_close_timeout: float = 120.0
    """Seconds that a flow closed on one side may stay silent."""


class UdpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """UDP relaying of one worker."""

    idle_timeout: float = 300.0
    """Seconds without a datagram in either direction before a source endpoint's association is closed."""
    max_associations: int = 4096
    """Associations per worker; beyond it the least recently used one is closed."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How flows leave: everything that a reload swaps while connections live on."""

    outbounds: tuple[OutboundConfig, ...]
    """At least one; tags are unique, group members exist, groups hold no circle (engine/config checks it)."""
    route: RouteConfig = RouteConfig()
    dns: DnsConfig = DnsConfig()
    inbound: str = "tun-in"
    """Tag of the tun, as rules name it."""
    loop_guard: bool = False
    """The proxy runs on this machine: the master is asked whose each new flow is, and the proxy's own go out directly."""
    counted: tuple[str, ...] = ()
    """Tags in the order of their rows in the counters (shared/metrics.py). A reload only appends: a row keeps its outbound."""
    passed_over: tuple[PassedOver, ...] = ()
    """Of fallback groups, as other workers have found out."""


class FakeIpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The table of fake addresses (shared/fakeip.py), whose memory a worker inherits."""

    inet4_range: str | None
    inet6_range: str | None


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs beside its inherited descriptors."""

    index: int
    """Its place in the shared memory, 0..places-1, which is the worker's number."""
    places: int
    slots: int
    ring_entries: int
    policy: Policy
    stack: StackConfig
    udp: UdpConfig = UdpConfig()
    uid: int | None = None
    """Unprivileged user to become; its sockets are exempt from the tun. None: stay, and mark sockets instead."""
    tun_addresses: tuple[str, ...] = ()
    """The tun's own, with number of bits: what leaves directly to these networks would only come back."""
    mark: int | None = None
    """SO_MARK for upstream sockets where `uid` is None."""
    egress: tuple[int, int] | None = None
    """Indexes of the interfaces that upstream sockets of IPv4 and of IPv6 are bound to (macOS); None: they need not be."""
    workers: int = 1
    """How many share the new flows."""
    measures: bool = False
    """It tests the members of urltest groups, for all workers."""
    header_len: int = 10
    """Bytes before the IP packet on the tun (engine.tun.TunDevice): virtio header, protocol family of a utun, or nothing."""
    secret: bytes = b""
    """16 random bytes per run: key of initial sequence numbers (RFC 6528)."""
    dns_addresses: tuple[str, ...] = ()
    """Addresses at which the DNS service answers; never asked as servers."""
    fake_ip: FakeIpConfig | None = None
    """None: no name has a fake address."""
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
