"""Live flows as people see them: decoded from what the workers tell, filtered and sorted."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import time
from typing import Any

import msgspec

from engine.control import ask
from engine.requests import FlowsPart, ListFlows
from shared.control import FlowView, decode_views, flow_name
from shared.process import ProcessInfo

__all__ = ["SORT_KEYS", "FlowError", "LiveFlow", "ask_flows", "endpoint_text", "filtered", "live_flows", "sorted_flows"]


class FlowError(Exception):
    """A filter or a sort key that is none; one sentence for the user."""


class LiveFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One flow."""

    id: str
    worker: int
    network: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    name: str | None
    """Of the destination, where one is known."""
    protocol: str | None
    process: ProcessInfo | None
    rule: str
    """Where it stands; empty: no rule took the flow."""
    outbound: str
    chain: tuple[str, ...]
    """Groups first."""
    up: int
    down: int
    started_at: float
    """Unix time."""
    age: float
    """Seconds."""
    state: str
    rtt: float | None
    """Seconds to the application and back."""
    upstream_rtt: float | None
    """Seconds to the proxy, or of a direct flow to the destination, and back."""

    @property
    def process_name(self) -> str:
        """Empty when it is not known."""
        return self.process.name if self.process is not None else ""

    @property
    def host(self) -> str:
        """Name of the destination, else its address."""
        return self.name or self.destination


def endpoint_text(address: str, port: int) -> str:
    """Return address and port in one: an IPv6 address stands in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def live_flows(parts: Iterable[FlowsPart]) -> list[LiveFlow]:
    """Decode an answer to ListFlows."""
    now = time()
    return [_live(part.worker, view, now) for part in parts for view in decode_views(part.packed)]


def _live(worker: int, view: FlowView, now: float) -> LiveFlow:
    return LiveFlow(
        id=flow_name(worker, view.id),
        worker=worker,
        network=view.network,
        source=view.source,
        source_port=view.source_port,
        destination=view.destination,
        destination_port=view.destination_port,
        name=view.name,
        protocol=view.protocol,
        process=view.process if view.process is not None and view.process.uid is not None else None,
        rule=view.rule,
        outbound=view.chain[-1] if view.chain else "",
        chain=view.chain,
        up=view.up,
        down=view.down,
        started_at=view.started_at,
        age=max(0.0, now - view.started_at),
        state=view.state,
        rtt=view.rtt,
        upstream_rtt=view.upstream_rtt,
    )


def ask_flows(run_dir: Path) -> list[LiveFlow]:
    """Ask the running engine. Raises NotRunning."""
    return live_flows(ask(run_dir, ListFlows(owners=True)).flows or ())


_FIELDS: dict[str, Callable[[LiveFlow], Any]] = {
    "id": lambda flow: flow.id,
    "worker": lambda flow: flow.worker,
    "network": lambda flow: flow.network,
    "source": lambda flow: endpoint_text(flow.source, flow.source_port),
    "destination": lambda flow: endpoint_text(flow.destination, flow.destination_port),
    "name": lambda flow: flow.name or "",
    "protocol": lambda flow: flow.protocol or "",
    "process": lambda flow: flow.process_name,
    "rule": lambda flow: flow.rule,
    "outbound": lambda flow: " ".join(flow.chain),
    "state": lambda flow: flow.state,
}
_NUMBERS: dict[str, Callable[[LiveFlow], float]] = {
    "up": lambda flow: flow.up,
    "down": lambda flow: flow.down,
    "bytes": lambda flow: flow.up + flow.down,
    "age": lambda flow: flow.age,
    "rtt": lambda flow: flow.rtt or 0.0,
    "upstream_rtt": lambda flow: flow.upstream_rtt or 0.0,
}
SORT_KEYS = (*_NUMBERS, *_FIELDS)


def sorted_flows(flows: Iterable[LiveFlow], key: str) -> list[LiveFlow]:
    """Sort by a key of SORT_KEYS: numbers largest first, text in its order; `-` before it turns it round. Raises FlowError."""
    name = key.removeprefix("-")
    if name not in SORT_KEYS:
        raise FlowError(f"--sort: there is no {name}; there are {', '.join(SORT_KEYS)}")
    by: Any = _NUMBERS.get(name) or _FIELDS[name]
    return sorted(flows, key=by, reverse=(name in _NUMBERS) != key.startswith("-"))


def filtered(flows: Iterable[LiveFlow], filters: Sequence[str]) -> list[LiveFlow]:
    """Return the flows for which every filter holds: `field=text`, or a text that any field may hold. Raises FlowError."""
    wanted = []
    for text in filters:
        name, equals, value = text.partition("=")
        if equals and name not in _FIELDS:
            raise FlowError(f"--filter: there is no field {name}; there are {', '.join(_FIELDS)}")
        wanted.append((name, value.lower()) if equals else ("", text.lower()))
    return [flow for flow in flows if all(_holds(flow, name, value) for name, value in wanted)]


def _holds(flow: LiveFlow, name: str, value: str) -> bool:
    fields = [_FIELDS[name]] if name else _FIELDS.values()
    return any(value in str(field(flow)).lower() for field in fields)
