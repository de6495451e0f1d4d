"""Applies a plan, renews it after the tun was down, and undoes a journal on Linux.

The order within `apply`: kill switch, kernel parameters (they must stand before the interface is up), link, addresses,
routes, rules. Traffic moves with the last rules, when everything before them is in place. The rules are undone first, the
rest in reverse: so traffic moves back before anything that it relies on is taken away.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from engine.netconf import NetworkError
from engine.netconf.journal import Journal, Owner, open_journal
from engine.netconf.life_line import refuse_without_master
from engine.netconf.netlink import Netlink, name_of, open_netlink, proc_sys
from engine.netconf.plan import (
    Bypass,
    Change,
    Family,
    KillSwitch,
    Link,
    LinkState,
    NetworkPlan,
    Route,
    Rule,
    Sysctl,
    plan_addresses,
    plan_bypass,
    plan_kill_switch,
    plan_routes,
    plan_socket_routes,
    socket_table,
)
from engine.netconf.rules import RULE_COUNT, plan_rules

__all__ = ["apply", "renew", "undo"]

QUEUE_LENGTH = 1000
"""Packets that wait while the engine is busy: the default of Ethernet; that of a tun is 500."""
IPV6_MTU_MIN = 1280  # bytes, RFC 8200 (5); the kernel takes IPv6 away from an interface with less
ADDR_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, include/uapi/linux/if_link.h
# rp_filter in Documentation/networking/ip-sysctl.rst; the larger of conf/all and conf/INTERFACE counts
RP_FILTER_STRICT, RP_FILTER_LOOSE = "1", "2"


def apply(plan: NetworkPlan, run_dir: Path, *, guard_fd: int | None = None) -> list[str]:
    """Make the changes of `plan`; return remarks for the user.

    What an earlier run left is undone first; its kill switch is replaced, or opened at last. When a change fails all are
    undone, but a kill switch of before is left closed. When the writing end of the pipe `guard_fd` is closed, nothing is
    done. Raises NetworkError.
    """
    with open_journal(run_dir, create=True) as journal:
        assert journal is not None
        with open_netlink(journal.fileno()) as netlink:
            # We hold the journal's lock: should the master die after this look, its guardian waits, and undoes what we did.
            refuse_without_master(guard_fd)
            return _apply(plan, netlink, journal)


def _apply(plan: NetworkPlan, netlink: Netlink, journal: Journal) -> list[str]:
    _undo_pending(netlink, journal, hold=True)
    held = tuple(journal.pending)
    families, remarks = _usable_families(plan)
    if plan.auto_route:
        _refuse_foreign_rules(netlink, plan, families)
        _refuse_foreign_routes(netlink, plan, families)
    index = netlink.interface_index(plan.interface)
    if index is None:
        raise NetworkError(f"There is no interface {plan.interface!r} in this network namespace.")
    journal.begin(Owner(interface=plan.interface, index=index, namespace=_namespace(), boot=_boot()))
    try:
        for change in _changes(netlink, plan, families, index):
            _make_recorded(netlink, journal, change, index)
    except NetworkError:
        _undo_pending(netlink, journal, hold=bool(held))
        raise
    if plan.kill_switch:
        journal.settle(*held)  # replaced
    else:
        _undo_pending(netlink, journal, only=held)
    return remarks


def renew(run_dir: Path, *, guard_fd: int | None = None) -> list[str]:
    """Make again what the kernel took when the tun was set down, and what other programs have removed; return its names.

    The kill switch is told what is local now. What the journal says is enough: nothing new is recorded. `guard_fd` as in
    `apply`. Raises NetworkError.
    """
    with open_journal(run_dir, create=False) as journal:
        if journal is None or journal.owner is None:
            return []
        refuse_without_master(guard_fd)
        with open_netlink(journal.fileno()) as netlink:
            changes = [change for change in journal.pending.values() if isinstance(change, Change)]
            bypassing = tuple(change.address for change in changes if isinstance(change, Bypass))
            for change in changes:
                if isinstance(change, KillSwitch):
                    hosts = tuple(dict.fromkeys((*change.hosts, *bypassing)))
                    netlink.close_kill_switch(msgspec.structs.replace(change, hosts=hosts), journal.owner.index)
            made, failures = _make_missing(netlink, changes, journal.owner.index)
            if any(isinstance(change, Route) and change.family == 6 for change in made):
                _forget_ways(netlink, journal, changes)
            if failures:
                raise failures[0]
            return [name_of(change) for change in made]


def _make_missing(netlink: Netlink, changes: list[Change], index: int) -> tuple[list[Change], list[NetworkError]]:
    """Goes on after a failure."""
    made, failures = [], []
    for change in changes:
        try:
            if netlink.make_if_missing(change, index):
                made.append(change)
        except NetworkError as error:
            failures.append(error)
    return made, failures


def _forget_ways(netlink: Netlink, journal: Journal, changes: list[Change]) -> None:
    """Let the kernel look again where the packets of each IPv6 socket go. Raises NetworkError.

    It does so when a rule has changed, but not when a route was added (rt_genid_bump_ipv6): a connection that had sent
    something while the route was missing would go past the proxy until its end. So a rule that does nothing comes and goes.
    """
    priorities = [change.priority for change in changes if isinstance(change, Rule) and change.family == 6]
    if priorities:
        assert journal.owner is not None
        passing = Rule(family=6, priority=max(priorities) + 1)
        number = _make_recorded(netlink, journal, passing, journal.owner.index)
        netlink.revert(passing, journal.owner.index)
        journal.settle(number)


def undo(run_dir: Path, *, hold: bool = False) -> int:
    """Undo what the journal in `run_dir` holds; return the number of changes, 0 when there is nothing to undo.

    `hold`: leave the kill switch closed, and in the journal. Raises NetworkError.
    """
    with open_journal(run_dir, create=False) as journal:
        if journal is None or not journal.pending:
            return 0
        count = len(journal.pending)
        with open_netlink(journal.fileno()) as netlink:
            _undo_pending(netlink, journal, hold=hold)
        return count - len(journal.pending)


def _usable_families(plan: NetworkPlan) -> tuple[list[Family], list[str]]:
    """Return the families that the tun can carry or is to close, and a remark for the user when IPv6 is wanted and missing."""
    if not plan_addresses(plan, 6):
        return [4, 6] if plan.strict and _has_ipv6() else [4], []
    if plan.mtu < IPV6_MTU_MIN:
        return [4], [f"IPv6 is left out: it needs an MTU of {IPV6_MTU_MIN} bytes, and the tun has {plan.mtu}."]
    try:
        disabled = proc_sys(f"net/ipv6/conf/{plan.interface}/disable_ipv6").read_text().strip() != "0"
    except FileNotFoundError:  # a kernel without IPv6, or without this interface
        disabled = True
    return ([4], ["IPv6 is left out: it is disabled on this machine."]) if disabled else ([4, 6], [])


def _has_ipv6() -> bool:
    return proc_sys("net/ipv6").exists()


def _refuse_foreign_rules(netlink: Netlink, plan: NetworkPlan, families: list[Family]) -> None:
    """Raise NetworkError when somebody else's rules stand where ours go: the two would interleave."""
    for family in families:
        for priority in netlink.rule_priorities(family):
            if plan.priority <= priority < plan.priority + RULE_COUNT:
                raise NetworkError(
                    f"There is an IPv{family} routing rule of another program at priority {priority} (sing-box uses the "
                    f"same ones): stop that program, or remove it with `ip -{family} rule del priority {priority}`."
                )


def _refuse_foreign_routes(netlink: Netlink, plan: NetworkPlan, families: list[Family]) -> None:
    """Raise NetworkError when somebody else's routes are in our tables: they might win over ours."""
    for family in families:
        for table in plan.table, socket_table(plan.table):
            destinations = netlink.routes_of_table(family, table)
            if destinations:
                raise NetworkError(
                    f"The IPv{family} route table {table} holds a route to {destinations[0]} that is not ours (sing-box uses "
                    f"the table 2022 too): stop the program that made it, or remove it with `ip -{family} route flush table "
                    f"{table}`."
                )


def _namespace() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def _boot() -> str:
    return proc_sys("kernel/random/boot_id").read_text().strip()


def _changes(netlink: Netlink, plan: NetworkPlan, families: list[Family], index: int) -> Iterator[Change]:
    """Give the changes in order; each `before` is read when its turn comes."""
    yield from plan_kill_switch(plan)
    # Packets of every source come out of the tun, whatever the way back to that source is.
    rp_filter = f"net/ipv4/conf/{plan.interface}/rp_filter"
    own = proc_sys(rp_filter).read_text().strip()
    if max(own, proc_sys("net/ipv4/conf/all/rp_filter").read_text().strip()) == RP_FILTER_STRICT:
        yield Sysctl(path=rp_filter, before=own, after=RP_FILTER_LOOSE)
    before = netlink.link_state(index)
    # No link-local address and no soliciting of routers: there is nobody to answer.
    mode = ADDR_GEN_MODE_NONE if 6 in families and plan_addresses(plan, 6) else before.addr_gen_mode
    yield Link(before=before, after=LinkState(mtu=plan.mtu, queue_length=QUEUE_LENGTH, up=True, addr_gen_mode=mode))
    for family in families:
        yield from plan_addresses(plan, family)
        yield from plan_socket_routes(plan, family)
        yield from plan_routes(plan, family)
    yield from plan_bypass(plan.bypass, dict.fromkeys(families, plan.table))
    for family in families:
        yield from plan_rules(plan, family)


def _make_recorded(netlink: Netlink, journal: Journal, change: Change, index: int) -> int:
    """Return the change's number in the journal. Raises NetworkError; then nothing is changed."""
    (number,) = journal.record(change)
    try:
        netlink.make(change, index)
    except NetworkError:
        journal.settle(number)  # undoing it might remove an equal thing of somebody else
        raise
    return number


def _undo_pending(
    netlink: Netlink, journal: Journal, *, hold: bool = False, only: Collection[int] | None = None
) -> None:
    """Undo pending changes: all, all but the kill switch (`hold`), or those with the numbers `only`.

    Goes on after a failure, and raises NetworkError for the first in the end.
    """
    owner = journal.owner
    if not journal.pending or owner is None:
        return
    if owner.boot != _boot():
        journal.settle(*journal.pending)  # by the reboot
        return
    if owner.namespace != _namespace():
        raise NetworkError(
            f"The journal {journal.path} belongs to another network namespace: run `engine repair` there; or delete the "
            "file, if that namespace is gone."
        )
    index = owner.index if netlink.interface_index(owner.interface) == owner.index else None
    failures = []
    for number, change in _in_order_of_undoing(journal):
        if (hold and isinstance(change, KillSwitch)) or (only is not None and number not in only):
            continue
        try:
            netlink.revert(change, index)
        except NetworkError as error:
            failures.append(error)
        else:
            journal.settle(number)
    if failures:
        raise failures[0]


def _in_order_of_undoing(journal: Journal) -> list[tuple[int, Change]]:
    """The rules first, then the rest in reverse; the kill switch, which was made first, comes last."""
    latest_first = [(number, change) for number, change in journal.pending.items() if isinstance(change, Change)][::-1]
    return sorted(latest_first, key=lambda entry: not isinstance(entry[1], Rule))
