"""What a running engine can be asked, and what it answers: on its control socket (JSON), and by its HTTP process (msgpack).

A request is told by its `command`, so {"command": "status"} is one.
"""

import msgspec

__all__ = [
    "EngineStatus",
    "Measure",
    "Measurement",
    "Reload",
    "Reloaded",
    "Reply",
    "Request",
    "Status",
    "Stop",
    "WorkerStatus",
]


class Status(msgspec.Struct, frozen=True, tag_field="command", tag="status"):
    """How things stand: Reply.status."""


class Stop(msgspec.Struct, frozen=True, tag_field="command", tag="stop"):
    """Put everything back and end; answered by Reply.ok before that is done."""


class Measure(msgspec.Struct, frozen=True, tag_field="command", tag="measure"):
    """All counters as they stand: Reply.measurement."""


class Reload(msgspec.Struct, frozen=True, tag_field="command", tag="reload"):
    """Read the configuration again and let new flows follow it: Reply.reloaded."""


Request = Status | Stop | Measure | Reload


class Reloaded(msgspec.Struct, kw_only=True):
    """What came of a reload."""

    errors: list[str] = []
    """Why nothing has changed; empty: the new configuration is in force."""
    remarks: list[str] = []
    """What the user should know."""


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One worker, as its counters in shared memory stand now."""

    index: int
    pid: int | None
    state: str
    restarts: int
    last_end: str
    """What became of the process before this one: "was killed by SIGKILL"; empty while there was none."""
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
    kill_switch: bool
    """Nothing gets out past the tun, and will not after a crash."""
    guardian_pid: int | None
    """None while one that died is replaced."""
    guardian_restarts: int
    http_pid: int | None
    """Of the process that serves metrics and API; None without one."""
    http_restarts: int
    http_memory: int | None
    workers: list[WorkerStatus]


class Measurement(msgspec.Struct, kw_only=True):
    """Everything there is to be shown as metrics, of one moment."""

    status: EngineStatus
    now: float
    """Monotonic seconds; heartbeats are on the same clock."""
    outbounds: list[str]
    """Tags in the order of their rows of cells (shared/metrics.py); all beyond OUTBOUNDS_MAX - 1 share the last row."""
    cells: int
    """Cells of each row that are handed over: up to the last outbound."""
    rows: bytes
    """Workers 0..n-1, then the master; `cells` unsigned integers of 8 bytes each."""


class Reply(msgspec.Struct, omit_defaults=True):
    """Exactly one field is set."""

    status: EngineStatus | None = None
    measurement: Measurement | None = None
    reloaded: Reloaded | None = None
    ok: bool | None = None
    error: str | None = None
