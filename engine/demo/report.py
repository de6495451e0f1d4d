"""What the demo found, for people and for programs."""

import msgspec
from rich.console import Console
from rich.table import Table

from engine.demo.load import BULK_FLOWS, PHASES
from engine.demo.meter import PhaseResult

__all__ = ["DemoReport", "make_report", "print_report"]


class DemoReport(msgspec.Struct, kw_only=True):
    """The object that `engine demo --json` prints."""

    ok: bool
    """Every check was passed."""
    workers: int
    flows_per_worker: list[int]
    """TCP connections and UDP associations that each worker has carried."""
    tcp_up_gbit_s: float
    tcp_down_gbit_s: float
    connections_per_s: float
    """Connect, send 32 bytes, get them back, close."""
    http_requests_per_s: float
    udp_sent: int
    udp_received: int
    udp_by_size: dict[int, tuple[int, int]]
    """Payload bytes -> (datagrams sent, received)."""
    bytes_verified: int
    """Payload bytes that were compared with those sent, and equal."""
    checks: dict[str, bool]
    errors: list[str]


def make_report(
    phases: dict[str, PhaseResult], checks: dict[str, str], flows_per_worker: list[int], workers: int
) -> DemoReport:
    """Sum up. `checks` are those beside the phases: name -> error, empty when passed."""
    errors = [f"{name}: {error}" for name, phase in phases.items() for error in phase.errors]
    errors += [f"{name}: {error}" for name, error in checks.items() if error]
    missing = [name for name in PHASES if name not in phases]
    passed = {name: name in phases and not phases[name].errors for name in PHASES}
    passed |= {name: not error for name, error in checks.items()}

    def rate(name: str) -> float:
        return round(phases[name].rate, 3) if name in phases else 0.0

    by_size: dict[int, tuple[int, int]] = {}
    for phase in phases.values():
        for size, (sent, received) in phase.datagrams.items():
            sent_before, received_before = by_size.get(size, (0, 0))
            by_size[size] = sent_before + sent, received_before + received
    return DemoReport(
        ok=not errors and not missing,
        workers=workers,
        flows_per_worker=flows_per_worker,
        tcp_up_gbit_s=rate("tcp_up"),
        tcp_down_gbit_s=rate("tcp_down"),
        connections_per_s=rate("connections"),
        http_requests_per_s=rate("http"),
        udp_sent=sum(sent for sent, _ in by_size.values()),
        udp_received=sum(received for _, received in by_size.values()),
        udp_by_size=by_size,
        bytes_verified=sum(phase.bytes_verified for phase in phases.values()),
        checks=passed,
        errors=errors,
    )


def print_report(report: DemoReport, console: Console) -> None:
    """Print what there is of tables, the errors and one sentence."""
    if report.bytes_verified:
        console.print(_measurements(report))
        console.print(_datagrams(report))
    console.print(_checks(report))
    for error in report.errors:
        console.print(f"✗ {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(_sentence(report), style="bold green" if report.ok else "bold red", highlight=False, soft_wrap=True)


def _measurements(report: DemoReport) -> Table:
    table = Table("measured", "")
    table.columns[1].justify = "right"
    table.add_row(f"TCP up, {BULK_FLOWS} flows", f"{report.tcp_up_gbit_s:.2f} Gbit/s")
    table.add_row(f"TCP down, {BULK_FLOWS} flows", f"{report.tcp_down_gbit_s:.2f} Gbit/s")
    table.add_row("new connections", f"{report.connections_per_s:,.0f} /s")
    table.add_row("HTTP requests, keep-alive", f"{report.http_requests_per_s:,.0f} /s")
    for worker, flows in enumerate(report.flows_per_worker):
        table.add_row(f"flows on worker {worker}", f"{flows:,}")
    table.add_row("bytes verified", f"{report.bytes_verified:,}")
    return table


def _datagrams(report: DemoReport) -> Table:
    table = Table("UDP payload", "sent", "received")
    for column in table.columns:
        column.justify = "right"
    for size, (sent, received) in sorted(report.udp_by_size.items()):
        table.add_row(f"{size:,} bytes", str(sent), str(received), style="" if sent == received else "red")
    return table


def _checks(report: DemoReport) -> Table:
    table = Table("checked", "")
    for name, passed in report.checks.items():
        table.add_row(CHECKS[name], "[green]✓[/]" if passed else "[red]✗[/]")
    return table


def _sentence(report: DemoReport) -> str:
    if not report.ok:
        return "The demo failed: see the lines marked ✗."
    return (
        f"All {report.bytes_verified / 1e9:.1f} GB and {report.udp_received:,} datagrams went through the proxy on "
        f"{report.workers} {'worker' if report.workers == 1 else 'workers'} and arrived unchanged."
    )


CHECKS = {
    "completed": "every part started, and ran to its end",
    "tcp_up": "upload: the server got every byte, in its place",
    "tcp_down": "download: the client got every byte, in its place",
    "connections": "short connections: each got its own token back",
    "http": "HTTP: each request got its own answer",
    "udp_ipv4": "UDP over IPv4: every datagram came back once, unchanged",
    "udp_ipv6": "UDP over IPv6: every datagram came back once, unchanged",
    "refused": "a refused port is reported as refused",
    "unreachable": "an unreachable address is reported as unreachable",
    "no_direct_path": "without the engine, no target can be reached",
    "all_workers_used": "every worker carried flows",
    "engine_stopped": "the engine stopped with exit code 0",
    "network_restored": "links, addresses, routes and rules are as before",
    "nothing_left": "no process of the engine was left behind",
}
"""Name of each check in the JSON -> what it means."""
