"""Applies a plan, follows the machine to another network, and undoes a journal on macOS.

The order within `apply`: MTU, addresses, host routes of what must not enter the tun, routes into it, name servers. Traffic
moves with the routes, when everything before them is in place. All is undone in reverse.

The tun, its addresses and the routes by way of it go with the last descriptor of it; host routes do not, and name servers
outlive even a reboot. So the journal has all of them, and what is left of them after a crash is undone from it.
"""

from pathlib import Path

import msgspec

from engine.netconf import NetworkError
from engine.netconf.darwin_kernel import DarwinKernel, as_host_route, boot_session, open_kernel
from engine.netconf.darwin_plan import (
    DarwinChange,
    HostRoute,
    NameServers,
    TunAddress,
    TunRoute,
    plan_tun_addresses,
    plan_tun_routes,
)
from engine.netconf.journal import Journal, Owner, open_journal
from engine.netconf.life_line import refuse_without_master
from engine.netconf.plan import NetworkPlan

__all__ = ["apply", "renew", "undo"]

IPV6_MTU_MIN = 1280  # bytes, RFC 8200 (5)


def apply(plan: NetworkPlan, run_dir: Path, *, guard_fd: int | None = None) -> list[str]:
    """See engine.netconf.linux.apply."""
    with open_journal(run_dir, create=True) as journal:
        assert journal is not None
        with open_kernel() as kernel:
            refuse_without_master(guard_fd)
            return _apply(plan, kernel, journal)


def _apply(plan: NetworkPlan, kernel: DarwinKernel, journal: Journal) -> list[str]:
    _undo_pending(kernel, journal)
    plan, remarks = _without_ipv6(plan) if plan.mtu < IPV6_MTU_MIN else (plan, [])
    index = kernel.interface_index(plan.interface)
    if index is None:
        raise NetworkError(f"There is no interface {plan.interface!r}.")
    journal.begin(Owner(interface=plan.interface, index=index, namespace=0, boot=boot_session()))
    try:
        kernel.set_mtu(plan.interface, plan.mtu)
        for address in plan_tun_addresses(plan):
            _make_recorded(kernel, journal, address, plan.interface)
        if plan.auto_route:
            for host in dict.fromkeys((*plan.upstreams, *plan.bypass)):
                route = kernel.host_route(host, index)
                if route is not None:
                    _make_recorded(kernel, journal, route, plan.interface)
        for tun_route in plan_tun_routes(plan):
            _make_recorded(kernel, journal, tun_route, plan.interface)
        _take_name_servers(kernel, journal, plan.name_servers, plan.interface)
        if plan.strict and len({address.family for address in plan_tun_addresses(plan)}) < 2:
            remarks.append(
                "strict_route has no effect on macOS: a family without an address of the tun leaves past it."
            )
        if plan.auto_route and not plan.name_servers:
            remarks += [
                f"Names are asked of {server}, which is reached past the tun: others on the local network see them."
                for server in kernel.local_resolvers(index)
            ]
    except NetworkError:
        _undo_pending(kernel, journal)
        raise
    return remarks


def _without_ipv6(plan: NetworkPlan) -> tuple[NetworkPlan, list[str]]:
    addresses = tuple(address for address in plan.addresses if ":" not in address)
    if addresses == plan.addresses:
        return plan, []
    remark = f"IPv6 is left out: it needs an MTU of {IPV6_MTU_MIN} bytes, and the tun has {plan.mtu}."
    return msgspec.structs.replace(plan, addresses=addresses), [remark]


def renew(run_dir: Path, *, guard_fd: int | None = None) -> list[str]:
    """Follow the machine to its present network: return the names of the changes made.

    Hosts that leave beside the tun do so by the default route of now, routes into the tun that were lost are made again, and
    network services that have appeared get our name servers. Raises NetworkError.
    """
    with open_journal(run_dir, create=False) as journal:
        if journal is None or journal.owner is None:
            return []
        refuse_without_master(guard_fd)
        with open_kernel() as kernel:
            return _renew(kernel, journal, journal.owner)


def _renew(kernel: DarwinKernel, journal: Journal, owner: Owner) -> list[str]:
    made = []
    for number, change in tuple(journal.pending.items()):
        if isinstance(change, HostRoute):
            now = as_host_route(change.address, change.family, kernel.default_route(change.family, owner.index))
            if now == change:
                is_made = kernel.make_if_missing(change, owner.interface)
            else:
                # The new one has the old one's place in the kernel's table: the old one must go before.
                kernel.revert(change, owner.interface)
                journal.settle(number)
                _make_recorded(kernel, journal, now, owner.interface)
                is_made = True
            made += [f"the route that lets {change.address} bypass the tun"] if is_made else []
        elif isinstance(change, TunAddress | TunRoute) and kernel.make_if_missing(change, owner.interface):
            made.append(_name_of(change))
    settings = [change for change in journal.pending.values() if isinstance(change, NameServers)]
    if settings:
        count = _take_name_servers(
            kernel, journal, settings[0].after, owner.interface, known={change.service for change in settings}
        )
        made += ["the name servers of a network service"] * count
    return made


def _name_of(change: TunAddress | TunRoute) -> str:
    if isinstance(change, TunRoute):
        return f"the route to {change.destination}"
    return f"the address {change.address} of the tun"


def undo(run_dir: Path, *, hold: bool = False) -> int:
    """See engine.netconf.linux.undo; there is no kill switch that could hold."""
    with open_journal(run_dir, create=False) as journal:
        if journal is None or not journal.pending:
            return 0
        count = len(journal.pending)
        with open_kernel() as kernel:
            _undo_pending(kernel, journal)
        return count - len(journal.pending)


def _take_name_servers(
    kernel: DarwinKernel, journal: Journal, servers: tuple[str, ...], interface: str, *, known: set[str] | None = None
) -> int:
    """Give the servers to every network service that is not `known`; return how many there were."""
    if not servers:
        return 0
    changes = [change for change in kernel.name_servers(servers) if change.service not in (known or ())]
    for change in changes:
        _make_recorded(kernel, journal, change, interface)
    if changes:
        kernel.flush_names()
    return len(changes)


def _make_recorded(kernel: DarwinKernel, journal: Journal, change: DarwinChange, interface: str) -> None:
    (number,) = journal.record(change)
    try:
        kernel.make(change, interface)
    except NetworkError:
        journal.settle(number)
        raise


def _undo_pending(kernel: DarwinKernel, journal: Journal) -> None:
    """Undo in reverse. Goes on after a failure, and raises NetworkError for the first in the end."""
    owner = journal.owner
    if not journal.pending or owner is None:
        return
    rebooted = owner.boot != boot_session()
    interface = owner.interface if kernel.interface_index(owner.interface) == owner.index else None
    failures = []
    restored = False
    for number, change in reversed(tuple(journal.pending.items())):
        try:
            if isinstance(change, NameServers):
                kernel.revert(change, interface)
                restored = True
            elif isinstance(change, DarwinChange) and not rebooted:  # routes are gone with the kernel that had them
                kernel.revert(change, interface)
        except NetworkError as error:
            failures.append(error)
        else:
            journal.settle(number)
    if restored:
        kernel.flush_names()
    if failures:
        raise failures[0]
