"""How the engine and its workers stand: what `engine status` shows, and what metrics are made of."""

import msgspec

from engine.present_rights import Rights

__all__ = [
    "EngineStatus",
    "Measurement",
    "NetworkEvent",
    "NetworkStatus",
    "OutboundHealth",
    "WayOut",
    "WorkerStatus",
]


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One worker, as its counters in shared memory stand now."""

    index: int
    generation: int
    pid: int | None
    state: str
    drain_left: float | None
    """Seconds until the flows of a worker that drains are reset; None: it does not drain."""
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
    no_local_port: int = 0
    """Connections that were not made since all local ports were in use."""
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    tcp_retransmits: int
    drops: dict[str, int]
    """Reason -> packets, without the zeros."""


class WayOut(msgspec.Struct, kw_only=True):
    """Where this machine leaves by itself for what no other route takes."""

    family: int
    """4 or 6."""
    interface: str
    gateway: str
    """Empty on a point-to-point link."""
    addresses: list[str]
    """Of the interface, with prefix length."""


class NetworkEvent(msgspec.Struct, kw_only=True):
    """Something that happened to this machine's network while the engine runs."""

    time: float
    """Unix time."""
    kind: str
    """One of engine.netconf.events.KINDS."""
    text: str


class NetworkStatus(msgspec.Struct, kw_only=True):
    """How this machine is connected beside the tun, and what has happened."""

    ways_out: list[WayOut] = []
    """Empty also where the engine does not look (macOS, `engine run`)."""
    events: list[NetworkEvent] = []
    """The last ones, oldest first."""
    counts: dict[str, int] = {}
    """Kind -> events since the start."""


class OutboundHealth(msgspec.Struct, kw_only=True):
    """How an outbound of the policy in force fares."""

    tag: str
    works: bool | None
    """As the last attempt of any worker showed; None: no flow has tried it. Groups are judged by their members."""
    used: str | None = None
    """The member that a group uses; of a fallback group, the first that was not found dead."""
    passed_over: dict[str, float] = {}
    """Members that a fallback group has found dead -> seconds until a flow tries them again."""


class EngineStatus(msgspec.Struct, kw_only=True):
    """The whole engine."""

    version: str
    pid: int
    uptime: float
    memory: int | None
    """Proportional set size of the master in bytes; None where the kernel does not tell."""
    mode: str
    """Of the Clash API: in force now."""
    modes: list[str]
    """That there are."""
    log_level: str
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
    bypass_evictions: int = 0
    """Hosts that were led into the tun again to make room for others."""
    guardian_pid: int | None
    """None while one that died is replaced."""
    guardian_restarts: int
    http_pid: int | None
    """Of the process that serves metrics and API; None without one."""
    http_restarts: int
    http_memory: int | None
    generation: int
    """Of the workers that take new flows."""
    drain_cut: int
    """Flows that were reset since their worker's time to drain was up."""
    rights: Rights = msgspec.field(default_factory=Rights)
    workers: list[WorkerStatus]
    """Those that drain included, in the order of their numbers."""
    network: NetworkStatus = msgspec.field(default_factory=NetworkStatus)
    outbounds: list[OutboundHealth] = []


class Measurement(msgspec.Struct, kw_only=True):
    """Everything there is to be shown as metrics, of one moment."""

    status: EngineStatus
    now: float
    """Monotonic seconds; heartbeats are on the same clock."""
    outbounds: list[str]
    """Tags in the order of their rows of cells (shared/metrics.py); all beyond OUTBOUNDS_MAX - 1 share the last row."""
    cells: int
    """Cells of each row that are handed over: up to the last outbound."""
    places: int
    """Number of rows of workers: of all places that have ever had one, so that sums only ever grow."""
    rows: bytes
    """Workers by their numbers, then the master; `cells` unsigned integers of 8 bytes each."""
