"""The master's side of the HTTP process: starts it, answers it, replaces it when it dies.

The listening sockets stay open in the master, so whoever connects while the process starts, or starts again, is served and
not refused.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from engine.http import HttpOptions
from engine.http.channel import Answer, Channel, Closed, Configure, Question
from engine.requests import Reply, Request, Stop

__all__ = ["HttpProcess"]

log = logging.getLogger(__name__)

STOP_TIMEOUT = 3.0  # seconds to end after its channel was closed, before SIGKILL
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 15.0  # seconds before it is started again, doubled with each death in a row
STABLE_AFTER = 10.0  # seconds of running after which a death counts as the first one again
QUESTIONS_MAX = 256
"""Questions under way; beyond it the channel is not read, and whoever asks waits."""


class HttpProcess:
    """`handle` answers a request. `listeners` are taken over, and closed by `stop`.

    uid  user that the process becomes; None: it stays who we are
    """

    def __init__(
        self,
        options: HttpOptions,
        listeners: Sequence[socket.socket],
        handle: Callable[[Request], Awaitable[Reply]],
        *,
        uid: int | None,
        log_level: str,
        log_format: str,
    ) -> None:
        self._listeners = listeners
        self._config = Configure(
            uid=uid,
            secret=options.secret,
            origins=options.origins,
            names=tuple(host for host, _ in options.addresses if host),
            ui=options.ui,
            log_level=log_level,
            log_format=log_format,
        )
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._life: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the process; None while one that died is replaced."""
        return self._process.pid if self._process is not None else None

    def set_log_level(self, level: str) -> None:
        """Processes that are started from now on log from this level on; the one that runs has asked for it itself."""
        self._config = msgspec.structs.replace(self._config, log_level=level)

    def start(self) -> None:
        """Start the process and keep one running. Returns at once: until it is up, the sockets' queues hold who connects."""
        self._life = self._loop.create_task(self._live(), name="http process")

    async def stop(self) -> None:
        """End the process and close the listening sockets."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait((self._life,))
        for listener in self._listeners:
            listener.close()

    async def _live(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            started_at = self._loop.time()
            try:
                code: int | str = await self._run_once()
            except OSError as error:
                code = error.strerror or str(error)
            if self._loop.time() - started_at > STABLE_AFTER:
                delay = BACKOFF_FIRST
            self.restarts += 1
            log.error("the HTTP process ended (%s); starting it again in %.1f s", code, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, BACKOFF_MAX)

    async def _run_once(self) -> int:
        """Start the process, answer it until it ends, and return its exit code. Raises OSError."""
        process, ours = self._spawn()
        try:
            channel = await Channel.open(ours)
            try:
                await channel.send(self._config)
                await self._answer_all(channel)
            finally:
                channel.close()
        except Closed:
            pass
        finally:
            for task in self._answers:
                task.cancel()
            self._process = None
            code = await asyncio.shield(self._loop.run_in_executor(None, _reap, process))
        return code

    def _spawn(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the process; return it and our end of its channel. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = [theirs.fileno(), *(listener.fileno() for listener in self._listeners)]
        try:
            # -P: never import from the directory the user happens to stand in.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.http", str(os.getpid()), *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return self._process, ours

    async def _answer_all(self, channel: Channel) -> None:
        """Answer questions until the channel closes. Raises Closed."""
        decode = msgspec.msgpack.Decoder(Question).decode
        free = asyncio.Semaphore(QUESTIONS_MAX)
        while True:
            data = await channel.receive()
            await free.acquire()
            task = self._loop.create_task(self._answer(channel, decode(data), free), name="answer")
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, channel: Channel, question: Question, free: asyncio.Semaphore) -> None:
        try:
            if isinstance(question.request, Stop):
                reply = Reply(error="the engine is not stopped over HTTP")
            else:
                reply = await self._handle(question.request)
            await channel.send(Answer(question.number, reply))
        except Closed:
            pass
        except Exception:
            log.exception("answering the HTTP process")
            await channel.send(Answer(question.number, Reply(error="a defect of the engine; its log tells more")))
        finally:
            free.release()


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process whose channel is closed; kill it when it takes too long."""
    try:
        return process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
