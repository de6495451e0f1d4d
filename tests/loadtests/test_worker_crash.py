"""loadtests/worker_crash.py: whose failures are whose, and what the run must show."""

from collections.abc import Collection
from pathlib import Path

import pytest

from loadtests.flow_ends import FlowEnds
from loadtests.worker_crash import Crash


def flow(port: int, network: str = "tcp") -> FlowEnds:
    return FlowEnds(network, "192.0.2.2", port, "203.0.113.10", 80)


class Told(Crash):
    """A crash of worker 1, which carries local ports from 1000 on; from 2000 on they were too short to be listed."""

    def __init__(self, *, killed: bool = True) -> None:
        super().__init__(Path("/nowhere"))
        for kind in ("page", "echo") * 20:
            self.ended(kind, flow(1), failed=False, lost=False)
        self.ended("now and then", flow(1), failed=False, lost=False)
        if killed:
            self._victim = 1
            self._carried = {("tcp", port) for port in range(1000, 2000)}

    def _asked(self, flows: Collection[FlowEnds]) -> set[tuple[str, int]]:
        return {(each.network, each.source_port) for each in flows if each.source_port >= 2000}

    def missed(self, loss: float = 1.0) -> list[str]:
        return self.verdict(loss=loss)[0]


@pytest.fixture
def crash() -> Told:
    """One after which all is as it should be."""
    made = Told()
    made.ended("page", flow(1000), failed=True, lost=False)
    for kind in "page", "echo":
        made.ended(kind, flow(3), failed=False, lost=False)
    return made


def test_only_the_workers_own_flows_failed(crash: Told) -> None:
    crash.ended("page", flow(2000), failed=True, lost=False)
    missed, kept = crash.verdict(loss=1.0)
    assert missed == []
    assert kept[0] == "2 failures of flows that died with their worker, of 1000 that it carried"
    assert kept[-1] == "all 2 kinds of requests were answered after the crash"


@pytest.mark.parametrize("stranger", [flow(5), flow(1000, "udp"), None])
def test_failure_of_another_workers_flow(crash: Told, stranger: FlowEnds | None) -> None:
    """Or of one that nobody knows."""
    crash.ended("page", stranger, failed=True, lost=False)
    assert crash.missed() == ["1 failures of flows that the killed worker did not carry"]


def test_failure_before_the_crash() -> None:
    early = Told(killed=False)
    early.ended("page", flow(1000), failed=True, lost=False)
    early._victim, early._carried = 1, {("tcp", 1000)}
    assert early.missed()[:2] == [
        "1 failures before the crash",
        "no flow of the killed worker failed: the crash has proved nothing",
    ]


def test_datagrams_of_other_workers(crash: Told) -> None:
    for port in range(99):
        crash.ended("echo", flow(port, "udp"), failed=False, lost=False)
    for _ in range(30):
        crash.ended("echo lost", flow(2001, "udp"), failed=False, lost=True)
    assert crash.missed() == []
    for _ in range(2):
        crash.ended("echo lost", flow(5, "udp"), failed=False, lost=True)
    assert crash.missed() == ["30 datagrams lost with the worker; of other workers 2 (1.53 %), to be 1 %"]
    assert crash.missed(loss=2.0) == []


def test_kind_that_is_answered_no_more() -> None:
    crash = Told()
    crash.ended("page", flow(1000), failed=True, lost=False)
    crash.ended("page", flow(3), failed=False, lost=False)
    assert crash.missed() == ["echo: not answered any more after the crash"]


def test_run_without_a_crash() -> None:
    assert Told(killed=False).missed() == ["no worker was killed: the run was over before"]
