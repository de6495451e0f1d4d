"""engine/http/health.py: 200 only when packets can flow."""

import msgspec
import pytest

from engine.http.health import HEARTBEAT_AGE, outbound_states, problems
from shared.metrics import OUTBOUNDS_MAX, Cell, OutboundCell, outbound_at
from tests.engine.http.measurement import NOW, Rows


def test_all_is_well() -> None:
    assert problems(Rows().measure("proxy")) == []


def test_interface_that_is_down() -> None:
    assert problems(Rows().measure("proxy", link_up=False)) == ["the interface tun0 is down"]


@pytest.mark.parametrize("state", ["starting", "backoff", "stopping", "stopped"])
def test_worker_that_does_not_run(state: str) -> None:
    measurement = Rows().measure("proxy")
    measurement.status.workers[1] = msgspec.structs.replace(measurement.status.workers[1], state=state)
    assert problems(measurement) == [f"worker 1 is not running ({state})"]


def test_worker_that_hangs() -> None:
    rows = Rows()
    rows.rows[0][Cell.HEARTBEAT] = int((NOW - HEARTBEAT_AGE - 1) * 1000)
    assert problems(rows.measure("proxy")) == ["worker 0 hangs: its last sign of life is 3 s old"]


def attempt(rows: Rows, worker: int, outbound: int, *, worked_at: float = 0, failed_at: float = 0) -> None:
    rows.rows[worker][outbound_at(outbound) + OutboundCell.WORKED_AT] = int(worked_at * 1000)
    rows.rows[worker][outbound_at(outbound) + OutboundCell.FAILED_AT] = int(failed_at * 1000)


def test_last_attempt_of_any_worker_tells_whether_an_outbound_works() -> None:
    rows = Rows()
    attempt(rows, 0, 0, worked_at=990, failed_at=980)
    attempt(rows, 1, 0, failed_at=995)
    attempt(rows, 0, 1, failed_at=980)
    attempt(rows, 1, 1, worked_at=985)
    assert outbound_states(rows.measure("a", "b", "never tried")) == {"a": False, "b": True}
    assert problems(rows.measure("a", "b", "never tried")) == [], "one proxy works"


def test_no_proxy_works() -> None:
    rows = Rows()
    attempt(rows, 0, 0, failed_at=980)
    assert problems(rows.measure("a", "b")) == ["no proxy works: a"]


def test_outbounds_that_share_a_row_have_no_state() -> None:
    rows = Rows()
    attempt(rows, 0, OUTBOUNDS_MAX - 1, failed_at=980)
    assert outbound_states(rows.measure(*(f"p{i}" for i in range(OUTBOUNDS_MAX + 5)))) == {}
