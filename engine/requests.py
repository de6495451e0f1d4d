"""What a running engine can be asked, and what it answers: on its control socket (JSON), and by its HTTP process (msgpack).

A request is told by its `command`, so {"command": "status"} is one.
"""

import msgspec

__all__ = ["EngineStatus", "Reply", "Request", "Status", "Stop", "WorkerStatus"]


class Status(msgspec.Struct, frozen=True, tag_field="command", tag="status"):
    """How things stand: Reply.status."""


class Stop(msgspec.Struct, frozen=True, tag_field="command", tag="stop"):
    """Put everything back and end; answered by Reply.ok before that is done."""


Request = Status | Stop


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One worker, as its counters in shared memory stand now."""

    index: int
    pid: int | None
    state: str
    restarts: int
    uptime: float
    """Seconds since this incarnation was started."""
    memory: int | None
    """Proportional set size in bytes; None where the kernel does not tell."""
    ring_waiting: int
    """Packets handed to the worker that it has not served yet."""
    flows: int
    """TCP connections and UDP associations now."""
    tcp_active: int
    tcp_opened: int
    udp_active: int
    udp_opened: int
    connect_failed: int
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    tcp_retransmits: int
    drops: dict[str, int]
    """Reason -> packets, without the zeros."""


class EngineStatus(msgspec.Struct, kw_only=True):
    """The whole engine."""

    version: str
    pid: int
    uptime: float
    memory: int | None
    """Proportional set size of the master in bytes; None where the kernel does not tell."""
    interface: str
    mtu: int
    offload: list[str]
    link_up: bool
    """False while somebody has set the interface down."""
    proxy: str
    udp: str
    """Whether the upstream relays UDP: "unknown", "yes", or "no: reason"."""
    packets_in: int
    """Packets read from the tun by the master."""
    bytes_in: int
    drops: dict[str, int]
    """Of the master: reason -> packets, without the zeros."""
    tun_dropped: int
    """Packets that the kernel dropped because the tun's queue was full."""
    pool_slots: int
    pool_free: int
    guardian_pid: int | None
    """None while one that died is replaced."""
    guardian_restarts: int
    workers: list[WorkerStatus]


class Reply(msgspec.Struct, omit_defaults=True):
    """Exactly one field is set."""

    status: EngineStatus | None = None
    ok: bool | None = None
    error: str | None = None
