"""What a configuration wants of the network."""

from engine.config.model import EngineConfig
from engine.config.resolve import upstream_addresses
from engine.netconf import front
from engine.netconf.plan import NetworkPlan
from engine.tun import TunDevice
from engine.users import WORKER_UID
from shared.config import HijackDns, Logical

__all__ = ["FWMARK", "answers_every_server", "network_plan"]

FWMARK = 0x74756E
"""Mark of our sockets where the workers cannot change their user."""


def network_plan(config: EngineConfig, tun: TunDevice) -> NetworkPlan:
    """Return the plan that leads this machine's traffic into `tun` as `config` says."""
    options = config.tun
    plan: NetworkPlan = front().build_plan(
        interface=tun.name,
        mtu=tun.mtu,
        addresses=options.addresses,
        auto_route=options.auto_route,
        include=options.route_address or ("0.0.0.0/0", "::/0"),
        exclude=options.route_exclude_address,
        upstreams=upstream_addresses(config),
        own_uid=WORKER_UID,
        own_mark=FWMARK,
        kill_switch=config.kill_switch,
        captures_dns=answers_every_server(config),
        strict=options.strict_route,
        include_uid=options.include_uid,
        exclude_uid=options.exclude_uid,
        include_interface=options.include_interface,
        exclude_interface=options.exclude_interface,
        table=options.table,
        priority=options.priority,
    )
    return plan


def answers_every_server(config: EngineConfig) -> bool:
    """Whether a rule gives DNS to us that is sent to other servers than the tun's own address."""
    own = set(config.tun.dns_addresses)
    return any(
        isinstance(rule.action, HijackDns)
        and (isinstance(rule.match, Logical) or not rule.match.ip_cidr or not own.issuperset(rule.match.ip_cidr))
        for rule in config.policy.route.rules
    )
