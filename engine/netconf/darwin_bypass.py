"""Lets single hosts leave beside the tun while the engine runs, by host routes: engine/netconf/bypass.py's sibling for macOS."""

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from engine.netconf.bypass import BYPASS_MAX
from engine.netconf.darwin_kernel import open_kernel
from engine.netconf.darwin_plan import HostRoute, TunRoute
from engine.netconf.journal import Journal, open_journal

__all__ = ["add_bypass", "remove_bypass"]


def add_bypass(run_dir: Path, addresses: Iterable[str]) -> int:
    """See engine.netconf.bypass.add_bypass. Raises NetworkError when not all could be done."""
    hosts = [str(ip_address(address)) for address in addresses]
    with open_journal(run_dir, create=False) as journal:
        if journal is None or journal.owner is None:
            return 0
        interface, index = journal.owner.interface, journal.owner.index
        routed = {change.family for change in journal.pending.values() if isinstance(change, TunRoute)}
        present = _present(journal)
        missing = [host for host in dict.fromkeys(hosts) if host not in present and ip_address(host).version in routed]
        missing = missing[:BYPASS_MAX]
        surplus = list(present)[: max(len(present) + len(missing) - BYPASS_MAX, 0)]
        with open_kernel() as kernel:
            for host in surplus:
                kernel.revert(present[host][1], interface)
                journal.settle(present[host][0])
            for host in missing:
                route = kernel.host_route(host, index)
                if route is not None:
                    (number,) = journal.record(route)
                    try:
                        kernel.make(route, interface)
                    except BaseException:
                        journal.settle(number)
                        raise
        return len(surplus)


def remove_bypass(run_dir: Path, addresses: Iterable[str]) -> None:
    """See engine.netconf.bypass.remove_bypass."""
    with open_journal(run_dir, create=False) as journal:
        if journal is None or journal.owner is None:
            return
        present = _present(journal)
        doomed = [present[host] for host in map(str, map(ip_address, addresses)) if host in present]
        with open_kernel() as kernel:
            for number, route in doomed:
                kernel.revert(route, journal.owner.interface)
                journal.settle(number)


def _present(journal: Journal) -> dict[str, tuple[int, HostRoute]]:
    """Each host with its number in the journal and its route, in the order in which they were made."""
    pending = journal.pending.items()
    return {change.address: (number, change) for number, change in pending if isinstance(change, HostRoute)}
