"""What a running engine can be asked, and what it answers: on its control socket (JSON), and by its HTTP process (msgpack).

A request is told by its `command`, so {"command": "status"} is one.
"""

from typing import Literal

import msgspec

from engine.status import (
    EngineStatus,
    Measurement,
    NetworkEvent,
    NetworkStatus,
    OutboundHealth,
    WayOut,
    WorkerStatus,
)

__all__ = [
    "AskDns",
    "Change",
    "CloseFlows",
    "Delay",
    "EngineStatus",
    "FlowsPart",
    "Flush",
    "FlushFakeNames",
    "FollowLog",
    "ListFlows",
    "ListOutbounds",
    "ListRules",
    "LogLine",
    "LogPart",
    "Measure",
    "Measurement",
    "NetworkEvent",
    "NetworkStatus",
    "OutboundHealth",
    "OutboundStatus",
    "Reload",
    "Reloaded",
    "Reply",
    "Request",
    "RuleStatus",
    "RulesStatus",
    "SaveUsage",
    "Select",
    "Status",
    "Stop",
    "TestDelay",
    "WayOut",
    "WorkerStatus",
]


class Status(msgspec.Struct, frozen=True, tag_field="command", tag="status"):
    """How things stand: Reply.status."""


class Stop(msgspec.Struct, frozen=True, tag_field="command", tag="stop"):
    """Put everything back and end; answered by Reply.ok before that is done."""


class Measure(msgspec.Struct, frozen=True, tag_field="command", tag="measure"):
    """All counters as they stand: Reply.measurement."""


class Reload(msgspec.Struct, frozen=True, tag_field="command", tag="reload"):
    """Read the configuration again and let new flows follow it: Reply.reloaded."""

    workers: int | None = None
    """So many new workers take over; None: as many as the configuration says now, if it said otherwise before."""
    new_workers: bool = False
    """New workers take over even if their number stays: with the code as it is on the disk now."""


class Change(msgspec.Struct, frozen=True, tag_field="command", tag="change"):
    """Change what can be changed while the engine runs; None: nothing of that kind."""

    mode: str | None = None
    """New flows follow the rules of this mode (EngineStatus.modes)."""
    log_level: str | None = None
    """debug, info, warning or error."""


class ListFlows(msgspec.Struct, frozen=True, tag_field="command", tag="flows"):
    """All live flows: Reply.flows."""

    owners: bool = False
    """Look up the programs of flows that are not known yet, before the answer."""


class CloseFlows(msgspec.Struct, frozen=True, tag_field="command", tag="close_flows"):
    """Reset a flow, or all of them. A flow that is not there is closed already."""

    flow: str | None = None
    """Its name, as ListFlows shows it; None: all."""


class ListOutbounds(msgspec.Struct, frozen=True, tag_field="command", tag="outbounds"):
    """Where flows can leave, and what groups use: Reply.outbounds."""


class Select(msgspec.Struct, frozen=True, tag_field="command", tag="select"):
    """A selector uses this member from now on."""

    group: str
    member: str


class TestDelay(msgspec.Struct, frozen=True, tag_field="command", tag="test_delay"):
    """Fetch a URL through an outbound: Reply.delay."""

    outbound: str
    url: str
    timeout: float
    """Seconds."""


class ListRules(msgspec.Struct, frozen=True, tag_field="command", tag="rules"):
    """The route rules in force: Reply.rules."""


class AskDns(msgspec.Struct, frozen=True, tag_field="command", tag="dns"):
    """Have the DNS service answer a message: Reply.dns."""

    query: bytes


class Flush(msgspec.Struct, frozen=True, tag_field="command", tag="flush"):
    """Forget all DNS answers."""


class FlushFakeNames(msgspec.Struct, frozen=True, tag_field="command", tag="flush_fakeip"):
    """Forget which names fake addresses stand for. Flows that are there live on; programs are to ask for names again."""


class FollowLog(msgspec.Struct, frozen=True, tag_field="command", tag="log"):
    """Lines of the log of all processes, from `level` on: Reply.log. Waits for one, for a while."""

    level: str
    """debug, info, warning or error; with info and debug the flows are told too."""
    after: int = 0
    """LogPart.next of the answer before."""


class SaveUsage(msgspec.Struct, frozen=True, tag_field="command", tag="save_usage"):
    """Write the usage to its file: Reply.usage_file."""


Request = (
    Status
    | Stop
    | Measure
    | Reload
    | Change
    | ListFlows
    | CloseFlows
    | ListOutbounds
    | Select
    | TestDelay
    | ListRules
    | AskDns
    | Flush
    | FlushFakeNames
    | FollowLog
    | SaveUsage
)


class Reloaded(msgspec.Struct, kw_only=True):
    """What came of a reload."""

    errors: list[str] = []
    """Why nothing has changed; empty: the new configuration is in force."""
    remarks: list[str] = []
    """What the user should know."""
    failure: str = ""
    """Why the workers are those that were there before, though others were wanted; the configuration is in force."""
    workers: int = 0
    """Number of new workers that have taken over."""


class FlowsPart(msgspec.Struct):
    """Some of the flows of one worker."""

    worker: int
    packed: bytes
    """For shared.control.decode_views."""


class OutboundStatus(msgspec.Struct, kw_only=True):
    """One outbound of the policy in force."""

    tag: str
    kind: Literal["socks5", "socks4", "http", "direct", "block", "selector", "urltest", "fallback"]
    is_default: bool
    """Flows take it that no rule takes."""
    server: str = ""
    """HOST:PORT of a proxy."""
    network: str | None = None
    """`tcp` or `udp`, if it carries only that."""
    members: tuple[str, ...] = ()
    """Of a group."""
    now: str | None = None
    """The member that a group uses; of a fallback group, the first that was not found dead."""
    url: str | None = None
    """That a urltest group fetches."""
    delay: float | None = None
    """Seconds of the last test."""
    tested_at: float | None = None
    """Unix time of the last test; None: there was none. Without a delay it failed."""


class RuleStatus(msgspec.Struct, kw_only=True):
    """One route rule."""

    conditions: str
    """As JSON, shortened."""
    fields: tuple[str, ...]
    """Names of its conditions."""
    action: str
    outbound: str | None
    """Of the action route."""
    origin: str


class RulesStatus(msgspec.Struct, kw_only=True):
    """The route rules, in order."""

    rules: list[RuleStatus]
    final: str
    """Outbound of flows that no rule takes."""
    rule_sets: dict[str, int]
    """Tag -> number of rules in it."""


class Delay(msgspec.Struct):
    """What came of TestDelay."""

    seconds: float | None
    error: str = ""


class LogLine(msgspec.Struct, kw_only=True):
    """One line of the log."""

    time: float
    """Unix time."""
    level: str
    process: str
    message: str
    fields: dict[str, str]
    """What it is about: flow, source, destination, ..."""


class LogPart(msgspec.Struct):
    """What was logged."""

    next: int
    lines: list[LogLine]
    lost: int = 0
    """Lines that were forgotten since the answer before: too many came."""


class Reply(msgspec.Struct, omit_defaults=True):
    """Exactly one field is set."""

    status: EngineStatus | None = None
    measurement: Measurement | None = None
    reloaded: Reloaded | None = None
    flows: list[FlowsPart] | None = None
    outbounds: list[OutboundStatus] | None = None
    delay: Delay | None = None
    rules: RulesStatus | None = None
    dns: bytes | None = None
    log: LogPart | None = None
    usage_file: str | None = None
    ok: bool | None = None
    error: str | None = None
