"""The policy rules by which the machine's traffic finds the tun, or leaves beside it. Pure.

The end comes first, because a `goto` without its target falls through to the next rule; then by priority, so that our own
sockets have left before anything is led into the tun.

Offsets from the first priority:
  0  the workers' sockets                            leave, whatever comes later
  1  marked sockets                                  leave
  2  what comes out of the tun                       leaves: it is not sent back into it
  3  excluded users and interfaces                   leave
  4, 5  included interfaces                          go on at 6; everything else leaves
  6  main table, without its default route           LAN and every specific route stay as they are; but for DNS, where the
                                                     engine answers it whomever it is sent to
  7  sockets that already have the tun's address     tun, by a table of their own (`socket_table`)
  8-10  other local sockets                          tun if new; those bound to another address of this machine, such as
                                                     replies to inbound ssh, leave
  11 forwarded packets of other machines             tun
  12 the end

A family without routes has no rules. When the plan is strict, and the tun has no address of it, what would go into the tun is
unreachable instead.
"""

from ipaddress import ip_interface
from typing import Any

import msgspec

from engine.netconf.plan import (
    TABLE_MAIN,
    Address,
    Family,
    NetworkPlan,
    Rule,
    plan_addresses,
    plan_routes,
    socket_table,
)

__all__ = ["RULE_COUNT", "plan_rules"]

RULE_COUNT = 13
"""Priorities that belong to us, from NetworkPlan.priority on."""
END_OF_RULES = 12
"""Offset of the nop from NetworkPlan.priority."""
DNS_PORT = 53


def plan_rules(plan: NetworkPlan, family: Family) -> list[Rule]:
    """Return the rules of one family in the order in which to make them."""
    first, end = plan.priority, plan.priority + END_OF_RULES
    if plan_routes(plan, family):
        own = plan_addresses(plan, family)
        return [
            *_exceptions(plan, family, first, end),
            *(_own_socket_rule(address, first + 7, plan.table) for address in own),
            *_captures(Rule(family=family, priority=first + 8, table=plan.table), end),
        ]
    if plan.strict and not plan_addresses(plan, family):
        return [
            *_exceptions(plan, family, first, end),
            *_captures(Rule(family=family, priority=first + 8, unreachable=True), end),
        ]
    return []


def _exceptions(plan: NetworkPlan, family: Family, first: int, end: int) -> list[Rule]:
    """The end, and what leaves: offsets 0 to 6."""
    rules = [Rule(family=family, priority=end)]
    if plan.own_uid is not None:
        rules.append(Rule(family=family, priority=first, uid=plan.own_uid, goto=end))
    if plan.own_mark is not None:
        rules.append(Rule(family=family, priority=first + 1, mark=plan.own_mark, goto=end))
    rules.append(Rule(family=family, priority=first + 2, iif=plan.interface, goto=end))
    for uid, last in plan.excluded_uids:
        rules.append(Rule(family=family, priority=first + 3, uid=uid, last_uid=last if last != uid else None, goto=end))
    rules.extend(Rule(family=family, priority=first + 3, iif=name, goto=end) for name in plan.excluded_interfaces)
    # The rule that these go to must stand before them: a `goto` without its target falls through.
    dns = DNS_PORT if plan.captures_dns else None
    rules.append(
        Rule(
            family=family,
            priority=first + 6,
            port=dns,
            invert=dns is not None,
            table=TABLE_MAIN,
            suppress_prefix_length=0,
        )
    )
    if plan.included_interfaces:
        rules.extend(
            Rule(family=family, priority=first + 4, iif=name, goto=first + 6) for name in plan.included_interfaces
        )
        rules.append(Rule(family=family, priority=first + 5, goto=end))
    return rules


def _own_socket_rule(address: Address, priority: int, table: int) -> Rule:
    """Offset 7."""
    source = _host_prefix(address.address)
    return Rule(family=address.family, priority=priority, source=source, iif="lo", table=socket_table(table))


def _captures(fate: Rule, end: int) -> list[Rule]:
    """Offsets 8 to 11: what becomes of everything else is said by `fate`. `iif lo` means that this machine sends."""

    def rule(offset: int, **changed: Any) -> Rule:
        return msgspec.structs.replace(fate, priority=fate.priority + offset, **changed)

    forwarded = rule(3, iif="lo", invert=True)
    if fate.family == 4:
        return [rule(0, source="0.0.0.0/32", iif="lo"), forwarded]
    if fate.unreachable:
        # A connect whose look-up without source fails is looked up again with one (ip6_dst_lookup_tail): it would leave.
        # So the family is closed to replies from here as well; sing-box's strict_route does the same.
        return [rule(2, iif="lo"), forwarded]
    # In IPv6 a rule with a source never matches a look-up without one (fib6_rule_match), so that `from ::/128` would
    # not do. The two halves together match every look-up that has a source; what is left has none.
    return [
        Rule(family=6, priority=fate.priority, source="::/1", iif="lo", goto=end),
        Rule(family=6, priority=fate.priority + 1, source="8000::/1", iif="lo", goto=end),
        rule(2, iif="lo"),
        forwarded,
    ]


def _host_prefix(address: str) -> str:
    interface = ip_interface(address)
    return f"{interface.ip}/{interface.max_prefixlen}"
