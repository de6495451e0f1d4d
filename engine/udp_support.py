"""What workers have found out about the UDP of proxies: for the status, and one line of the log for each change."""

import logging

from shared.control import UdpSupport

__all__ = ["UdpOfProxies"]

log = logging.getLogger(__name__)


class UdpOfProxies:
    """By tag of the outbound."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def on_report(self, report: UdpSupport) -> None:
        """Take in what a worker says; the others of the run will find the same, which is told once."""
        reason = report.reason
        state = (f"yes ({reason})" if reason else "yes") if report.supported else f"no: {reason}"
        if self._states.get(report.outbound) == state:
            return
        self._states[report.outbound] = state
        if report.supported:
            log.info("the proxy %s relays UDP%s", report.outbound, f" ({reason})" if reason else "")
        else:
            log.warning(
                "the proxy %s does not relay UDP (%s): DNS goes over TCP, other datagrams are refused with ICMP port "
                "unreachable, and HTTPS records do not offer HTTP/3",
                report.outbound,
                reason,
            )

    def __str__(self) -> str:
        """For the status: of all proxies that are known, each with its tag when there are several."""
        if len(self._states) <= 1:
            return next(iter(self._states.values()), "unknown")
        return "; ".join(f"{tag}: {state}" for tag, state in self._states.items())
