"""/metrics: the counters as metric families, in Prometheus text or OpenMetrics, as the scraper asks.

Names begin with tunloom_, units are base units, counters end in _total. Labels, all bounded: worker (its number, or `master`),
protocol (tcp, udp), direction, outbound (its tag), reason, process.
"""

from collections.abc import Callable, Iterable, Iterator

from aiohttp import hdrs, web
from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from engine.http.health import outbound_states, problems
from engine.http.state import DOOR, ENGINE
from engine.requests import Measure, Measurement
from shared.metrics import BOUNDS, DROPS, OUTBOUNDS_MAX, Cell, Histogram, OutboundCell, UdpState, outbound_at

__all__ = ["MetricsOf", "metrics"]

ANSWER_TIMEOUT = 5.0  # seconds for the master to answer

_PROTOCOLS = {
    "tcp": (Cell.TCP_OPENED, Cell.TCP_CLOSED, Cell.TCP_ACTIVE),
    "udp": (Cell.UDP_OPENED, Cell.UDP_CLOSED, Cell.UDP_ACTIVE),
}
_WORKER_COUNTERS = {
    Cell.TCP_RETRANSMITS: ("tcp_retransmits", "Segments sent again to applications."),
    Cell.TCP_CHALLENGE_ACKS: ("tcp_challenge_acks", "Challenge ACKs sent (RFC 5961)."),
    Cell.ICMP_ECHO_REPLIES: ("icmp_echo_replies", "Echo requests of applications that were answered."),
    Cell.ICMP_ERRORS_SENT: ("icmp_errors_sent", "ICMP errors sent to applications."),
    Cell.UDP_REFUSED: ("udp_refused", "Datagrams answered with ICMP port unreachable."),
    Cell.CONNECT_FAILED: ("connects_failed", "Flows for which no connection could be made."),
    Cell.NO_LOCAL_PORT: ("no_local_port", "Connections that were not made since all local ports were in use."),
    Cell.UDP_EVICTED: ("udp_evicted", "UDP endpoints that were closed to make room for others (max_associations)."),
    Cell.USAGE_LOST: ("usage_lost", "Pairs of program and destination whose usage the master could not be told."),
    Cell.LOG_LOST: ("log_lines_lost", "Lines of the log that who follows it was not told."),
    Cell.DNS_QUERIES: ("dns_queries", "Questions of programs that the DNS service took in."),
    Cell.DNS_CACHE_HITS: ("dns_cache_hits", "Of these, those answered out of the cache."),
    Cell.DNS_STALE_HITS: ("dns_stale_hits", "Those answered with a stale answer while a fresh one is fetched."),
    Cell.DNS_UPSTREAM: ("dns_upstream_queries", "Questions that a DNS server was asked."),
    Cell.DNS_FAILED: ("dns_failures", "Of these, those without an answer, or answered SERVFAIL or REFUSED."),
    Cell.DNS_JOINED: ("dns_joined", "Questions that waited for the answer to an equal one."),
    Cell.DNS_TRUNCATED: ("dns_truncated", "Answers that were too long for UDP."),
    Cell.CALLBACK_ERRORS: ("defects", "Errors in the engine's own code; each has a traceback in the log."),
}
_MASTER_COUNTERS = {
    Cell.WAKEUPS: ("tun_reads", "Batches of packets read from the tun."),
    Cell.DOORBELLS: ("doorbells", "Times that a sleeping worker was woken."),
    Cell.FRAGMENTS_REASSEMBLED: ("fragments_reassembled", "Packets put together from IP fragments."),
}


async def metrics(request: web.Request) -> web.Response:
    """Answer a scrape."""
    reply = await request.app[ENGINE].ask(Measure(), timeout=ANSWER_TIMEOUT)
    if reply.measurement is None:
        return web.Response(status=503, text=f"{reply.error}\n")
    accept = request.headers.get(hdrs.ACCEPT, "")
    wants_openmetrics = "application/openmetrics-text" in accept
    generate: Callable[[Collector], bytes] = (
        openmetrics.generate_latest if wants_openmetrics else exposition.generate_latest
    )
    content_type = openmetrics.CONTENT_TYPE_LATEST if wants_openmetrics else exposition.CONTENT_TYPE_PLAIN_0_0_4
    body = generate(MetricsOf(reply.measurement, request.app[DOOR].families()))
    response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
    response.enable_compression()
    return response


class MetricsOf(Collector):
    """The families of one measurement, and `own`, those of the server itself."""

    def __init__(self, measurement: Measurement, own: Iterable[Metric] = ()) -> None:
        self._measurement = measurement
        self._own = tuple(own)
        self._status = measurement.status
        cells, rows = measurement.cells, memoryview(measurement.rows).cast("Q")
        self._rows = [rows[i : i + cells] for i in range(0, len(rows), cells)]
        self._workers = self._rows[:-1]
        self._master = self._rows[-1]
        named = enumerate(measurement.outbounds[: OUTBOUNDS_MAX - 1])
        self._outbounds = [(tag, outbound_at(row)) for row, tag in named]
        if len(measurement.outbounds) >= OUTBOUNDS_MAX:
            self._outbounds.append(("(others)", outbound_at(OUTBOUNDS_MAX)))

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield from self._engine()
        yield from self._traffic()
        yield from self._flows()
        yield from self._by_outbound()
        yield from self._inner_life()
        yield from self._own

    def _engine(self) -> Iterator[Metric]:
        status = self._status
        info = GaugeMetricFamily("tunloom_build_info", "The version that runs; always 1.", labels=("version",))
        info.add_metric((status.version,), 1)
        yield info
        yield _gauge("uptime_seconds", "Seconds since the engine became ready.", status.uptime)
        yield _gauge("healthy", "1 when packets can flow, as /healthz tells.", not problems(self._measurement))
        yield _gauge("interface_up", "0 while somebody has set the tun down.", status.link_up)
        yield _counter(
            "bypass_evictions",
            "Hosts that were led into the tun again to make room for others.",
            self._status.bypass_evictions,
        )
        events = CounterMetricFamily(
            "tunloom_network_events", "What has happened to this machine's network, by kind.", labels=("kind",)
        )
        for kind, count in status.network.counts.items():
            events.add_metric((kind,), count)
        yield events
        yield _counter("guardian_restarts", "Times that the guardian was replaced.", status.guardian_restarts)
        yield _gauge("generation", "Number of the generation of workers that takes new flows.", status.generation)
        yield _counter(
            "drain_cut_flows", "Flows that were reset since their worker's time to drain was up.", status.drain_cut
        )
        up = GaugeMetricFamily("tunloom_worker_up", "1 while the worker runs.", labels=("worker",))
        generation = GaugeMetricFamily(
            "tunloom_worker_generation", "Number of the generation that the worker belongs to.", labels=("worker",)
        )
        draining = GaugeMetricFamily(
            "tunloom_worker_draining",
            "1 while others take the new flows and the worker's own go on.",
            labels=("worker",),
        )
        restarts = CounterMetricFamily(
            "tunloom_worker_restarts", "Times that a worker died and was replaced.", labels=("worker",)
        )
        for worker in status.workers:
            up.add_metric((str(worker.index),), worker.state in ("running", "draining"))
            generation.add_metric((str(worker.index),), worker.generation)
            draining.add_metric((str(worker.index),), worker.state == "draining")
            restarts.add_metric((str(worker.index),), worker.restarts)
        yield from (up, generation, draining, restarts)
        memory = GaugeMetricFamily(
            "tunloom_memory_bytes",
            "Proportional set size: memory of the process, with its share of what it shares.",
            labels=("process",),
        )
        sizes = {"master": status.memory, "http": status.http_memory}
        sizes |= {f"worker {worker.index}": worker.memory for worker in status.workers}
        for process, size in sizes.items():
            if size is not None:
                memory.add_metric((process,), size)
        yield memory

    def _traffic(self) -> Iterator[Metric]:
        packets = CounterMetricFamily(
            "tunloom_tun_packets", "Packets read from the tun (in) and written to it (out).", labels=("direction",)
        )
        size = CounterMetricFamily(
            "tunloom_tun_bytes",
            "Bytes of IP packets read from the tun (in) and written to it (out).",
            labels=("direction",),
        )
        packets.add_metric(("in",), self._master[Cell.PACKETS_IN])
        packets.add_metric(("out",), sum(row[Cell.PACKETS_OUT] for row in self._workers))
        size.add_metric(("in",), self._master[Cell.BYTES_IN])
        size.add_metric(("out",), sum(row[Cell.BYTES_OUT] for row in self._workers))
        yield packets
        yield size
        served = CounterMetricFamily(
            "tunloom_worker_packets", "Packets that a worker took in and gave out.", labels=("worker", "direction")
        )
        for index, row in enumerate(self._workers):
            served.add_metric((str(index), "in"), row[Cell.PACKETS_IN])
            served.add_metric((str(index), "out"), row[Cell.PACKETS_OUT])
        yield served
        drops = CounterMetricFamily(
            "tunloom_packets_dropped", "Packets that were dropped, by reason.", labels=("worker", "reason")
        )
        drops.add_metric(("master", "tun_queue_full"), self._status.tun_dropped)
        for name, row in self._named_rows():
            for cell, reason in DROPS.items():
                drops.add_metric((name, reason), row[cell])
        yield drops

    def _flows(self) -> Iterator[Metric]:
        labels = ("worker", "protocol")
        opened = CounterMetricFamily("tunloom_flows_opened", "Flows that applications began.", labels=labels)
        closed = CounterMetricFamily("tunloom_flows_closed", "Flows that ended.", labels=labels)
        active = GaugeMetricFamily("tunloom_flows_active", "Flows now.", labels=labels)
        families: list[CounterMetricFamily | GaugeMetricFamily] = [opened, closed, active]
        for index, row in enumerate(self._workers):
            for protocol, cells in _PROTOCOLS.items():
                for family, cell in zip(families, cells, strict=True):
                    family.add_metric((str(index), protocol), row[cell])
        yield from families
        half_open = GaugeMetricFamily(
            "tunloom_flows_half_open", "TCP flows whose handshake is not complete.", labels=("worker",)
        )
        resets = CounterMetricFamily(
            "tunloom_tcp_resets", "RST from applications (in) and to them (out).", labels=("worker", "direction")
        )
        for index, row in enumerate(self._workers):
            half_open.add_metric((str(index),), row[Cell.TCP_HALF_OPEN])
            resets.add_metric((str(index), "in"), row[Cell.TCP_RESETS_RECEIVED])
            resets.add_metric((str(index), "out"), row[Cell.TCP_RESETS_SENT])
        yield half_open
        yield resets

    def _by_outbound(self) -> Iterator[Metric]:
        opened = CounterMetricFamily(
            "tunloom_outbound_flows_opened", "Flows that took the outbound.", labels=("outbound", "protocol")
        )
        active = GaugeMetricFamily(
            "tunloom_outbound_flows_active", "Flows that go through the outbound now.", labels=("outbound", "protocol")
        )
        size = CounterMetricFamily(
            "tunloom_outbound_bytes",
            "Payload from applications (up) and to them (down).",
            labels=("outbound", "direction"),
        )
        failures = CounterMetricFamily(
            "tunloom_outbound_failures",
            "Connects that the outbound answered with a refusal (refused), or could not serve at all (failed).",
            labels=("outbound", "reason"),
        )
        connect = HistogramMetricFamily(
            "tunloom_outbound_connect_duration_seconds",
            "Time to open a TCP connection to the destination.",
            labels=("outbound",),
        )
        up = GaugeMetricFamily(
            "tunloom_outbound_up",
            "1 when the last attempt showed that the outbound works; absent until a flow has tried it.",
            labels=("outbound",),
        )
        for tag, at in self._outbounds:
            opened.add_metric((tag, "tcp"), self._sum(at + OutboundCell.TCP_OPENED))
            opened.add_metric((tag, "udp"), self._sum(at + OutboundCell.UDP_OPENED))
            active.add_metric((tag, "tcp"), self._sum(at + OutboundCell.TCP_ACTIVE))
            active.add_metric((tag, "udp"), self._sum(at + OutboundCell.UDP_ACTIVE))
            size.add_metric((tag, "up"), self._sum(at + OutboundCell.BYTES_UP))
            size.add_metric((tag, "down"), self._sum(at + OutboundCell.BYTES_DOWN))
            failures.add_metric((tag, "refused"), self._sum(at + OutboundCell.REFUSED))
            failures.add_metric((tag, "failed"), self._sum(at + OutboundCell.FAILED))
            connect.add_metric((tag,), *self._histogram(self._workers, at + OutboundCell.CONNECT))
        for tag, works in outbound_states(self._measurement).items():
            up.add_metric((tag,), works)
        yield from (opened, active, size, failures, connect, up, self._udp())
        used = GaugeMetricFamily(
            "tunloom_group_member_used", "1 for the member that a group uses now.", labels=("outbound", "member")
        )
        for outbound in self._status.outbounds:
            if outbound.used is not None:
                used.add_metric((outbound.tag, outbound.used), 1)
        yield used

    def _udp(self) -> Metric:
        udp = GaugeMetricFamily(
            "tunloom_outbound_udp",
            "1 when the proxy relays UDP, 0 when it does not; absent until it is known.",
            labels=("outbound",),
        )
        for tag, at in self._outbounds:
            states = {row[at + OutboundCell.UDP] for row in self._workers} - {UdpState.UNKNOWN}
            if states:
                udp.add_metric((tag,), UdpState.NONE not in states)
        return udp

    def _inner_life(self) -> Iterator[Metric]:
        dns = HistogramMetricFamily(
            "tunloom_dns_duration_seconds", "Time for a DNS server to answer; answers from the cache do not count."
        )
        dns.add_metric((), *self._histogram(self._workers, Histogram.DNS))
        yield dns
        pending = GaugeMetricFamily(
            "tunloom_dns_waiting", "Questions that a server has been asked now.", labels=("worker",)
        )
        for index, row in enumerate(self._workers):
            pending.add_metric((str(index),), row[Cell.DNS_WAITING])
        yield pending
        lag = HistogramMetricFamily(
            "tunloom_event_loop_lag_seconds", "How late timers fire: what ready work waits for.", labels=("worker",)
        )
        for name, row in self._named_rows():
            lag.add_metric((name,), *self._histogram((row,), Histogram.LOOP_LAG))
        yield lag
        waiting = GaugeMetricFamily(
            "tunloom_ring_packets", "Packets handed to a worker that it has not served yet.", labels=("worker",)
        )
        buffers = GaugeMetricFamily(
            "tunloom_buffer_bytes", "Bytes of send and receive buffers in use.", labels=("worker",)
        )
        for worker in self._status.workers:
            waiting.add_metric((str(worker.index),), worker.ring_waiting)
            buffers.add_metric((str(worker.index),), self._workers[worker.index][Cell.BUFFER_BYTES])
        yield waiting
        yield buffers
        yield _gauge("pool_slots", "Slots for packets above 2 KiB.", self._status.pool_slots)
        yield _gauge("pool_slots_free", "Slots that no worker holds.", self._status.pool_free)
        for cell, (name, text) in _WORKER_COUNTERS.items():
            family = CounterMetricFamily(f"tunloom_{name}", text, labels=("worker",))
            for index, row in enumerate(self._workers):
                family.add_metric((str(index),), row[cell])
            yield family
        for cell, (name, text) in _MASTER_COUNTERS.items():
            yield _counter(name, text, self._master[cell])
        unknown = CounterMetricFamily(
            "tunloom_processes_unknown", "Flows whose program could not be found.", labels=("worker",)
        )
        for name, row in self._named_rows():
            unknown.add_metric((name,), row[Cell.PROCESS_UNKNOWN])
        yield unknown

    def _named_rows(self) -> Iterator[tuple[str, memoryview]]:
        for index, row in enumerate(self._workers):
            yield str(index), row
        yield "master", self._master

    def _sum(self, cell: int) -> int:
        return sum(row[cell] for row in self._workers)

    @staticmethod
    def _histogram(rows: list[memoryview] | tuple[memoryview, ...], at: int) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets of a histogram, summed over rows, and the sum of its observations in seconds."""
        buckets, total = [], 0
        for i, bound in enumerate((*map(str, BOUNDS), "+Inf")):
            total += sum(row[at + i] for row in rows)
            buckets.append((bound, float(total)))
        return buckets, sum(row[at + len(BOUNDS) + 1] for row in rows) / 1e6


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tunloom_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tunloom_{name}", text, value=value)
