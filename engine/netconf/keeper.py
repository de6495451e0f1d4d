"""Keeps one guardian alive for as long as the engine runs: the master's end of the life line."""

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from time import monotonic

from engine.netconf import NetworkError

__all__ = ["ANSWER_TIMEOUT", "GuardianKeeper"]

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 20.0  # seconds; guardian and helpers take about 0.4, most of it to import pyroute2
STABLE_AFTER = 10.0  # seconds of watching after which a guardian's death counts as the first one again
DELAY_MIN, DELAY_MAX = 0.1, 10.0  # seconds before the next one, doubled with each death in a row


class GuardianKeeper:
    """Starts the guardian, and another one when it dies. Call `start`, then `undo`.

    life_read  reading end of the life line: nobody but this process holds the writing end, so its end of file is our death.
               The guardian reads it; it is lent to `apply` as well, which must not start a change once we are dead.
    restarts   guardians that were started because one had died
    """

    def __init__(self, run_dir: Path) -> None:
        self.restarts = 0
        self.life_read = -1
        self._life_write = -1
        self._run_dir = run_dir
        self._guardian: Process | None = None
        self._started_at = 0.0
        self._vigil: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the guardian; None while there is none."""
        guardian = self._guardian
        return guardian.pid if guardian is not None and guardian.returncode is None else None

    async def start(self) -> None:
        """Start the guardian and wait until it watches. Raises NetworkError."""
        assert self._vigil is None, "there is a guardian already"
        self.life_read, self._life_write = os.pipe()
        try:
            await self._spawn()
        except NetworkError:
            await self._end()
            raise
        self._vigil = asyncio.get_running_loop().create_task(self._replace_the_dead(), name="guardian vigil")

    async def undo(self, *, hold: bool) -> str:
        """Let the guardian undo the journal, and end it. `hold`: a kill switch stays closed.

        Return its answer: "done", "held", a sentence, or empty if it is dead.
        """
        if self._vigil is None:
            return ""
        self._vigil.cancel()
        await asyncio.wait([self._vigil])
        self._vigil = None
        assert self._guardian is not None
        os.write(self._life_write, b"hold" if hold else b"undo")
        answer = await _read_line(self._guardian)
        if answer == "ready":  # it has just taken a dead one's place, and nobody has heard it say so
            answer = await _read_line(self._guardian)
        await self._end()
        return answer

    async def _spawn(self) -> None:
        self._started_at = monotonic()
        try:
            self._guardian = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "engine.netconf.guardian"),
                *("--run-dir", str(self._run_dir), "--fd", str(self.life_read)),
                stdin=DEVNULL,
                stdout=PIPE,
                pass_fds=(self.life_read,),
                start_new_session=True,  # Ctrl-C goes to the terminal's process group, and must not reach it
            )
        except OSError as error:
            raise NetworkError(f"The guardian cannot be started: {error.strerror}.") from error
        if await _read_line(self._guardian) != "ready":
            raise NetworkError("The guardian that restores the network after a crash did not start.")

    async def _replace_the_dead(self) -> None:
        delay = 0.0
        while True:
            assert self._guardian is not None
            code = await self._guardian.wait()
            if monotonic() - self._started_at > STABLE_AFTER:
                delay = 0.0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log.error("the guardian (pid %d) %s: starting another in %.1f s", self._guardian.pid, how, delay)
            await asyncio.sleep(delay)
            delay = min(max(2 * delay, DELAY_MIN), DELAY_MAX)
            self.restarts += 1
            try:
                await self._spawn()
            except NetworkError as error:
                log.error("%s Until there is one, a crash of the engine would need `engine repair`.", error)
            else:
                log.warning("another guardian watches (pid %d)", self._guardian.pid)

    async def _end(self) -> None:
        os.close(self._life_write)
        os.close(self.life_read)
        if self._guardian is None:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._guardian.wait()
        except TimeoutError:
            self._guardian.kill()
            await self._guardian.wait()
        self._guardian = None


async def _read_line(process: Process) -> str:
    """Return the next line of its output; empty when it has ended or is silent for ANSWER_TIMEOUT."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return (await process.stdout.readline()).decode().strip()
    except TimeoutError:
        return ""
