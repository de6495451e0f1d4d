"""Keeps one guardian alive for as long as the engine runs: the master's end of the life line.

One that hangs is killed before another is started, so that there are never two that would undo the journal.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from time import monotonic

from engine.netconf import NetworkError
from engine.netconf.guardian import HOLD, PING, UNDO

__all__ = ["ANSWER_TIMEOUT", "GuardianKeeper"]

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 20.0  # seconds; guardian and helpers take about 0.4, most of it to import pyroute2
PING_INTERVAL = 3.0  # seconds
PING_WAITS, PING_WAIT = 6, 1.0
"""How often, and for how many seconds each, an answer is waited for. If the whole engine stands still meanwhile (a suspended
virtual machine, a frozen cgroup), that takes one of the waits only."""
STABLE_AFTER = 10.0  # seconds of watching after which a guardian's death counts as the first one again
DELAY_MIN, DELAY_MAX = 0.1, 10.0  # seconds before the next one, doubled with each death in a row


class GuardianKeeper:
    """Starts the guardian, and another one when it dies or hangs. Call `start`, then `undo`.

    life_read  reading end of the life line: nobody but this process holds the writing end, so its end of file is our death.
               The guardian reads it; it is lent to `apply` as well, which must not start a change once we are dead.
    restarts   guardians that were started because one had died or hung
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
        self._vigil = asyncio.get_running_loop().create_task(self._keep(), name="guardian vigil")

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
        answer = ""
        if await self._answers():
            os.write(self._life_write, HOLD if hold else UNDO)
            # It may have just taken a dead one's place, and nobody has heard it say so; or owe an answer to an earlier ping.
            while (answer := await _read_line(self._guardian)) in ("ready", "pong"):
                pass
        else:
            log.error("the guardian (pid %d) hangs: killed", self._guardian.pid)
            _kill(self._guardian)
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

    async def _keep(self) -> None:
        delay = 0.0
        while True:
            assert self._guardian is not None
            how = await self._how_it_ends(self._guardian)
            if monotonic() - self._started_at > STABLE_AFTER:
                delay = 0.0
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

    async def _how_it_ends(self, guardian: Process) -> str:
        """Wait for the end of the guardian, which comes when it hangs, too; return how it came about."""
        while True:
            try:
                async with asyncio.timeout(PING_INTERVAL):
                    code = await guardian.wait()
            except TimeoutError:
                if await self._answers():
                    continue
                _kill(guardian)
                await guardian.wait()
                return f"gave no answer for {PING_WAITS * PING_WAIT:.0f} s and was killed"
            return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def _answers(self) -> bool:
        """Ask the guardian for an answer. False: it hangs. (Whether it is dead is for others to find out.)"""
        assert self._guardian is not None and self._guardian.stdout is not None
        os.write(self._life_write, PING)
        for _ in range(PING_WAITS):
            try:
                async with asyncio.timeout(PING_WAIT):
                    await self._guardian.stdout.readline()  # anything it says shows that it lives
                    return True
            except TimeoutError:
                continue
        return False

    async def _end(self) -> None:
        os.close(self._life_write)
        os.close(self.life_read)
        if self._guardian is None:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._guardian.wait()
        except TimeoutError:
            _kill(self._guardian)
            await self._guardian.wait()
        self._guardian = None


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended just now
        process.kill()


async def _read_line(process: Process) -> str:
    """Return the next line of its output; empty when it has ended or is silent for ANSWER_TIMEOUT."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return (await process.stdout.readline()).decode().strip()
    except TimeoutError:
        return ""
