"""`engine status` for people."""

from time import localtime, strftime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.present_rights import Rights
from engine.requests import EngineStatus, NetworkStatus, OutboundHealth, WorkerStatus

__all__ = ["print_status"]

EVENTS_SHOWN = 8
"""Of the network; all that are remembered are in `--json`."""


def print_status(status: EngineStatus) -> None:
    """Print the engine's state as two tables."""
    console = Console()
    link = "" if status.link_up else "[red]down[/], "
    offload = ", ".join(status.offload) or "none"
    console.print(
        f"[bold]tunloom {status.version}[/], pid {status.pid}, up {_duration(status.uptime)}, mode {escape(status.mode)}\n"
        f"{escape(status.interface)} ({link}mtu {status.mtu}, offload: {offload}) -> {escape(status.proxy)}, "
        f"UDP: {escape(status.udp)}\n"
        f"read {status.packets_in:,} packets, {_bytes(status.bytes_in)}; "
        f"{status.pool_free} of {status.pool_slots} slots free; "
        f"dropped: {_drops({'tun_queue_full': status.tun_dropped} | status.drops)}\n"
        f"guardian: {f'pid {status.guardian_pid}' if status.guardian_pid else '[red]none[/]'}, "
        f"{status.guardian_restarts} restarts; kill switch: {'closed' if status.kill_switch else 'not used'}; "
        f"memory: {_memory(status)}\n"
        f"workers confined by: {_confinement(status.rights)}; capabilities of the master: "
        f"{', '.join(name.removeprefix('CAP_').lower() for name in status.rights.capabilities) or 'none'}"
    )
    _print_outbounds(console, status.outbounds)
    _print_network(console, status.network)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("#", "pid", "state", "restarts", "TCP", "UDP", "in", "out", "dropped"):
        numeric = title not in ("state", "dropped")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=title != "dropped")
    for worker in status.workers:
        table.add_row(
            str(worker.index),
            str(worker.pid or "-"),
            _state(worker),
            str(worker.restarts),
            f"{worker.tcp_active:,}",
            f"{worker.udp_active:,}",
            f"{worker.packets_in:,}",
            f"{worker.packets_out:,}",
            _drops(worker.drops),
        )
    console.print(table)
    for worker in status.workers:
        if worker.last_end:
            console.print(f"worker {worker.index}: the one before it {escape(worker.last_end)}")
    workers = status.workers
    if without_port := _sum(workers, "no_local_port"):
        console.print(f"{without_port:,} connections found no local port: widen net.ipv4.ip_local_port_range")
    console.print(
        f"in all: {_sum(workers, 'tcp_opened'):,} TCP and {_sum(workers, 'udp_opened'):,} UDP flows opened, "
        f"{_sum(workers, 'connect_failed'):,} connects failed, {_sum(workers, 'tcp_retransmits'):,} retransmits, "
        f"{_bytes(_sum(workers, 'bytes_out'))} to applications"
    )


def _print_outbounds(console: Console, outbounds: list[OutboundHealth]) -> None:
    """Those that flows have tried, and groups with the member that they use."""
    told = []
    for outbound in outbounds:
        if outbound.used is not None:
            dead = [f"{member} for {seconds:.0f} s" for member, seconds in outbound.passed_over.items()]
            told.append(f"{outbound.tag} -> {outbound.used}" + (f" (passes over {', '.join(dead)})" if dead else ""))
        elif outbound.works is not None:
            told.append(f"{outbound.tag} {'works' if outbound.works else 'fails'}")
    if told:
        console.print(f"outbounds: {escape(', '.join(told))}")


def _print_network(console: Console, network: NetworkStatus) -> None:
    """Where the machine leaves by itself, and what has happened there."""
    ways = [
        f"IPv{way.family} by {way.interface}{f' ({way.gateway})' if way.gateway else ''} as {', '.join(way.addresses) or '?'}"
        for way in network.ways_out
    ]
    if ways:
        console.print(f"past the tun: {escape('; '.join(ways))}")
    for event in network.events[-EVENTS_SHOWN:]:
        console.print(f"{strftime('%Y-%m-%d %H:%M:%S', localtime(event.time))} {escape(event.text)}")


def _state(worker: WorkerStatus) -> str:
    if worker.drain_left is None:
        return worker.state
    return f"{worker.state}, {_duration(max(worker.drain_left, 0.0))} left"


def _sum(workers: list[WorkerStatus], field: str) -> int:
    return sum(getattr(worker, field) for worker in workers)


def _confinement(rights: Rights) -> str:
    means = ["their user"]
    means += [f"Landlock (ABI {rights.landlock})"] if rights.landlock else []
    means += ["a filter of system calls"] if rights.seccomp else []
    return ", ".join(means)


def _memory(status: EngineStatus) -> str:
    """The master's, that of the HTTP process if there is one, and that of each worker."""
    sizes = [
        status.memory,
        *([status.http_memory] if status.http_pid else []),
        *(worker.memory for worker in status.workers),
    ]
    return " + ".join("?" if size is None else _bytes(size) for size in sizes)


def _drops(drops: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in drops.items() if count) or "nothing"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
