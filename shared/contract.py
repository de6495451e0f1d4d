"""What master and worker must agree on: messages, counters, and the layout of the memory that they share.

A worker is started from the files as they are on the disk then, which an upgrade may have replaced since the master was. The
master tells it the contract of its own code; one whose code has another does not serve (workers/worker.py).
"""

import json
from functools import cache
from hashlib import blake2s
from typing import Any

import msgspec

from shared.answered import PART_SIZE
from shared.control import FromMaster, FromWorker
from shared.fakeip import fake_ip_layout
from shared.flow_view import FlowView
from shared.metrics import BOUNDS, CELLS, Cell, Histogram, OutboundCell, UdpState
from shared.pool import PoolLayout
from shared.ring import INLINE_MAX

__all__ = ["contract"]


@cache
def contract() -> str:
    """Return 16 hexadecimal digits, equal in all processes whose messages and memory are the same."""
    messages = msgspec.json.schema_components([FromMaster, FromWorker, FlowView])
    cells = [
        {member.name: int(member) for member in kind.__members__.values()}
        for kind in (Cell, Histogram, OutboundCell, UdpState)
    ]
    # Of sizes that differ in every part; a layout that is computed otherwise gives other numbers.
    memory = [vars(PoolLayout(3, 5, 8)), PART_SIZE, INLINE_MAX, CELLS, BOUNDS]
    fake_ip = vars(fake_ip_layout("198.18.0.0/15", "fc00::/18"))
    terms = json.dumps([_without_texts(messages), cells, memory, fake_ip], sort_keys=True, default=str)
    return blake2s(terms.encode(), digest_size=8).hexdigest()


def _without_texts(schema: Any) -> Any:
    """Leave the docstrings out of a JSON schema."""
    if isinstance(schema, dict):
        return {key: _without_texts(value) for key, value in schema.items() if key != "description"}
    return [*map(_without_texts, schema)] if isinstance(schema, list | tuple) else schema
