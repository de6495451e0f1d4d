"""The key `engine`: what sing-box does not have."""

from typing import Annotated, Any, Literal

from engine.config.decode import Options
from engine.config.fields import Duration, Read, integer
from engine.http.listen import ListenError, parse_listen

__all__ = ["WORKERS_MAX", "EngineOptions", "QueueOptions", "StackOptions", "UdpOptions"]

WORKERS_MAX = 64


def _count(low: int, high: int, what: str) -> Read:
    return Read(lambda value: integer(value, low, high, what), {"type": "integer", "minimum": low, "maximum": high})


def _metrics(value: Any) -> str:
    if value in ("off", False):
        return "off"
    if not isinstance(value, str) or not value:
        raise ValueError('write "HOST:PORT", as in "127.0.0.1:9464", or "off"')
    try:
        parse_listen(value, option="metrics")
    except ListenError as error:
        raise ValueError(str(error).removeprefix("metrics: ")) from None
    return value


Bytes = Annotated[int, _count(16 * 1024, 64 * 1024 * 1024, "a buffer in bytes")]
Memory = Annotated[int, _count(1024 * 1024, 1 << 40, "an amount of memory in bytes")]
Flows = Annotated[int, _count(1, 1_000_000, "a number of flows")]


class StackOptions(Options, frozen=True, kw_only=True):
    """Limits of the TCP/IP stack of each worker."""

    receive_buffer: Bytes = 1024 * 1024
    """Bytes a TCP flow may hold that the proxy has not taken."""
    send_buffer: Bytes = 4 * 1024 * 1024
    """Bytes a TCP flow may hold that the program has not acknowledged; a path that cannot use so much gets less."""
    max_buffers: Memory = 1024 * 1024 * 1024
    """Bytes that all flows of a worker may hold; less where the memory of the machine or the cgroup is small."""
    reassembly_buffer: Bytes = 8 * 1024 * 1024
    """Bytes of IP fragments that are held until the rest has come; beyond it the oldest go."""
    max_tcp_flows: Flows = 20000
    """Flows of each worker; more are refused and counted. Fewer where few files may be open (ulimit -n)."""
    max_half_open: Flows = 2048
    """Flows of each worker that are being set up; beyond it the oldest goes."""
    syn_ack_retries: Annotated[int, _count(0, 10, "a number of retries")] = 3
    """Times a program is answered again that does not complete its handshake, after 1, 2, 4 ... seconds."""
    keepalive_idle: Duration = 7200.0
    """Without a packet for so long a keep-alive probe is sent."""
    half_close_timeout: Duration = 120.0
    """A flow closed on one side may stay silent for so long."""


class QueueOptions(Options, frozen=True, kw_only=True):
    """Packets that are on their way from the tun to the workers; beyond them packets are dropped and counted."""

    packets: Annotated[int, _count(64, 32_768, "a number of packets")] = 1024
    """Those that may wait for one worker (ring_full), 2 KiB of memory each; the next power of two."""
    large_packets: Annotated[int, _count(32, 16_384, "a number of packets")] = 512
    """Those above 2 KiB, for all workers (pool_empty), 68 KiB of memory each."""


class UdpOptions(Options, frozen=True, kw_only=True):
    """Limits of UDP relaying of each worker."""

    max_associations: Flows = 4096
    """Sockets that have sent datagrams; beyond it the least recently used one goes."""


class EngineOptions(Options, frozen=True, kw_only=True):
    """What sing-box does not have. Options of the command line come before."""

    workers: Annotated[int, _count(1, WORKERS_MAX, "workers")] | None = None
    """Worker processes; nothing: as many as there are cores."""
    drain_timeout: Duration = 300.0
    """Flows may go on for so long in workers that others have taken over from; then they are reset."""
    offload: Literal["auto", "uso", "tso", "csum", "none", "no-header"] = "auto"
    """The most that is asked of the kernel."""
    run_dir: str | None = None
    """Where the control socket and the journal stand; nothing: /run/tunloom."""
    log_format: Literal["text", "json"] = "text"
    metrics: Annotated[
        str | None,
        Read(_metrics, {"anyOf": [{"const": "off"}, {"type": "string", "pattern": ":[0-9]+$"}, {"const": False}]}),
    ] = None
    """HOST:PORT of metrics, health and Clash API, or `off`; nothing: 127.0.0.1:9464, where that is free."""
    kill_switch: bool = False
    """While the engine is meant to run, nothing leaves the machine but through it."""
    hijack_dns: bool = True
    """Port 53 goes to the DNS servers of this file when no rule speaks of DNS; false: such flows are flows like others."""
    rule_set_dir: str = "/var/lib/tunloom/rule-sets"
    """Where the files of remote rule-sets stand, as TAG.srs or TAG.json."""
    queues: QueueOptions = QueueOptions()
    stack: StackOptions = StackOptions()
    udp: UdpOptions = UdpOptions()
