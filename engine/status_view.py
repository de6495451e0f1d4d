"""`engine status` for people."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.control import EngineStatus

__all__ = ["print_status"]


def print_status(status: EngineStatus) -> None:
    """Print the engine's state as two tables."""
    console = Console()
    offload = ", ".join(status.offload) or "none"
    console.print(
        f"[bold]tunloom {status.version}[/], pid {status.pid}, up {_duration(status.uptime)}\n"
        f"{escape(status.interface)} (mtu {status.mtu}, offload: {offload}) -> {escape(status.proxy)}, "
        f"UDP: {escape(status.udp)}\n"
        f"read {status.packets_in:,} packets, {_bytes(status.bytes_in)}; "
        f"{status.pool_free} of {status.pool_slots} slots free; "
        f"dropped: {_drops({'tun_queue_full': status.tun_dropped} | status.drops)}"
    )
    table = Table()
    table.add_column("worker")
    for title in ("pid", "state", "restarts", "TCP", "UDP", "in", "out", "retransmits", "connect failed"):
        table.add_column(title, justify="right")
    table.add_column("dropped")
    for worker in status.workers:
        table.add_row(
            str(worker.index),
            str(worker.pid or "-"),
            worker.state,
            str(worker.restarts),
            f"{worker.tcp_active:,} of {worker.tcp_opened:,}",
            f"{worker.udp_active:,} of {worker.udp_opened:,}",
            f"{worker.packets_in:,}",
            f"{worker.packets_out:,}, {_bytes(worker.bytes_out)}",
            f"{worker.tcp_retransmits:,}",
            f"{worker.connect_failed:,}",
            _drops(worker.drops),
        )
    console.print(table)


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
