"""All examinations, one after the other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from engine.config.model import EngineConfig, TunConfig
from engine.config.resolve import ResolveError, resolve
from engine.control import NotRunning, ask
from engine.doctor import Finding
from engine.doctor.machine import examine_machine
from engine.doctor.proxies import examine_proxies
from engine.requests import EngineStatus, Status

__all__ = ["examine"]

LINUX_NETWORK = Path("/proc/sys/net")


def examine(config: EngineConfig | None, *, workers: int, run_dir: Path) -> Iterator[Finding]:
    """Look at everything; `config` None: no proxy is known, so that none is examined."""
    status = _running(run_dir)
    if status is not None:
        yield _engine(status)
    yield from examine_machine(workers)
    if LINUX_NETWORK.exists():
        from engine.doctor.network import examine_network

        yield from examine_network(
            run_dir,
            TunConfig() if config is None else config.tun,
            running=status is not None,
            own_interface=None if status is None else status.interface,
        )
    if config is None:
        yield Finding(
            "proxy",
            "warning",
            "no proxy is named and none was found here",
            "name yours: `engine doctor --proxy socks5://HOST:PORT`",
        )
        return
    for warning in config.warnings:
        yield Finding("config", "warning", warning.replace(": warning: ", ": ", 1), "see the line")
    try:
        resolved, troubles = resolve(config)
    except ResolveError as error:
        yield Finding("proxy", "error", str(error), "correct the name, or check the resolver")
        return
    for trouble in troubles:
        yield Finding("proxy", "warning", trouble, "correct the name, or check the resolver")
    yield from asyncio.run(examine_proxies(resolved.policy.outbounds))


def _running(run_dir: Path) -> EngineStatus | None:
    try:
        return ask(run_dir, Status()).status
    except NotRunning:
        return None


def _engine(status: EngineStatus) -> Finding:
    restarts = sum(worker.restarts for worker in status.workers)
    if restarts or status.guardian_restarts:
        ends = "; ".join(f"worker {worker.index} {worker.last_end}" for worker in status.workers if worker.last_end)
        return Finding(
            "engine",
            "warning",
            f"an engine is running (pid {status.pid}), of which {restarts} workers and {status.guardian_restarts} guardians "
            f"had to be replaced{f' ({ends})' if ends else ''}",
            "its log says more; please report a worker that dies by itself",
        )
    return Finding("engine", "ok", f"an engine is running (pid {status.pid}, {status.interface})")
