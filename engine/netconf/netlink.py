"""The Linux kernel's side of one change: how it is made, how it is taken back, how it is read.

Everything of pyroute2, and all its untyped messages, stays in this module (and in survey.py, which only reads).
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from engine.netconf import NetworkError, kill_switch
from engine.netconf.plan import (
    TABLE_MAIN,
    Address,
    Bypass,
    Change,
    Family,
    KillSwitch,
    Link,
    LinkState,
    Route,
    Rule,
    Sysctl,
)
from engine.netconf.throw import ThrowRoutes, open_throw_routes

__all__ = ["Netlink", "name_of", "open_netlink", "proc_sys"]

FAMILIES: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
IFF_UP = 0x1  # include/uapi/linux/if.h
FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_UNREACHABLE = 1, 2, 3, 7  # include/uapi/linux/fib_rules.h
FIB_RULE_INVERT = 0x2  # include/uapi/linux/fib_rules.h
MARK_MASK_ALL = 0xFFFFFFFF

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)
"""How the kernel says that the thing to remove does not exist."""


def proc_sys(path: str) -> Path:
    """Return the file of the kernel parameter `path`; those below net/ are of this process's network namespace."""
    return Path("/proc/sys") / path


@contextmanager
def open_netlink(lock: int) -> Iterator["Netlink"]:
    """Give a connection to the kernel; `lock`: the journal's. Raises NetworkError when there is none to be had."""
    with ExitStack() as sockets:
        try:
            netlink = Netlink(sockets.enter_context(IPRoute()), sockets.enter_context(open_throw_routes()), lock)
        except OSError as error:
            raise NetworkError(f"The kernel gives no netlink socket: {error.strerror}.") from error
        yield netlink


class Netlink:
    """Makes and reverts changes. Where a method takes `index` it is the interface index of the tun."""

    def __init__(self, route: Any, throw_routes: ThrowRoutes, lock: int) -> None:
        self._route = route
        self._lock = lock
        self._throw_routes = throw_routes

    def interface_index(self, name: str) -> int | None:
        """Return the index of an interface, None when there is none of this name."""
        indexes: list[int] = self._route.link_lookup(ifname=name)
        return indexes[0] if indexes else None

    def link_state(self, index: int) -> LinkState:
        """Return what `Link` changes, as it is now."""
        message = self._route.get_links(index)[0]
        return LinkState(
            mtu=message.get_attr("IFLA_MTU"),
            queue_length=message.get_attr("IFLA_TXQLEN"),
            up=bool(message["flags"] & IFF_UP),
            addr_gen_mode=_addr_gen_mode(message),
        )

    def rule_priorities(self, family: Family) -> list[int]:
        """Return the priorities of all rules."""
        return [message.get_attr("FRA_PRIORITY") or 0 for message in self._rules(family)]

    def routes_of_table(self, family: Family, table: int) -> list[str]:
        """Return the destinations of all routes in `table`."""
        return [_destination(message) for message in _routes(family, table)]

    def close_kill_switch(self, change: KillSwitch, index: int) -> None:
        """Load the kill switch with the prefixes that are local now. Raises NetworkError; then nothing is changed.

        Those of the tun are not: when it is gone, what is for them would leave.
        """
        messages = [*_routes(4, TABLE_MAIN), *_routes(6, TABLE_MAIN)]
        destinations = [_destination(message) for message in messages if message.get_attr("RTA_OIF") != index]
        kill_switch.close(change, [prefix for prefix in destinations if prefix != "default"], self._lock)

    def make(self, change: Change, index: int) -> None:
        """Make one change. Raises NetworkError; then nothing is changed."""
        try:
            self._make(change, index)
        except (NetlinkError, OSError) as error:
            raise _explained(change, "made", error) from error

    def make_if_missing(self, change: Change, index: int) -> bool:
        """Make a rule, a route or an address unless it is there; return whether it was missing. Raises NetworkError.

        Kernel parameters and the state of the tun are left as somebody has set them meanwhile.
        """
        if isinstance(change, KillSwitch | Link | Sysctl):
            return False
        if isinstance(change, Rule) and self._has_rule(change):
            return False
        try:
            self._make(change, index)
        except (NetlinkError, OSError) as error:
            if _errno(error) == errno.EEXIST:
                return False
            raise _explained(change, "made", error) from error
        return True

    def revert(self, change: Change, index: int | None) -> None:
        """Take back one change as far as it is still there and still ours; `index` is None when the tun is gone.

        Raises NetworkError when the kernel refuses.
        """
        try:
            if isinstance(change, KillSwitch):
                kill_switch.open_up(self._lock)
            elif isinstance(change, Rule):
                self._remove_rule(change)
            elif isinstance(change, Bypass):
                self._throw_routes.remove(change)
            elif index is not None:  # otherwise the rest is gone with the tun
                self._revert_on_interface(change, index)
        except (NetlinkError, OSError) as error:
            if _errno(error) not in _GONE:
                raise _explained(change, "undone", error) from error

    def _make(self, change: Change, index: int) -> None:
        match change:
            case KillSwitch():
                self.close_kill_switch(change, index)
            case Rule():
                self._route.rule("add", **_rule_request(change))
            case Route():
                self._route.route("add", **_route_request(change, index))
            case Bypass():
                self._throw_routes.make(change)
            case Address():
                self._route.addr("add", **_address_request(change, index))
            case Link():
                self._set_link(index, change.after)
            case Sysctl():
                proc_sys(change.path).write_text(change.after)

    def _remove_rule(self, rule: Rule) -> None:
        # Asked to delete, the kernel takes the first rule that has the given attributes, whatever else it has.
        if self._has_rule(rule):
            self._route.rule("del", **_rule_request(rule))

    def _has_rule(self, rule: Rule) -> bool:
        return any(_read_rule(message) == rule for message in self._rules(rule.family))

    def _revert_on_interface(self, change: Route | Address | Link | Sysctl, index: int) -> None:
        match change:
            case Route():
                self._route.route("del", **_route_request(change, index))
            case Address():
                self._route.addr("del", **_address_request(change, index))
            case Link():
                if self.link_state(index) == change.after:
                    self._set_link(index, change.before)
            case Sysctl():
                value = proc_sys(change.path)
                if value.read_text().strip() == change.after:
                    value.write_text(change.before)

    def _set_link(self, index: int, state: LinkState) -> None:
        if state.addr_gen_mode is not None and self.link_state(index).addr_gen_mode not in (None, state.addr_gen_mode):
            # In a message of its own: it must stand before the interface is up. By /proc/sys it would take effect at once.
            mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", state.addr_gen_mode)]}
            self._route.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})
        self._route.link(
            "set", index=index, mtu=state.mtu, txqlen=state.queue_length, state="up" if state.up else "down"
        )

    def _rules(self, family: Family) -> list[Any]:
        messages = list(self._route.get_rules(family=FAMILIES[family]))
        # A kernel without IPv6 answers for IPv6 with the rules of other families.
        return [message for message in messages if message["family"] == FAMILIES[family]]


def _routes(family: Family, table: int) -> list[Any]:
    # In strict mode the kernel itself leaves the other tables out: one may be the internet's.
    with IPRoute(strict_check=True) as strict:
        try:
            return list(strict.get_routes(family=FAMILIES[family], table=table))
        except NetlinkError as error:
            if _errno(error) in _GONE:  # nobody has ever used this table
                return []
            raise NetworkError(f"The route table {table} cannot be read: {os.strerror(_errno(error))}.") from error


def _address_request(change: Address, index: int) -> dict[str, Any]:
    address, _, length = change.address.partition("/")
    return {"family": FAMILIES[change.family], "index": index, "address": address, "prefixlen": int(length)}


def _route_request(route: Route, index: int) -> dict[str, Any]:
    return {
        "family": FAMILIES[route.family],
        "dst": route.destination,
        "oif": index,
        "table": route.table,
        "priority": route.metric,
    }


def _rule_request(rule: Rule) -> dict[str, Any]:
    request: dict[str, Any] = {"family": FAMILIES[rule.family], "priority": rule.priority, "action": FR_ACT_NOP}
    if rule.goto is not None:
        request |= {"action": FR_ACT_GOTO, "goto": rule.goto}
    if rule.table is not None:
        request |= {"action": FR_ACT_TO_TBL, "table": rule.table}
    if rule.unreachable:
        request["action"] = FR_ACT_UNREACHABLE
    if rule.source is not None:
        address, _, length = rule.source.partition("/")
        request |= {"src": address, "src_len": int(length)}
    if rule.iif is not None:
        request["iifname"] = rule.iif
    if rule.invert:
        request["flags"] = FIB_RULE_INVERT
    if rule.uid is not None:
        request["uid_range"] = f"{rule.uid}:{rule.uid if rule.last_uid is None else rule.last_uid}"
    if rule.mark is not None:
        request |= {"fwmark": rule.mark, "fwmask": MARK_MASK_ALL}
    if rule.port is not None:
        request["dport_range"] = f"{rule.port}:{rule.port}"
    if rule.suppress_prefix_length is not None:
        request["suppress_prefixlen"] = rule.suppress_prefix_length
    return request


_READABLE = {
    *("FRA_PRIORITY", "FRA_TABLE", "FRA_GOTO", "FRA_SRC", "FRA_IIFNAME", "FRA_UID_RANGE"),
    *("FRA_FWMARK", "FRA_FWMASK", "FRA_SUPPRESS_PREFIXLEN", "FRA_DPORT_RANGE"),
    "FRA_PROTOCOL",  # who made it, by convention; matches nothing
}


_FRA_DPORT_MASK = 29
"""Of Linux 6.15: a rule about a port has it, all ones where nothing else is said (include/uapi/linux/fib_rules.h). pyroute2
does not know its name yet."""


def _attributes(message: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in message["attrs"]
        if not (name == "UNKNOWN" and value["header"]["type"] == _FRA_DPORT_MASK)
    }


def _read_rule(message: Any) -> Rule | None:
    """Return the rule of a netlink message; None when it has anything that a `Rule` cannot say."""
    attributes = _attributes(message)
    uid, _, last_uid = str(attributes.get("FRA_UID_RANGE", "")).partition(":")
    port, _, last_port = str(attributes.get("FRA_DPORT_RANGE", "")).partition(":")
    action = message["action"]
    if (
        not attributes.keys() <= _READABLE
        or message["dst_len"]
        or message["tos"]
        or action not in (FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_UNREACHABLE)
        or attributes.get("FRA_FWMASK", MARK_MASK_ALL) != MARK_MASK_ALL
        or port != last_port
    ):
        return None
    suppress = attributes.get("FRA_SUPPRESS_PREFIXLEN", 0xFFFFFFFF)  # all ones: -1, none
    return Rule(
        family=4 if message["family"] == socket.AF_INET else 6,
        priority=attributes.get("FRA_PRIORITY", 0),
        table=attributes["FRA_TABLE"] if action == FR_ACT_TO_TBL else None,
        goto=attributes.get("FRA_GOTO"),
        source=f"{attributes['FRA_SRC']}/{message['src_len']}" if "FRA_SRC" in attributes else None,
        iif=attributes.get("FRA_IIFNAME"),
        invert=bool(message["flags"] & FIB_RULE_INVERT),
        uid=int(uid) if uid else None,
        last_uid=int(last_uid) if last_uid != uid else None,
        mark=attributes.get("FRA_FWMARK"),
        port=int(port) if port else None,
        unreachable=action == FR_ACT_UNREACHABLE,
        suppress_prefix_length=None if suppress == 0xFFFFFFFF else suppress,
    )


def _addr_gen_mode(message: Any) -> int | None:
    families = message.get_attr("IFLA_AF_SPEC")
    inet6 = families.get_attr("AF_INET6") if families is not None else None
    mode: int | None = inet6.get_attr("IFLA_INET6_ADDR_GEN_MODE") if inet6 is not None else None
    return mode


def _destination(message: Any) -> str:
    address = message.get_attr("RTA_DST")
    return f"{address}/{message['dst_len']}" if address else "default"


def _errno(error: NetlinkError | OSError) -> int:
    code: int = error.code if isinstance(error, NetlinkError) else error.errno or 0
    return code


def _explained(change: Change, verb: str, error: NetlinkError | OSError) -> NetworkError:
    code = _errno(error)
    if code in (errno.EPERM, errno.EACCES):
        return NetworkError(
            "Changing the network is not permitted: it needs root or the capability CAP_NET_ADMIN.", not_permitted=True
        )
    what = name_of(change)
    what = what[0].upper() + what[1:]
    if code == errno.EEXIST:
        return NetworkError(f"{what} exists already and is not ours: stop the program that made it, or remove it.")
    return NetworkError(f"{what} could not be {verb}: {os.strerror(code)}.")


def name_of(change: Change) -> str:
    """Return what people call a change."""
    match change:
        case KillSwitch():
            return "the kill switch"
        case Rule():
            return f"the IPv{change.family} routing rule at priority {change.priority}"
        case Route():
            return f"the route to {change.destination} in table {change.table}"
        case Bypass():
            return f"the route that lets {change.address} bypass the tun"
        case Address():
            return f"the address {change.address} of the tun"
        case Link():
            return f"the MTU of {change.after.mtu} bytes or the state of the tun"
        case Sysctl():
            return f"the kernel parameter {change.path}"
