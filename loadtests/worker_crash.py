"""The shape worker-crash: in the middle of the run a worker is killed, and only its flows may fail.

Which flows are its own is asked of the engine (`engine flows`) just before; a failure tells the local port of its connection.
"""

import os
import signal
from pathlib import Path

from engine.control import ask
from engine.flows import ask_flows
from engine.requests import Status

__all__ = ["Crash"]


class Crash:
    """One crash. `failed` takes in the failures of requests; `verdict` judges them at the end."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._doomed: set[int] = set()
        self._failed: list[int | None] = []

    def kill(self) -> None:
        """Kill the worker with most flows. Raises NotRunning."""
        status = ask(self._run_dir, Status()).status
        assert status is not None
        victim = max(status.workers, key=lambda worker: worker.tcp_active)
        self._doomed = {flow.source_port for flow in ask_flows(self._run_dir) if flow.worker == victim.index}
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)

    def failed(self, port: int | None) -> None:
        """A request failed on the connection with this local port; None: it is not known."""
        self._failed.append(port)

    def verdict(self) -> tuple[list[str], list[str]]:
        """Return sentences on what was missed, and on what was kept."""
        strange = [port for port in self._failed if port not in self._doomed]
        own = len(self._failed) - len(strange)
        missed = [f"{len(strange)} failures of flows that the killed worker did not carry"] if strange else []
        if not own:
            missed.append("no flow of the killed worker failed: the crash has proved nothing")
        return missed, [f"{own} flows failed with their worker, of {len(self._doomed)} that it carried"] if own else []
