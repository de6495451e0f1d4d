"""Puts discovery together: candidates of all sources, each probed, with the program that holds it; then the choice."""

import asyncio
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from engine.discovery import Access, Candidate, Found
from engine.discovery.environment import environment_candidates
from engine.discovery.ports import port_candidates
from engine.discovery.probe import probe
from engine.discovery.settings import settings_candidates
from engine.processes import ProcessError, ProcessTable, open_process_table
from shared.config import ProxyConfig
from shared.process import ProcessInfo

__all__ = ["Discovery", "discover", "report"]

LOCAL_TIMEOUT, REMOTE_TIMEOUT = 1.0, 4.0
"""Seconds for each protocol that is tried on a port of this machine, of another one."""
CANDIDATES_MAX = 64
"""Candidates that are probed, the most trusted ones; a machine has two or three."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found; the best first."""

    found: tuple[Found, ...]
    remarks: tuple[str, ...]
    """Settings that cannot be used, and why."""

    @property
    def chosen(self) -> ProxyConfig | None:
        """The proxy to use; None: there is none that works as it is."""
        best = self.found[0] if self.found else None
        if best is None or best.kind is None:
            return None
        return msgspec.structs.replace(best.candidate.proxy, kind=best.kind)


async def discover(*, own_uid: int) -> Discovery:
    """Look everywhere. `own_uid`: user of the engine's workers, whose ports are no proxies."""
    try:
        table: ProcessTable | None = open_process_table()
    except ProcessError:
        table = None
    try:
        return await _discover(table, own_uid)
    finally:
        if table is not None:
            table.close()


async def _discover(table: ProcessTable | None, own_uid: int) -> Discovery:
    loop = asyncio.get_running_loop()
    from_environment, remarks = environment_candidates()
    from_settings, more_remarks = await loop.run_in_executor(None, settings_candidates)
    candidates: dict[tuple[str, int], Candidate] = {}
    for candidate in (*from_environment, *from_settings, *await port_candidates(table)):
        candidates.setdefault((_plain(candidate.proxy.host), candidate.proxy.port), candidate)
    chosen = list(candidates.values())[:CANDIDATES_MAX]
    found = await asyncio.gather(*(_examine(candidate, table, own_uid) for candidate in chosen))
    return Discovery(tuple(sorted(found, key=lambda one: (one.kind is None, *one.rank))), (*remarks, *more_remarks))


def _plain(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


async def _examine(candidate: Candidate, table: ProcessTable | None, own_uid: int) -> Found:
    address = _address(candidate.proxy.host)
    local = address is not None and address.is_loopback
    holder, ours = None, False
    if table is not None and address is not None:
        holder = _holder(table, address, candidate.proxy.port)
        ours = holder is not None and _is_ours(table, holder, own_uid)
    speech = await probe(candidate.proxy, timeout=LOCAL_TIMEOUT if local else REMOTE_TIMEOUT)
    return Found(candidate, speech, holder, ours)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(_plain(host))
    except ValueError:
        return None


def _holder(table: ProcessTable, address: IPv4Address | IPv6Address, port: int) -> ProcessInfo | None:
    try:
        sock = table.listener(address.packed, port)
    except ProcessError:
        return None
    if sock is None:
        return None
    holder = table.holders([sock.inode], uids=[sock.uid]).get(sock.inode)
    return table.describe(holder.pid if holder is not None else None, sock.uid)


def _is_ours(table: ProcessTable, holder: ProcessInfo, own_uid: int) -> bool:
    """Tell whether an engine holds the port: its worker, itself, or one of its kin."""
    if holder.uid == own_uid or holder.pid == os.getpid():
        return True
    arguments = table.arguments(holder.pid) if holder.pid is not None else ()
    names = [os.path.basename(argument) for argument in arguments[:2]]
    return "start" in arguments and ("engine" in arguments[:5] or "engine" in names or "tunloom" in names)


def report(discovery: Discovery) -> list[str]:
    """Return what was found as lines for the user, without passwords."""
    lines = [f"  {_describe(found)}" for found in discovery.found]
    return lines + [f"  {remark}" for remark in discovery.remarks]


def _describe(found: Found) -> str:
    candidate, speech = found.candidate, found.speech
    proxy = candidate.proxy
    where = f"[{proxy.host}]:{proxy.port}" if ":" in proxy.host else f"{proxy.host}:{proxy.port}"
    held = ""
    if found.holder is not None and found.holder.pid is not None:
        held = f", held by {found.holder.name or 'a program'} (pid {found.holder.pid})"
    if found.ours:
        return f"{where} ({candidate.origin}): the engine's own{held}"
    if speech.trouble:
        return f"{where} ({candidate.origin}): {speech.trouble}{held}"
    spoken = []
    for name, access in ("SOCKS5", speech.socks5), ("SOCKS4", speech.socks4), ("HTTP", speech.http):
        if access is Access.OPEN:
            udp = (" with UDP" if speech.udp else " without UDP") if name == "SOCKS5" else ""
            spoken.append(f"{name}{udp}")
        elif access is not Access.NO:
            spoken.append(f"{name}, which {access.value}")
    advice = ""
    if found.kind is None:
        scheme = "socks5" if speech.socks5 is not Access.NO else "http"
        advice = f"; to use it: TUNLOOM_PROXY={scheme}://USER:PASSWORD@{where}"
    return f"{where} ({candidate.origin}): {', '.join(spoken)}{held}{advice}"
