"""What is known of a live flow beside its bytes: for views, and for the counters of its outbound."""

from time import monotonic

from shared.control import FlowView
from shared.metrics import Counters, OutboundCell
from shared.rules.flow import Ends
from workers.relay.router import Decision
from workers.upstream import Trail
from workers.upstream.sockets import address_text

__all__ = ["FlowFacts"]


class FlowFacts:
    """Filled as the flow finds its way.

    id        unique within the worker's life
    decision  what rules have seen
    rule      where the rule stands that took it; empty: the final outbound
    trail     the outbounds that it goes through
    """

    __slots__ = ("_cells", "_counted_down", "_counted_up", "decision", "ends", "id", "rule", "started_at", "trail")

    def __init__(self, number: int, ends: Ends, decision: Decision) -> None:
        self.id = number
        self.ends = ends
        self.decision = decision
        self.rule = ""
        self.trail: Trail = []
        self.started_at = monotonic()
        self._cells = -1
        self._counted_up = self._counted_down = 0

    def __str__(self) -> str:
        ends = self.ends
        source, destination = address_text(ends.source), address_text(ends.destination)
        return f"{ends.network} {source}:{ends.source_port} -> {destination}:{ends.destination_port}"

    def opened(self, counters: Counters) -> None:
        """The last outbound of the trail carries the flow from now on."""
        self._cells = self.trail[-1].cells
        is_tcp = self.ends.network == "tcp"
        counters[self._cells + (OutboundCell.TCP_OPENED if is_tcp else OutboundCell.UDP_OPENED)] += 1
        counters[self._cells + (OutboundCell.TCP_ACTIVE if is_tcp else OutboundCell.UDP_ACTIVE)] += 1

    def count_bytes(self, counters: Counters, up: int, down: int) -> None:
        """So many bytes have passed so far: add what is new to the outbound's."""
        if self._cells >= 0:
            counters[self._cells + OutboundCell.BYTES_UP] += up - self._counted_up
            counters[self._cells + OutboundCell.BYTES_DOWN] += down - self._counted_down
            self._counted_up, self._counted_down = up, down

    def closed(self, counters: Counters, up: int, down: int) -> None:
        """The flow is over."""
        if self._cells >= 0:
            self.count_bytes(counters, up, down)
            is_tcp = self.ends.network == "tcp"
            counters[self._cells + (OutboundCell.TCP_ACTIVE if is_tcp else OutboundCell.UDP_ACTIVE)] -= 1
            self._cells = -1

    def view(self, up: int, down: int, state: str, unix_offset: float) -> FlowView:
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
        )
