"""One live flow as a worker tells it to whoever shows it: `engine flows`, the Clash API. The master passes it on unread."""

from typing import Literal

import msgspec

from shared.process import ProcessInfo

__all__ = ["FlowView", "decode_views", "flow_name", "parse_flow_name"]


class FlowView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One live flow as views show it."""

    id: int
    """Unique within the run, together with the worker's number."""
    network: Literal["tcp", "udp"]
    source: str
    source_port: int
    destination: str
    """Address as the application's packets have it."""
    destination_port: int
    name: str | None = None
    """Name of the destination, where one is known."""
    protocol: str | None = None
    process: ProcessInfo | None = None
    rule: str = ""
    """Where the rule stands that took the flow; empty: none did, the final outbound took it."""
    chain: tuple[str, ...] = ()
    """Tags of the outbounds it goes through, groups first."""
    up: int = 0
    """Bytes of payload from the application."""
    down: int = 0
    started_at: float
    """Unix time."""
    state: str = ""
    rtt: float | None = None
    """Seconds to the application and back, as the stack has measured them."""
    upstream_rtt: float | None = None
    """Seconds to the proxy (of a direct flow, to the destination) and back, as the kernel has measured them."""


def flow_name(worker: int, number: int) -> str:
    """Return what a flow is called wherever people see it: `1-6a2bc00001a`, the worker's number and FlowView.id."""
    return f"{worker}-{number:x}"


def parse_flow_name(name: str) -> tuple[int, int]:
    """Return the worker's number and FlowView.id of a flow's name. Raises ValueError."""
    worker, _, number = name.partition("-")
    return int(worker), int(number, 16)


decode_views = msgspec.msgpack.Decoder(tuple[FlowView, ...]).decode
"""Decodes Flows.flows."""
