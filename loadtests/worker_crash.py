"""The shape worker-crash: in the middle of the run a worker is killed, and only its flows may fail.

A failure tells the ends of its flow. Whose it was is said by the list of flows (`engine flows`) just before the crash, or, for
flows too short to be in it, by the engine at the end: which worker a flow goes to depends on its ends alone, so a new flow
with the same ends goes to the one that has taken the place of the dead.
"""

import os
import signal
import socket
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

from engine.control import ask
from engine.demo.targets import ECHO_PORT
from engine.flows import LiveFlow, live_flows
from engine.requests import ListFlows, Status
from loadtests.flow_ends import FlowEnds

__all__ = ["Crash"]

ASK_TIMEOUT = 10.0
"""Seconds for the engine to know of a flow that was opened to see whose it is."""
ASKED_MAX = 500
"""Flows that are opened to see whose they are; the others count as those of other workers."""

OFTEN = 20
"""Requests of a kind before the crash for which some are expected after it: an upload now and then proves nothing."""


class Crash:
    """One crash. `ended` takes in all requests; `verdict` judges them when all is over."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._victim: int | None = None
        self._carried: set[tuple[str, int]] = set()  # by the victim: network and local port
        self._kinds_before: Counter[str] = Counter()  # of requests that were answered
        self._kinds_after: set[str] = set()
        self._failed_before = 0
        self._failed: list[FlowEnds | None] = []
        self._lost: list[FlowEnds | None] = []
        self._datagrams = 0

    def kill(self) -> None:
        """Kill the worker with most flows. Raises NotRunning."""
        status = ask(self._run_dir, Status()).status
        assert status is not None
        victim = max(status.workers, key=lambda worker: worker.tcp_active)
        self._carried = {(flow.network, flow.source_port) for flow in self._flows() if flow.worker == victim.index}
        assert victim.pid is not None
        self._victim = victim.index
        os.kill(victim.pid, signal.SIGKILL)

    def ended(self, kind: str, flow: FlowEnds | None, *, failed: bool, lost: bool) -> None:
        """A request has ended; `lost`: it is a datagram, or an answer, that did not come."""
        is_after = self._victim is not None
        if flow is not None and flow.network == "udp":
            self._datagrams += 1
        if failed:
            if is_after:
                self._failed.append(flow)
            else:
                self._failed_before += 1
        elif lost:
            if is_after:
                self._lost.append(flow)
        elif is_after:
            self._kinds_after.add(kind)
        else:
            self._kinds_before[kind] += 1

    def verdict(self, *, loss: float) -> tuple[list[str], list[str]]:
        """Return sentences on what was missed, and on what was kept; `loss`: per cent of datagrams that others may lose."""
        if self._victim is None:
            return ["no worker was killed: the run was over before"], []
        own = self._carried | self._asked({flow for flow in self._failed + self._lost if flow is not None})
        missed, kept = [], []
        failed, others_failed = _split(self._failed, own)
        lost, others_lost = _split(self._lost, own)
        if self._failed_before:
            missed.append(f"{self._failed_before} failures before the crash")
        if others_failed:
            missed.append(f"{others_failed} failures of flows that the killed worker did not carry")
        if not failed:
            missed.append("no flow of the killed worker failed: the crash has proved nothing")
        else:
            kept.append(
                f"{failed} failures of flows that died with their worker, of {len(self._carried)} that it carried"
            )
        share = 100 * others_lost / max(self._datagrams, 1)
        sentence = (
            f"{lost} datagrams lost with the worker; of other workers {others_lost} ({share:.2f} %), to be {loss:g} %"
        )
        (missed if share > loss else kept).append(sentence)
        kinds = {kind for kind, count in self._kinds_before.items() if count >= OFTEN}
        silent = sorted(kinds - self._kinds_after)
        missed += [f"{kind}: not answered any more after the crash" for kind in silent]
        if not silent:
            kept.append(f"all {len(kinds)} kinds of requests were answered after the crash")
        return missed, kept

    def _asked(self, flows: Collection[FlowEnds]) -> set[tuple[str, int]]:
        """Network and local port of those of `flows` that go to the victim's place: opened again, to see."""
        unknown = [flow for flow in flows if (flow.network, flow.source_port) not in self._carried][:ASKED_MAX]
        with ExitStack() as opened:
            wanted = {(flow.network, flow.source_port) for flow in unknown if _open_again(flow, opened)}
            deadline = monotonic() + ASK_TIMEOUT
            while True:
                found = {(flow.network, flow.source_port): flow.worker for flow in self._flows()}
                if wanted <= found.keys() or monotonic() > deadline:
                    return {flow for flow in wanted if found.get(flow) == self._victim}
                sleep(0.1)

    def _flows(self) -> Iterable[LiveFlow]:
        return live_flows(ask(self._run_dir, ListFlows()).flows or ())


def _split(flows: Collection[FlowEnds | None], own: Collection[tuple[str, int]]) -> tuple[int, int]:
    """Return how many are of the worker's own, and how many are not."""
    mine = sum(flow is not None and (flow.network, flow.source_port) in own for flow in flows)
    return mine, len(flows) - mine


def _open_again(flow: FlowEnds, opened: ExitStack) -> bool:
    """Open a flow with these ends, until `opened` is closed; whether that was possible."""
    family = socket.AF_INET6 if ":" in flow.source else socket.AF_INET
    kind = socket.SOCK_DGRAM if flow.network == "udp" else socket.SOCK_STREAM
    again = opened.enter_context(socket.socket(family, kind))
    again.settimeout(ASK_TIMEOUT)
    # Of UDP the source alone tells the worker; a question to a DNS server leaves no flow to be seen.
    port = ECHO_PORT if flow.network == "udp" else flow.destination_port
    try:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((flow.source, flow.source_port))
        again.connect((flow.destination, port))
        if flow.network == "udp":
            again.send(b"whose is it?")
    except OSError:
        return False
    return True
