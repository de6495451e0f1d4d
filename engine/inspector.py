"""A look at a running engine: what `engine status` and the metrics show. Nothing is stopped and no worker is asked."""

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic

from engine.choices import Choices
from engine.groups import Groups
from engine.http.process import HttpProcess
from engine.ingress import Ingress
from engine.memory import ProcessMemory
from engine.netconf import Network
from engine.outbound_health import outbound_health, outbound_states
from engine.present_rights import present_rights
from engine.reload import Reloader
from engine.requests import EngineStatus, Measurement, NetworkEvent, NetworkStatus, OutboundHealth, WayOut, WorkerStatus
from engine.supervisor import Supervisor
from engine.tun import TunDevice
from engine.worker_process import WorkerProcess
from shared.metrics import DROPS, Cell, Counters, cells_used
from shared.pool import Pool

__all__ = ["Inspector"]


class Inspector:
    """Reads the counters, and asks the parts of the master. `http` is set when there is one.

    udp        tells whether the proxy relays UDP
    outbounds  tags in the order of their rows in the counters; may grow
    """

    def __init__(
        self,
        *,
        tun: TunDevice,
        pool: Pool,
        network: Network,
        supervisor: Supervisor,
        ingress: Ingress,
        proxy: Callable[[], str],
        udp: Callable[[], str],
        outbounds: Sequence[str],
        reloader: Reloader,
        choices: Choices,
        groups: Groups,
    ) -> None:
        self._tun = tun
        self._pool = pool
        self._network = network
        self._supervisor = supervisor
        self._ingress = ingress
        self._proxy = proxy
        self._udp = udp
        self._outbounds = outbounds
        self._reloader = reloader
        self._choices = choices
        self._groups = groups
        self.http: HttpProcess | None = None
        self._started_at = monotonic()
        self._version = version("tunloom")
        self._memory = ProcessMemory()
        self._rights = present_rights()

    async def status(self) -> EngineStatus:
        """Return how things stand."""
        everybody = (os.getpid(), self._http_pid, *(worker.pid for worker in self._supervisor.workers))
        memory = await self._memory.of([pid for pid in everybody if pid is not None])
        master, guardian = self._pool.counters[-1], self._network.guardian
        return EngineStatus(
            version=self._version,
            pid=os.getpid(),
            uptime=monotonic() - self._started_at,
            memory=memory.get(os.getpid()),
            mode=self._reloader.mode,
            modes=list(self._reloader.modes),
            log_level=self._choices.log_level,
            interface=self._tun.name,
            mtu=self._tun.mtu,
            offload=list(self._tun.features),
            link_up=self._network.link_up,
            proxy=self._proxy(),
            udp=self._udp(),
            packets_in=master[Cell.PACKETS_IN],
            bytes_in=master[Cell.BYTES_IN],
            drops=_drops(master),
            tun_dropped=_tun_dropped(self._tun.name),
            pool_slots=self._pool.layout.slots,
            pool_free=self._ingress.free_slots,
            kill_switch=self._network.kill_switch,
            bypass_evictions=self._network.bypass_evictions,
            guardian_pid=guardian.pid,
            guardian_restarts=guardian.restarts,
            http_pid=self._http_pid,
            http_restarts=self.http.restarts if self.http is not None else 0,
            http_memory=memory.get(self._http_pid) if self._http_pid is not None else None,
            generation=self._supervisor.generation,
            drain_cut=master[Cell.DRAIN_CUT],
            workers=[self._worker_status(worker, memory) for worker in self._supervisor.workers],
            rights=self._rights,
            network=_network_status(self._network),
            outbounds=self._outbound_health(),
        )

    async def measurement(self) -> Measurement:
        """Return all that metrics show. The rows are of one moment: nothing runs between their copies but the workers."""
        status = await self.status()
        cells = cells_used(len(self._outbounds))
        rows = self._rows()
        return Measurement(
            status=status,
            now=monotonic(),
            outbounds=list(self._outbounds),
            cells=cells,
            places=len(rows),
            rows=b"".join(row[:cells] for row in (*rows, self._pool.counters[-1])),
        )

    def _rows(self) -> list[memoryview]:
        """Counters of all places that have ever had a worker."""
        return self._pool.counters[: self._pool.counters[-1][Cell.PLACES_USED]]

    @property
    def _http_pid(self) -> int | None:
        return self.http.pid if self.http is not None else None

    def _outbound_health(self) -> list[OutboundHealth]:
        tags = [outbound.tag for outbound in self._groups.policy.outbounds]
        states = outbound_states(self._rows(), self._outbounds)
        return outbound_health(tags, states, self._groups.chosen(), self._groups.passed_over())

    def _worker_status(self, worker: WorkerProcess, memory: dict[int, int | None]) -> WorkerStatus:
        row = self._pool.counters[worker.index]
        return WorkerStatus(
            index=worker.index,
            generation=worker.generation,
            drain_left=worker.drains_until - monotonic() if worker.drains_until is not None else None,
            pid=worker.pid,
            state=worker.state.value,
            restarts=worker.restarts,
            last_end=worker.last_end,
            uptime=monotonic() - worker.started_at,
            memory=memory.get(worker.pid) if worker.pid is not None else None,
            ring_waiting=worker.shard.ring.waiting,
            flows=row[Cell.TCP_ACTIVE] + row[Cell.UDP_ACTIVE],
            tcp_active=row[Cell.TCP_ACTIVE],
            tcp_opened=row[Cell.TCP_OPENED],
            udp_active=row[Cell.UDP_ACTIVE],
            udp_opened=row[Cell.UDP_OPENED],
            connect_failed=row[Cell.CONNECT_FAILED],
            no_local_port=row[Cell.NO_LOCAL_PORT],
            packets_in=row[Cell.PACKETS_IN],
            bytes_in=row[Cell.BYTES_IN],
            packets_out=row[Cell.PACKETS_OUT],
            bytes_out=row[Cell.BYTES_OUT],
            tcp_retransmits=row[Cell.TCP_RETRANSMITS],
            drops=_drops(row),
        )


def _network_status(network: Network) -> NetworkStatus:
    return NetworkStatus(
        ways_out=[
            WayOut(family=family, interface=interface, gateway=gateway, addresses=addresses)
            for family, (interface, gateway, addresses) in network.ways_out.items()
        ],
        events=[NetworkEvent(time=event.time, kind=event.kind, text=event.text) for event in network.events.events],
        counts=dict(network.events.counts),
    )


def _drops(row: Counters) -> dict[str, int]:
    return {reason: row[cell] for cell, reason in DROPS.items() if row[cell]}


def _tun_dropped(name: str) -> int:
    """Packets the kernel dropped since the tun's queue was full: transmit drops in /proc/net/dev (of our namespace)."""
    try:
        text = Path("/proc/net/dev").read_text()
    except FileNotFoundError:  # macOS does not tell
        return 0
    for line in text.splitlines():
        interface, colon, fields = line.partition(":")
        if colon and interface.strip() == name:
            return int(fields.split()[11])
    return 0
