"""Composition root of the master: opens everything in order, runs, and undoes it in reverse.

    run directory, lock -> tun -> shared memory -> guardian -> workers -> addresses, routes and rules -> ingress -> control socket

The guardian is started before the first change to the network and restores it when the master is gone in any way.
"""

import asyncio
import logging
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from engine import resolved
from engine.answers import Answers
from engine.choices import Choices, open_choices
from engine.config.effective import CommandLine
from engine.config.model import EngineConfig
from engine.control import ControlServer
from engine.fake_names import FakeNamesError, open_fake_names
from engine.generations import Generations, Shape
from engine.groups import Groups
from engine.heartbeat import Heartbeat
from engine.http import HttpOptions
from engine.http.listen import ListenError, listen
from engine.http.process import HttpProcess
from engine.ingress import Ingress
from engine.inspector import Inspector
from engine.limits import find_limits, raise_file_limit
from engine.log_tap import LogTap
from engine.netconf import Network
from engine.network_plan import answers_every_server, network_plan
from engine.notify import notify, watchdog_interval
from engine.owners import FlowOwners, open_owners
from engine.periodic import every
from engine.proxy_names import ProxyNames
from engine.reload import Reloader
from engine.responder import Responder
from engine.rights import keep_master_rights
from engine.roaming import Roaming
from engine.run.network import PrivateNetwork
from engine.run_dir import lock_run_dir
from engine.supervisor import PLACES, Report, Supervisor
from engine.tun import TunDevice, open_tun
from engine.tun_reader import TunReader
from engine.udp_support import UdpOfProxies
from engine.usage import UsageBook, usage_path
from engine.users import HTTP_UID
from engine.watchdog import CHECK_INTERVAL, Watchdog
from engine.worker_config import limited, worker_config
from engine.worker_process import WorkerFailed
from shared.config import Policy, ProxyOutbound
from shared.control import (
    Delay,
    DnsAnswered,
    Drained,
    FindProcess,
    Flows,
    Keys,
    Logged,
    LookedUp,
    LoopSuspected,
    Measured,
    PassedOver,
    ProxyFailing,
    Reloaded,
    UdpSupport,
    Usage,
    Used,
)
from shared.log import READY
from shared.pool import Pool, PoolLayout
from shared.system import user_exists

__all__ = ["EngineFailed", "StartOptions", "run_engine"]

log = logging.getLogger(__name__)
ready_log = logging.getLogger(READY)
"""Of the one line that says that packets flow: `engine start` prints it whatever the level of the log is."""

EXPIRE_INTERVAL = 5.0  # seconds between looks for fragments whose time is up


class EngineFailed(Exception):
    """The engine cannot go on; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """What an engine is started with."""

    config: EngineConfig
    """The user's file, or what stands for one; the command line's options are in it, names are resolved."""
    workers: int
    run_dir: Path
    command_line: CommandLine | None = None
    """What `config` was made of, and what a reload makes it of anew."""
    tun: TunDevice | None = None
    """One that stands ready in a namespace of its own (engine/run): nothing of this machine's network is changed."""
    sock_diag: tuple[int, ...] = ()
    """Descriptors for its process table, if the kernel has one (engine/processes)."""


async def run_engine(options: StartOptions) -> None:
    """Run until SIGINT, SIGTERM or `engine stop`, then put everything back.

    Raises EngineFailed, ListenError, RightsError, TunError, NetworkError or WorkerFailed; by then everything is put back as well.
    """
    async with AsyncExitStack() as undo:
        await _Master(options).run(undo)


class _Master:
    """What a running engine consists of."""

    tun: TunDevice
    pool: Pool
    network: Network
    owners: FlowOwners
    supervisor: Supervisor
    groups: Groups
    answers: Answers
    proxy_names: ProxyNames
    ingress: Ingress
    inspector: Inspector
    reloader: Reloader
    choices: Choices
    generations: Generations

    def __init__(self, options: StartOptions) -> None:
        self.options = options
        self.udp = UdpOfProxies()
        self.listeners: list[socket.socket] = []  # of the HTTP process
        self.counted: list[str] = []  # tags of outbounds in the order of their rows in the counters; only ever grows
        self.failure: EngineFailed | WorkerFailed | None = None
        self.stopped = asyncio.Event()  # asked to stop
        self.reader: TunReader | None = None
        self.loop = asyncio.get_running_loop()

    async def run(self, undo: AsyncExitStack) -> None:
        options, config = self.options, self.options.config
        undo.enter_context(lock_run_dir(options.run_dir))
        raise_file_limit()
        if config.http is not None and config.http.is_named:
            self._open_listeners(undo, config.http)
        keep_master_rights(options.run_dir, config)
        for number in (signal.SIGINT, signal.SIGTERM):
            self.loop.add_signal_handler(number, self.stopped.set)
        self.loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

        self.tun = options.tun or open_tun(config.tun.interface_name, mtu=config.tun.mtu, offload=config.tun.offload)
        undo.callback(self.tun.close)
        layout = PoolLayout(PLACES, config.queues.large_packets, config.queues.packets)
        self.pool = Pool.create(layout)
        undo.callback(self.pool.close)
        network_kind = Network if options.tun is None else PrivateNetwork
        network = self.network = network_kind(
            options.run_dir, on_gone=self._on_tun_gone, on_moved=lambda egress: self.supervisor.set_egress(egress)
        )
        await network.start_guardian()
        undo.push_async_exit(self._restore_network)

        self.owners = open_owners(self.pool.counters[-1], network, options.sock_diag)
        undo.push_async_callback(self.owners.close)
        self.choices = open_choices(config, options.run_dir)
        self.reloader = Reloader(
            config, options.command_line, network=network, put_in_force=self._put_in_force,
            renew=lambda count: self.generations.renew(count), workers=options.workers, counted=self.counted,
            choices=self.choices,
        )  # fmt: skip
        await self._start_workers(layout, undo)
        for remark in await network.apply(network_plan(config, self.tun)):
            log.warning("%s", remark)
        if options.tun is None and config.tun.auto_route and answers_every_server(config):
            here = self.owners.guards
            if await resolved.announce(self.tun.name, config.tun.dns_addresses, proxy_is_here=here):
                undo.push_async_callback(resolved.revert, self.tun.name)
        self._start_ingress(undo)
        self.inspector = Inspector(
            tun=self.tun,
            pool=self.pool,
            network=network,
            supervisor=self.supervisor,
            ingress=self.ingress,
            proxy=lambda: self.destination,
            udp=lambda: str(self.udp),
            outbounds=self.counted,
            reloader=self.reloader,
            choices=self.choices,
            groups=self.groups,
        )
        self.responder = Responder(
            stop=self.stopped.set,
            config=lambda: self.reloader.config,
            inspector=self.inspector,
            reloader=self.reloader,
            choices=self.choices,
            answers=self.answers,
            groups=self.groups,
            supervisor=self.supervisor,
            fake_names=self.fake_names,
            log=self.log,
            usage=self.usage,
        )
        if config.http is not None:
            self._start_http(undo, config.http)
        server = ControlServer(options.run_dir / "control.sock", self.responder.answer)
        await server.start()
        undo.push_async_callback(server.stop)

        offload = "+".join(self.tun.features) or "no offload"
        ready_log.info(
            "ready: %s carries all traffic to %s with %d workers (mtu %d, %s)",
            self.tun.name, self.destination, options.workers, self.tun.mtu, offload,
        )  # fmt: skip
        notify("READY=1")
        if (interval := watchdog_interval()) is not None:
            undo.callback(every(self.loop, interval, lambda: notify("WATCHDOG=1")))
        undo.callback(Roaming(self.loop, network.events, self.supervisor, self.groups).close)
        await self.stopped.wait()
        notify("STOPPING=1")
        log.info("stopping")
        if self.failure is not None:
            raise self.failure

    @property
    def destination(self) -> str:
        """Where flows go that no rule takes: the proxy's URL, or the tag of another kind of outbound."""
        policy = self.reloader.policy
        default = next(outbound for outbound in policy.outbounds if outbound.tag == policy.route.final)
        return str(default.proxy) if isinstance(default, ProxyOutbound) else default.tag

    async def _restore_network(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """An engine that fails is still meant to be up: its kill switch stays closed."""
        await self.network.restore(hold=kind is not None)

    async def _start_workers(self, layout: PoolLayout, undo: AsyncExitStack) -> None:
        options, user = self.options, self.options.config
        try:
            fake_names = self.fake_names = open_fake_names(user, options.run_dir)
        except FakeNamesError as error:
            raise EngineFailed(str(error)) from error
        if fake_names is not None:
            undo.callback(fake_names.close)
        moves_traffic = options.tun is None
        config = worker_config(
            user,
            policy=self.owners.load(self.reloader.policy, guards=moves_traffic),
            tun=self.tun,
            layout=layout,
            moves_traffic=moves_traffic,
        )
        shape, memory_max = self._shape(options.workers)
        self.supervisor = Supervisor(
            config,
            workers=options.workers,
            pool=self.pool,
            tun_fd=self.tun.fd,
            fake_ip_fd=fake_names.fd if fake_names is not None else None,
            on_report=self._on_report,
            shape=shape,
            memory_max=memory_max,
        )
        undo.push_async_callback(self.supervisor.stop)
        self.usage = UsageBook(usage_path(options.run_dir))
        self.usage.start()
        undo.push_async_callback(self.usage.stop)
        self.log = LogTap(self.loop, self.supervisor.send_all)
        undo.callback(self.log.close)
        self.groups = Groups(self.supervisor, config.policy, self.choices)
        self.answers = Answers(self.supervisor)
        self.proxy_names = ProxyNames(lambda: self.reloader.config, self.answers.look_up, self.reloader.move)
        undo.push_async_callback(self.proxy_names.close)
        await self.supervisor.start()

    def _shape(self, workers: int) -> tuple[Shape, int]:
        """How workers are configured when there are so many, and the bytes of memory that each may have."""
        user = self.options.config
        limits = find_limits(workers, flows=user.stack.max_tcp_flows, associations=user.udp.max_associations)
        for remark in limits.remarks:
            log.warning("%s", remark)
        return limited(limits), limits.worker_memory

    def _start_ingress(self, undo: AsyncExitStack) -> None:
        self.ingress = Ingress(
            self.tun.fd,
            self.pool,
            self.supervisor.shards,
            self.pool.counters[-1],
            header_len=self.tun.header_len,
            read=self.tun.read,
            kept=self.tun.kept,
            reassembly_buffer=self.options.config.stack.reassembly_buffer,
        )
        undo.callback(self.ingress.close)
        self.supervisor.ingress = self.ingress
        self.supervisor.on_failed = self._fail
        watchdog = Watchdog(self.supervisor, self.pool)
        undo.callback(every(self.loop, CHECK_INTERVAL, lambda: watchdog.check(monotonic())))
        self.reader = TunReader(self.loop, self.tun.fd, self.ingress, self._on_tun_gone)
        undo.callback(self.reader.close)
        self.generations = Generations(
            self.supervisor,
            self.ingress,
            self.reader,
            self.pool,
            shape=self._shape,
            drain_timeout=lambda: self.reloader.config.drain_timeout,
        )
        undo.callback(every(self.loop, EXPIRE_INTERVAL, self.ingress.expire))
        heart = Heartbeat(self.loop, self.pool.counters[-1])
        heart.start()
        undo.callback(heart.stop)

    def _open_listeners(self, undo: AsyncExitStack, http: HttpOptions) -> None:
        """Listen where the user has said, before anything is changed, or at the default's address, at the end."""
        self.listeners = listen(http.addresses)
        for listener in self.listeners:
            undo.callback(listener.close)

    def _start_http(self, undo: AsyncExitStack, http: HttpOptions) -> None:
        if not http.is_named:
            try:
                self._open_listeners(undo, http)
            except ListenError as error:
                log.warning("%s: there are none; name an address with --metrics HOST:PORT, or say --metrics off", error)
                return
        process = HttpProcess(
            http,
            self.listeners,
            self.responder.answer,
            uid=HTTP_UID if user_exists(HTTP_UID) else None,
            log_level=self.options.config.log.level,
            log_format=self.options.config.log.format,
        )
        self.inspector.http = process
        process.start()
        undo.push_async_callback(process.stop)

    def _on_tun_gone(self) -> None:
        """Told by reading, and by netlink: libuv looks no more at a descriptor whose first error a read did not show."""
        if self.reader is not None:
            self.reader.close()
        self._fail(EngineFailed(f"the interface {self.tun.name} is gone: somebody deleted it"))

    def _fail(self, failure: EngineFailed | WorkerFailed) -> None:
        """End the engine, with this failure as the reason unless there is one already."""
        if self.failure is None:
            self.failure = failure
        self.stopped.set()

    async def _put_in_force(self, policy: Policy) -> list[str]:
        """Have new flows follow `policy`, in all workers; return why one cannot."""
        whole = self.groups.load(self.owners.load(policy, guards=self.options.tun is None))
        self.supervisor.set_policy(whole)
        answers = await self.answers.reload(whole)
        return sorted({error for error in answers.values() if error is not None})

    def _on_hangup(self) -> None:
        """SIGHUP: reload; its outcome is in the log."""
        self.reloading = self.loop.create_task(self.reloader.reload(), name="reload")

    def _on_report(self, worker: int, report: Report) -> None:
        match report:
            case UdpSupport():
                self.udp.on_report(report)
            case Measured():
                self.groups.on_measured(worker, report)
            case Used():
                self.groups.on_used(worker, report)
            case PassedOver():
                self.groups.on_passed_over(report)
            case ProxyFailing():
                self.proxy_names.on_failing()
                self.groups.on_failing()
            case Flows() | Delay() | LookedUp() | Reloaded() | DnsAnswered():
                self.answers.on_answer(worker, report)
            case FindProcess():
                self.owners.answer(worker, report, self.supervisor.send)
            case LoopSuspected():
                self.owners.suspect(report)
            case Usage():
                self.usage.take(report)
            case Logged():
                self.log.on_line(worker, report)
            case Keys() | Drained():
                self.generations.on_report(worker, report)
