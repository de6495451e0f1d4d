"""Lets single hosts leave beside the tun while the engine runs: the remote servers of a proxy on this machine.

Journaled and undone like all other changes, but made in the master: each takes microseconds, and there are many.
"""

from collections.abc import Iterable
from pathlib import Path

from engine.netconf import NetworkError
from engine.netconf.journal import Journal, open_journal
from engine.netconf.kill_switch import admit, dismiss, set_local
from engine.netconf.plan import Bypass, Family, KillSwitch, Route, plan_bypass
from engine.netconf.throw import ThrowRoutes, open_throw_routes

__all__ = ["BYPASS_MAX", "add_bypass", "follow_local_networks", "remove_bypass", "still_wanted"]

BYPASS_MAX = 4096
"""Hosts at a time; beyond it the ones that were added first go back into the tun."""


def add_bypass(run_dir: Path, addresses: Iterable[str]) -> int:
    """Let `addresses` leave beside the tun from now on; return how many others had to make room.

    Those that do so already are left as they are, and so are those of a family that does not go into the tun. Raises
    NetworkError when not all could be done.
    """
    addresses = tuple(addresses)
    with open_journal(run_dir, create=False) as journal:
        if journal is None:
            return 0
        present = _present(journal)
        wanted = _plan(journal, addresses)
        missing = [bypass for bypass in dict.fromkeys(wanted) if bypass not in present][:BYPASS_MAX]
        if not missing:
            return 0
        surplus = list(present.items())[: max(len(present) + len(missing) - BYPASS_MAX, 0)]
        try:
            with open_throw_routes() as routes:
                _remove(journal, routes, surplus)
                _make(journal, routes, missing)
        except OSError as error:
            raise NetworkError(f"A host cannot be let out beside the tun: {error.strerror}.") from error
        return len(surplus)


def remove_bypass(run_dir: Path, addresses: Iterable[str]) -> None:
    """Lead `addresses` into the tun again; those that do not bypass it are left as they are. Raises NetworkError."""
    addresses = tuple(addresses)
    with open_journal(run_dir, create=False) as journal:
        if journal is None:
            return
        present = _present(journal)
        wanted = _plan(journal, addresses)
        try:
            with open_throw_routes() as routes:
                _remove(journal, routes, [(bypass, present[bypass]) for bypass in wanted if bypass in present])
        except OSError as error:
            raise NetworkError(f"A host cannot be led into the tun again: {error.strerror}.") from error


def still_wanted(run_dir: Path, bypasses: Iterable[Bypass]) -> bool:
    """Whether any of these is to be there; somebody else has removed it, then. Raises NetworkError."""
    with open_journal(run_dir, create=False) as journal:
        return journal is not None and not _present(journal).keys().isdisjoint(bypasses)


def follow_local_networks(run_dir: Path, prefixes: Iterable[str]) -> None:
    """Let the kill switch, if one is closed, pass what is for these networks, and no others. Raises NetworkError."""
    with open_journal(run_dir, create=False) as journal:
        if journal is not None and _kill_switch(journal) is not None:
            set_local(prefixes, journal.fileno())


def _plan(journal: Journal, addresses: Iterable[str]) -> list[Bypass]:
    tables: dict[Family, int] = {}
    for route in journal.pending.values():
        if isinstance(route, Route):  # of the two tables, the one of sockets comes after ours (plan.socket_table)
            tables[route.family] = min(route.table, tables.get(route.family, route.table))
    return plan_bypass(addresses, tables)


def _kill_switch(journal: Journal) -> KillSwitch | None:
    switches = [change for change in journal.pending.values() if isinstance(change, KillSwitch)]
    return switches[-1] if switches else None


def _present(journal: Journal) -> dict[Bypass, int]:
    """Each bypass with its number in the journal, in the order in which they were made."""
    return {change: number for number, change in journal.pending.items() if isinstance(change, Bypass)}


def _make(journal: Journal, routes: ThrowRoutes, missing: list[Bypass]) -> None:
    numbers = journal.record(*missing)
    if _kill_switch(journal) is not None:
        try:
            admit([bypass.address for bypass in missing], journal.fileno())
        except NetworkError:
            journal.settle(*numbers)
            raise
    for position, bypass in enumerate(missing):
        try:
            routes.make(bypass)
        except FileExistsError:
            pass  # ours, of a crash between undoing and settling: it does what it shall
        except OSError:
            journal.settle(*numbers[position:])
            raise


def _remove(journal: Journal, routes: ThrowRoutes, doomed: list[tuple[Bypass, int]]) -> None:
    switch = _kill_switch(journal)
    if switch is not None:
        dismiss({bypass.address for bypass, _ in doomed}.difference(switch.hosts), journal.fileno())
    removed = []
    try:
        for bypass, number in doomed:
            try:
                routes.remove(bypass)
            except ProcessLookupError:
                pass  # somebody has removed it already
            removed.append(number)
    finally:
        journal.settle(*removed)
