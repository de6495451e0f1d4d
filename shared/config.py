"""What a worker is told when it starts. Frozen: a change is a new value, sent over the control channel."""

from typing import Literal

import msgspec

__all__ = ["ProxyConfig", "StackConfig", "UdpConfig", "WorkerConfig"]


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


class StackConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The TCP/IP stack of one worker."""

    mtu: int
    """Bytes of the largest IP packet on the tun."""
    offload: bool
    """The tun has virtio headers: 64 KiB GSO segments and partial checksums may be written."""
    receive_buffer: int = 1024 * 1024
    """Bytes a TCP flow may hold that the upstream has not taken; the largest window offered to the application."""
    send_buffer: int = 1024 * 1024
    """Bytes a TCP flow may hold that the application has not acknowledged."""
    max_tcp_flows: int = 20000
    """Flows per worker; a SYN beyond it is dropped and counted (flow_limit)."""
    max_half_open: int = 2048
    """Flows per worker that wait for the upstream or for the third packet of the handshake; beyond it the oldest goes."""
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


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs beside its inherited descriptors."""

    index: int
    """Shard number, 0..workers-1."""
    workers: int
    slots: int
    ring_entries: int
    proxy: ProxyConfig
    stack: StackConfig
    udp: UdpConfig = UdpConfig()
    connect_timeout: float = 10.0
    """Seconds for the upstream to answer a CONNECT."""
    uid: int | None = None
    """Unprivileged user to become; its sockets are exempt from the tun. None: stay, and mark sockets instead."""
    mark: int | None = None
    """SO_MARK for upstream sockets where `uid` is None."""
    secret: bytes = b""
    """16 random bytes per run: key of initial sequence numbers (RFC 6528)."""
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
