"""What attempts through an outbound show, counted in its cells (shared/metrics.py, OutboundCell)."""

from time import monotonic

from shared.metrics import Counters, OutboundCell, observe
from workers.upstream import ProxyFailed, UpstreamError

__all__ = ["Health"]


class Health:
    """Counts for one outbound, whose cells begin at `cells`."""

    def __init__(self, counters: Counters, cells: int) -> None:
        self._counters = counters
        self._cells = cells

    def connected(self, seconds: float) -> None:
        """A TCP connection was made."""
        observe(self._counters, self._cells + OutboundCell.CONNECT, seconds)
        self._note(OutboundCell.WORKED_AT)

    def associated(self) -> None:
        """UDP can be sent."""
        self._note(OutboundCell.WORKED_AT)

    def failed(self, error: UpstreamError) -> None:
        """An attempt failed: by the outbound itself, or by a destination, which shows that the outbound works."""
        if isinstance(error, ProxyFailed):
            self._counters[self._cells + OutboundCell.FAILED] += 1
            self._note(OutboundCell.FAILED_AT)
        else:
            self._counters[self._cells + OutboundCell.REFUSED] += 1
            self._note(OutboundCell.WORKED_AT)

    def _note(self, cell: OutboundCell) -> None:
        self._counters[self._cells + cell] = int(monotonic() * 1000)
