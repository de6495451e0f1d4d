"""What is known of a live flow beside its bytes: for views, for the log, and for the counters of its outbound."""

from time import monotonic

from shared.control import FlowView, flow_name
from shared.metrics import Counters, OutboundCell
from shared.rules.flow import Ends
from workers.relay.router import Decision
from workers.upstream import Trail
from workers.upstream.sockets import address_text

__all__ = ["FlowFacts"]


class FlowFacts:
    """Filled as the flow finds its way.

    id        unique within the run, together with the worker's number
    decision  what rules have seen
    rule      where the rule stands that took it; empty: the final outbound
    trail     the outbounds that it goes through
    owner_sought  whether somebody has looked for its program, for views
    """

    __slots__ = (
        "_cells",
        "_counted_down",
        "_counted_up",
        "decision",
        "ends",
        "id",
        "owner_sought",
        "rule",
        "started_at",
        "trail",
        "worker",
    )

    def __init__(self, worker: int, number: int, ends: Ends, decision: Decision) -> None:
        self.worker = worker
        self.id = number
        self.ends = ends
        self.decision = decision
        self.rule = ""
        self.trail: Trail = []
        self.started_at = monotonic()
        self.owner_sought = False
        self._cells = -1
        self._counted_up = self._counted_down = 0

    @property
    def has_owner(self) -> bool:
        """Whether the program is known."""
        process = self.decision.flow.process
        return process is not None and process.pid is not None

    @property
    def name(self) -> str:
        """By which the log, `engine flows` and the API call it."""
        return flow_name(self.worker, self.id)

    def __str__(self) -> str:
        """One half of a line of the log; the other half stands in `log_fields`."""
        ends = self.ends
        source, destination = address_text(ends.source), address_text(ends.destination)
        return f"{self.name} {ends.network} {source}:{ends.source_port} -> {destination}:{ends.destination_port}"

    def log_fields(self) -> dict[str, object]:
        """What stands beside the text of a line in a structured log (shared/log.py)."""
        ends, flow = self.ends, self.decision.flow
        fields: dict[str, object] = {
            "flow": self.name,
            "network": ends.network,
            "source": f"{address_text(ends.source)}:{ends.source_port}",
            "destination": f"{address_text(ends.destination)}:{ends.destination_port}",
        }
        name = flow.domain or flow.destination_name
        if name is not None:
            fields["name"] = name
        if flow.process is not None and flow.process.name:
            fields["process"] = flow.process.name
        if self.trail:
            fields["rule"], fields["outbound"] = self.rule, self.trail[-1].tag
        return fields

    def opened(self, counters: Counters) -> None:
        """The last outbound of the trail carries the flow from now on."""
        self._cells = self.trail[-1].cells
        is_tcp = self.ends.network == "tcp"
        counters[self._cells + (OutboundCell.TCP_OPENED if is_tcp else OutboundCell.UDP_OPENED)] += 1
        counters[self._cells + (OutboundCell.TCP_ACTIVE if is_tcp else OutboundCell.UDP_ACTIVE)] += 1

    def count_bytes(self, counters: Counters, up: int, down: int) -> tuple[int, int]:
        """So many bytes have passed so far: add what is new to the outbound's, and return it."""
        if self._cells < 0:
            return 0, 0
        more_up, more_down = up - self._counted_up, down - self._counted_down
        counters[self._cells + OutboundCell.BYTES_UP] += more_up
        counters[self._cells + OutboundCell.BYTES_DOWN] += more_down
        self._counted_up, self._counted_down = up, down
        return more_up, more_down

    def closed(self, counters: Counters) -> None:
        """The flow is over; its bytes have been counted."""
        if self._cells >= 0:
            is_tcp = self.ends.network == "tcp"
            counters[self._cells + (OutboundCell.TCP_ACTIVE if is_tcp else OutboundCell.UDP_ACTIVE)] -= 1
            self._cells = -1

    def view(
        self, up: int, down: int, state: str, unix_offset: float, rtt: float | None, upstream_rtt: float | None
    ) -> FlowView:
        """Return it as views show it; `unix_offset`: Unix time minus monotonic time."""
        ends, flow = self.ends, self.decision.flow
        return FlowView(
            id=self.id,
            network=ends.network,
            source=address_text(ends.source),
            source_port=ends.source_port,
            destination=address_text(ends.destination),
            destination_port=ends.destination_port,
            name=flow.domain or flow.destination_name,
            protocol=flow.protocol,
            process=flow.process,
            rule=self.rule,
            chain=tuple(outbound.tag for outbound in self.trail),
            up=up,
            down=down,
            started_at=self.started_at + unix_offset,
            state=state,
            rtt=rtt,
            upstream_rtt=upstream_rtt,
        )
