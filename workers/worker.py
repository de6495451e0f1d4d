"""Composition root of one worker: control channel + link + stack + relay.

Life: the first message on the control channel is Configure; privileges are dropped; Ready is answered; then packets flow
until Stop, until the channel closes (the master is gone), or until SIGTERM.
"""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Set
from encodings import idna  # noqa: F401 - imported while the library's files can still be read
from time import monotonic

import uvloop

from shared import control
from shared.channel import channel_to_master, receive_from_master, send_now
from shared.config import DirectOutbound, Policy, ProxyOutbound, WorkerConfig
from shared.contract import contract
from shared.fakeip import FakeIpTable, fake_ip_layout
from shared.log import configure_logging, set_log_level
from shared.pool import Pool, PoolLayout
from shared.privileges import CAP_NET_ADMIN
from shared.rules.flow import Ends
from shared.rules.matcher import Compiler
from shared.system import MessageSocket, drop_privileges, message_socket
from workers.confinement import confine_worker
from workers.dns.names import KnownNames
from workers.dns.worker_dns import WorkerDns
from workers.handover import Handover
from workers.link import Link
from workers.log_tap import LogTap
from workers.relay.relay import Relay
from workers.stack.stack import Stack

__all__ = ["run"]

log = logging.getLogger(__name__)

OTHER_CONTRACT = (
    "the code on the disk is of another version than the running engine (contract {} and not {}): "
    "restart the engine to use it"
)

OWN_QUESTION = Ends("udp", bytes((127, 0, 0, 1)), 0, bytes((127, 0, 0, 1)), 53)
"""Whose questions are that people ask the DNS service over the API: nobody's of the rules' flows."""


def run(
    master_pid: int,
    master_contract: str,
    control_fd: int,
    doorbell: int,
    pool_fd: int,
    tun_fd: int,
    fake_ip_fd: int | None = None,
) -> int:
    """Serve until told to stop; returns the exit code."""
    channel = message_socket(control_fd)
    if master_contract != contract():
        # Nothing of the master's can be read but that it is there, and nothing is said to it but what never changes.
        send_now(channel, control.Failed(OTHER_CONTRACT.format(contract(), master_contract)))
        return 1
    message = receive_from_master(channel)
    assert isinstance(message, control.Configure), "the first message configures the worker"
    config = message.config
    configure_logging(config.log_level, config.log_format, name=f"worker {config.index}")
    # Ctrl-C reaches the whole foreground group; the master decides when workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pool = Pool.attach(pool_fd, PoolLayout(config.places, config.slots, config.ring_entries))
    try:
        drop_privileges(config.uid, keep=(CAP_NET_ADMIN,) if _marks_sockets(config.policy) else ())
    except OSError as error:
        send_now(channel, control.Failed(f"cannot become uid {config.uid}: {error.strerror}"))
        return 1
    try:
        confine_worker()
    except OSError as error:
        send_now(channel, control.Failed(f"cannot be confined ({error.filename}: {error.strerror})"))
        return 1
    if os.getppid() != master_pid:  # it died before this process could be told to die with it
        return 1
    # What exists now lives for ever: collections need not walk it. Flows are freed by reference counts.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    return uvloop.run(_serve(config, channel, pool, _fake_ip(config, fake_ip_fd), tun_fd, doorbell))


def _fake_ip(config: WorkerConfig, fd: int | None) -> FakeIpTable | None:
    ranges = config.fake_ip
    if ranges is None or fd is None:
        return None
    return FakeIpTable.attach(fd, fake_ip_layout(ranges.inet4_range, ranges.inet6_range))


async def _serve(
    config: WorkerConfig,
    control_socket: MessageSocket,
    pool: Pool,
    fake_ip: FakeIpTable | None,
    tun_fd: int,
    doorbell: int,
) -> int:
    loop = asyncio.get_running_loop()
    counters = pool.counters[config.index]
    stopped = asyncio.Event()

    def on_control(message: control.FromMaster) -> None:
        match message:
            case control.Stop():
                stopped.set()
            case control.ProcessFound():
                relay.processes.found(message)
            case control.Reload():
                channel.send(control.Reloaded(message.id, _reload(relay, config, message.policy)))
            case control.Select():
                relay.select(message.group, message.member)
            case control.Used():
                relay.note_use(message.group)
            case control.PassedOver():
                relay.pass_over(message)
            case control.Egress():
                relay.move(message.v4, message.v6)
            case control.SetLogLevel():
                set_log_level(message.level)
            case control.ListFlows():
                relay.list_flows(message)
            case control.CloseFlow():
                relay.close_flow(message.flow)
            case control.AskDns():
                dns.ask(message.query, OWN_QUESTION, lambda data: channel.send(control.DnsAnswered(message.id, data)))
            case control.FlushDns():
                dns.forget()
            case control.MeasureNow():
                relay.measure_now()
            case control.TapLog():
                tap.set_level(message.level)
            case control.TestDelay():
                relay.test_delay(message)
            case control.LookUp():
                relay.look_up(message)
            case control.TellKeys():
                handover.tell(message)
            case control.Drain():
                handover.drain()

    # The end of the channel is the end of the master.
    channel = channel_to_master(loop, control_socket, on_control, stopped.set)

    tap = LogTap(counters, channel.send)

    link = Link(
        loop,
        ring=pool.ring(config.index),
        free_ring=pool.free_ring(config.index),
        slots=pool.slots,
        doorbell=doorbell,
        tun_fd=tun_fd,
        header_len=config.header_len,
        counters=counters,
    )
    names = KnownNames(fake_ip, pool.answered(config.index))
    dns = WorkerDns(loop, counters, names, fake_ip=config.fake_ip, own=frozenset(config.dns_addresses))
    relay = Relay(loop, config, counters, dns, channel.send)
    dns.find_owner = relay.processes.owner_of
    failure = _load(relay, config.policy)
    if failure is not None:
        channel.send(control.Failed(failure))
        stopped.set()
    stack = Stack(
        config.stack,
        transmit=link.transmit,
        on_syn=relay.on_syn,
        on_datagram=relay.on_datagram,
        secret=config.secret,
        counters=counters,
    )
    relay.stack = stack
    link.stack = stack
    stack.timers.on_earlier = link.rearm

    def refuse_new(known: Set[bytes]) -> None:
        stack.admitted = known

    handover = Handover(
        loop, counters, live=relay.keys, serve_until=link.serve_until, refuse_new=refuse_new, tell=channel.send
    )

    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    if failure is None:
        link.start()
        channel.send(control.Ready(os.getpid()))
    await stopped.wait()

    link.close()
    handover.close()
    stack.close(monotonic())
    relay.close()
    dns.close()
    channel.close()
    return 0 if failure is None else 1


def _marks_sockets(policy: Policy) -> bool:
    """Whether an outbound has a routing_mark."""
    return any(
        outbound.dial.routing_mark is not None
        for outbound in policy.outbounds
        if isinstance(outbound, ProxyOutbound | DirectOutbound)
    )


def _reload(relay: Relay, config: WorkerConfig, policy: Policy) -> str | None:
    """As `_load`, for a worker that has given up its privileges."""
    if _marks_sockets(policy) and not _marks_sockets(config.policy) and config.uid is not None:
        return "routing_mark needs a capability that the workers have given up: restart the engine to use it"
    return _load(relay, policy)


def _load(relay: Relay, policy: Policy) -> str | None:
    """Have new flows follow `policy`; returns what is wrong with it, in one sentence."""
    try:
        relay.load(policy, Compiler(policy.route.rule_sets))
    except ValueError as error:
        return str(error)
    return None
