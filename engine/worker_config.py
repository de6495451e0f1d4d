"""What workers are told when they start: made of the user's configuration, the tun, and what the machine has."""

import os
import secrets
from collections.abc import Callable

import msgspec

from engine.config.model import EngineConfig
from engine.fake_names import fake_ip_config
from engine.limits import Limits
from engine.netconf import front
from engine.network_plan import FWMARK
from engine.tun import TunDevice
from engine.users import WORKER_UID
from shared.config import Policy, StackConfig, UdpConfig, WorkerConfig
from shared.pool import PoolLayout
from shared.system import user_exists

__all__ = ["limited", "worker_config"]


def worker_config(
    user: EngineConfig, *, policy: Policy, tun: TunDevice, layout: PoolLayout, moves_traffic: bool
) -> WorkerConfig:
    """Return what is the same for all workers. `moves_traffic`: this machine's routes lead into the tun."""
    own_user = os.geteuid() == 0 and user_exists(WORKER_UID)
    return WorkerConfig(
        index=0,
        places=layout.places,
        slots=layout.slots,
        ring_entries=layout.ring_entries,
        policy=policy,
        stack=msgspec.structs.replace(user.stack, mtu=tun.mtu, offload=tun.offload),
        udp=user.udp,
        tun_addresses=user.tun.addresses,
        uid=WORKER_UID if own_user else None,
        mark=None if own_user or not moves_traffic else FWMARK,
        header_len=tun.header_len,
        egress=front().egress(tun.name) if moves_traffic else None,
        secret=secrets.token_bytes(16),
        dns_addresses=user.tun.dns_addresses,
        fake_ip=fake_ip_config(user),
        log_level=user.log.level,
        log_format=user.log.format,
    )


def limited(limits: Limits) -> Callable[[WorkerConfig], WorkerConfig]:
    """Return what gives a worker its share of the machine."""

    def shape(config: WorkerConfig) -> WorkerConfig:
        stack: StackConfig = msgspec.structs.replace(
            config.stack,
            max_tcp_flows=limits.flows,
            max_buffers=min(config.stack.max_buffers, limits.worker_buffers),
        )
        udp: UdpConfig = msgspec.structs.replace(config.udp, max_associations=limits.associations)
        return msgspec.structs.replace(config, stack=stack, udp=udp)

    return shape
