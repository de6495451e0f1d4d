"""/healthz: whether packets can flow now, from the tun through every shard to a proxy."""

from aiohttp import web

from engine import outbound_health
from engine.http.state import ENGINE
from engine.requests import Measure, Measurement
from shared.metrics import Cell

__all__ = ["HEARTBEAT_AGE", "healthz", "problems"]

HEARTBEAT_AGE = 2.0
"""Seconds without a heartbeat after which a worker hangs; it beats ten times a second."""
ANSWER_TIMEOUT = 2.0  # seconds for the master to answer


async def healthz(request: web.Request) -> web.Response:
    """Answer 200, or 503 with the reasons."""
    try:
        reply = await request.app[ENGINE].ask(Measure(), timeout=ANSWER_TIMEOUT)
    except TimeoutError:
        found = ["the master does not answer"]
    else:
        found = problems(reply.measurement) if reply.measurement is not None else ["the engine is starting or stopping"]
    status = {"status": "unavailable", "reasons": found} if found else {"status": "ok"}
    return web.json_response(status, status=503 if found else 200)


def problems(measurement: Measurement) -> list[str]:
    """Return a sentence on each thing that keeps packets from flowing."""
    status = measurement.status
    found = [] if status.link_up else [f"the interface {status.interface} is down"]
    rows = memoryview(measurement.rows).cast("Q")
    for worker in status.workers:
        if worker.generation != status.generation:
            continue  # it takes no new flows, not yet or no more
        beat_at = rows[worker.index * measurement.cells + Cell.HEARTBEAT] / 1000
        if worker.state != "running":
            found.append(f"worker {worker.index} is not running ({worker.state})")
        elif measurement.now - beat_at > HEARTBEAT_AGE:
            found.append(f"worker {worker.index} hangs: its last sign of life is {measurement.now - beat_at:.0f} s old")
    states = outbound_states(measurement)
    if states and not any(states.values()):
        found.append(f"no proxy works: {', '.join(states)}")
    return found


def outbound_states(measurement: Measurement) -> dict[str, bool]:
    """Return for each outbound that a flow has tried whether it works, as the last attempt of any worker showed."""
    rows, cells = memoryview(measurement.rows).cast("Q"), measurement.cells
    workers = [rows[index * cells : (index + 1) * cells] for index in range(measurement.places)]
    return outbound_health.outbound_states(workers, measurement.outbounds)
