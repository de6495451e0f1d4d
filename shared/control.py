"""Messages between the master and a worker: msgpack, one message a datagram (shared/channel.py carries them).

start      Configure -> Ready | Failed          reload   Reload -> Reloaded
routing    FindProcess -> ProcessFound, LoopSuspected          groups   Select, Used, PassedOver; Measured, Used, PassedOver
views      ListFlows -> Flows ...; CloseFlow; Usage    TestDelay -> Delay
names      ProxyFailing, LookUp -> LookedUp
handover   TellKeys -> Keys ..., twice; Drain -> Keys ..., Drained
end        Stop
"""

from typing import Literal

import msgspec

from shared.config import PassedOver, Policy, WorkerConfig
from shared.flow_view import FlowView, decode_views, flow_name, parse_flow_name
from shared.process import ProcessInfo

__all__ = [
    "AskDns",
    "CloseFlow",
    "Configure",
    "Delay",
    "DnsAnswered",
    "Drain",
    "Drained",
    "Failed",
    "FindProcess",
    "FlowView",
    "Flows",
    "FlushDns",
    "FromMaster",
    "FromWorker",
    "Keys",
    "ListFlows",
    "Logged",
    "LookUp",
    "LookedUp",
    "LoopSuspected",
    "MeasureNow",
    "Measured",
    "Message",
    "PassedOver",
    "ProcessFound",
    "ProxyFailing",
    "Ready",
    "Reload",
    "Reloaded",
    "Select",
    "SetLogLevel",
    "Stop",
    "TapLog",
    "TellKeys",
    "TestDelay",
    "UdpSupport",
    "Usage",
    "UsageOf",
    "Used",
    "decode_from_master",
    "decode_from_worker",
    "decode_views",
    "encode",
    "flow_name",
    "parse_flow_name",
]

# master -> worker


class Configure(msgspec.Struct, tag="configure", frozen=True):
    """Once, first: everything beside the inherited descriptors."""

    config: WorkerConfig


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Reset the flows and exit 0."""


class Reload(msgspec.Struct, tag="reload", frozen=True):
    """From now on new flows follow this policy; those that are there keep their outbound. Answered by Reloaded."""

    id: int
    policy: Policy


class ProcessFound(msgspec.Struct, tag="process_found", frozen=True):
    """Answers FindProcess."""

    id: int
    process: ProcessInfo
    direct: bool = False
    """The flow is the local proxy's own: it goes out directly, whatever the rules say."""
    lasts: bool = False
    """What is said of `direct` holds for whatever else its socket sends."""


class Select(msgspec.Struct, tag="select", frozen=True):
    """Group `group` uses `member` from now on: the user's choice (selector) or what was measured elsewhere (urltest)."""

    group: str
    member: str


class SetLogLevel(msgspec.Struct, tag="set_log_level", frozen=True):
    """Log from this level (a key of shared.log.LEVELS) on."""

    level: str


class Egress(msgspec.Struct, tag="egress", frozen=True):
    """The machine leaves by other interfaces now: WorkerConfig.egress (macOS)."""

    v4: int
    v6: int


class ListFlows(msgspec.Struct, tag="list_flows", frozen=True):
    """Answered by Flows, in as many messages as it takes."""

    id: int
    owners: bool = False
    """Look up the programs of flows that are not known yet, before the answer."""


class CloseFlow(msgspec.Struct, tag="close_flow", frozen=True):
    """Reset a flow (FlowView.id), or all of them."""

    flow: int | None = None


class TestDelay(msgspec.Struct, tag="test_delay", frozen=True):
    """Fetch `url` through an outbound. Answered by Delay."""

    id: int
    outbound: str
    url: str
    timeout: float


class LookUp(msgspec.Struct, tag="look_up", frozen=True):
    """Look a name up past all proxies, as the machine's own resolver configuration says. Answered by LookedUp."""

    id: int
    name: str


class AskDns(msgspec.Struct, tag="ask_dns", frozen=True):
    """Have the DNS service answer a message of somebody who looks. Answered by DnsAnswered."""

    id: int
    query: bytes


class FlushDns(msgspec.Struct, tag="flush_dns", frozen=True):
    """Forget all DNS answers."""


class MeasureNow(msgspec.Struct, tag="measure_now", frozen=True):
    """A proxy fails, or the machine is in another network, or was suspended: test the members of urltest groups at once."""


class TapLog(msgspec.Struct, tag="tap_log", frozen=True):
    """Send lines of the log from this level on (Logged); None: no more."""

    level: str | None


class TellKeys(msgspec.Struct, tag="tell_keys", frozen=True):
    """Say which flows there are, once the ring is served up to entry `until` of its stream. Answered by Keys."""

    id: int
    until: int
    afresh: bool
    """All of them; otherwise those that have come and gone since they were told last."""


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Other workers have taken over: take no new flow, tell which have ended (Keys), and when none is left (Drained)."""


# worker -> master


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The rings are being served."""

    pid: int


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """It cannot start; one sentence for the user."""

    reason: str


class Reloaded(msgspec.Struct, tag="reloaded", frozen=True):
    """Answers Reload. With an error the policy before it stays in force."""

    id: int
    error: str | None = None


class UdpSupport(msgspec.Struct, tag="udp_support", frozen=True):
    """Whether an upstream relays UDP, as the last association showed."""

    supported: bool
    reason: str
    outbound: str = ""


class FindProcess(msgspec.Struct, tag="find_process", frozen=True):
    """Whose flow is this? Addresses are packed, as the application's packets have them. Answered by ProcessFound."""

    id: int
    network: Literal["tcp", "udp"]
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    for_view: bool = False
    """Asked by people, not by a rule: who holds the socket, whatever the rules need."""


class LoopSuspected(msgspec.Struct, tag="loop_suspected", frozen=True):
    """Flows to this destination become more and more, and none is answered; the ends are those of the latest."""

    network: Literal["tcp", "udp"]
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    is_cut: bool
    """More of them are refused."""


class Measured(msgspec.Struct, tag="measured", frozen=True):
    """A urltest group was tested, by the worker that measures (WorkerConfig.measures); the master tells the others by Select."""

    group: str
    member: str
    """The one that is used now."""
    delays: dict[str, float | None]
    """Seconds that each member took; None: it failed."""


class Used(msgspec.Struct, tag="used", frozen=True):
    """A flow took this urltest group, so its tests are worth their traffic; passed on to the worker that measures."""

    group: str


class Flows(msgspec.Struct, tag="flows", frozen=True):
    """Answers ListFlows, in parts. The master does not look into them: that is for who has asked (`decode_views`)."""

    id: int
    flows: msgspec.Raw
    """tuple[FlowView, ...], encoded."""
    last: bool


class UsageOf(msgspec.Struct, frozen=True, array_like=True):
    """What the flows of one program to one destination have carried."""

    process: str
    """Path of the program, or its name; empty: not known."""
    host: str
    """Name of the destination where one is known, else its address."""
    flows: int
    """Opened."""
    up: int
    down: int


class Usage(msgspec.Struct, tag="usage", frozen=True):
    """What flows have carried since the last such message."""

    usage: tuple[UsageOf, ...]


class Delay(msgspec.Struct, tag="delay", frozen=True):
    """Answers TestDelay."""

    id: int
    seconds: float | None
    error: str = ""


class LookedUp(msgspec.Struct, tag="looked_up", frozen=True):
    """Answers LookUp."""

    id: int
    addresses: tuple[str, ...]
    """Empty: there are none, or nobody could be asked; `error` says which."""
    error: str = ""


class ProxyFailing(msgspec.Struct, tag="proxy_failing", frozen=True):
    """A proxy cannot be used; told now and then while that lasts."""


class DnsAnswered(msgspec.Struct, tag="dns_answered", frozen=True):
    """Answers AskDns."""

    id: int
    answer: bytes


class Logged(msgspec.Struct, tag="logged", frozen=True):
    """A line of the log."""

    level: str
    message: str
    fields: dict[str, str]


class Keys(msgspec.Struct, tag="keys", frozen=True):
    """Answers TellKeys, in parts. While the worker drains: flows that have ended.

    A key is what `Ingress` hashes: addresses and ports of a TCP flow, source address and port of UDP.
    """

    id: int
    """Of the question; 0: it was not asked."""
    begun: tuple[bytes, ...] = ()
    ended: tuple[bytes, ...] = ()
    last: bool = True


class Drained(msgspec.Struct, tag="drained", frozen=True):
    """No flow is left in a worker that drains."""


FromMaster = (
    Configure
    | Stop
    | Reload
    | ProcessFound
    | Select
    | Egress
    | SetLogLevel
    | ListFlows
    | CloseFlow
    | TestDelay
    | LookUp
    | Used  # passed on to the worker that measures
    | PassedOver  # passed on to all workers
    | TellKeys
    | Drain
    | AskDns
    | FlushDns
    | MeasureNow
    | TapLog
)
FromWorker = (
    Ready
    | Failed
    | Reloaded
    | UdpSupport
    | ProxyFailing
    | FindProcess
    | LoopSuspected
    | Measured
    | Used
    | PassedOver
    | Flows
    | Delay
    | LookedUp
    | Usage
    | DnsAnswered
    | Logged
    | Keys
    | Drained
)
Message = FromMaster | FromWorker

encode = msgspec.msgpack.Encoder().encode
decode_from_master = msgspec.msgpack.Decoder(FromMaster).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
