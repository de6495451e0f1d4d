"""A long-running command whose output is read as it comes: the engine, a SOCKS server, the targets."""

import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import IO, Self

__all__ = ["Service", "ServiceError"]

UNREAD_MAX = 10_000
"""Lines kept for whoever reads them; beyond it the oldest go."""
TAIL_MAX = 200
"""Last lines kept for error messages."""
STOP_TIMEOUT = 10.0
"""Seconds a service has to end after SIGTERM."""


class ServiceError(Exception):
    """A service did not do what it was started for; the message ends with its last output."""


class Service:
    """A running command, in a session of its own so that Ctrl-C reaches its owner only, who then stops it in order.

    stdout and stderr are read together by a thread, so that the command never waits for its reader.
    """

    def __init__(self, name: str, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> None:
        """Start `command`; `name` is what error messages call it. Raises OSError when it cannot be run.

        It inherits the descriptors `pass_fds`, which remain the caller's to close.
        """
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=pass_fds,
        )
        assert self.process.stdout is not None, "stdout is a pipe"
        self._unread: deque[str] = deque(maxlen=UNREAD_MAX)
        self._tail: deque[str] = deque(maxlen=TAIL_MAX)
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        with output:
            for text in output:
                line = text.rstrip("\n")
                with self._changed:
                    self._unread.append(line)
                    self._tail.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        """The last lines that the command printed."""
        with self._changed:
            return "\n".join(self._tail)

    def next_line(self, timeout: float) -> str | None:
        """Return the next line of output, None at its end. Raises ServiceError when none comes in `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._unread or self._ended, timeout):
                raise ServiceError(f"{self.name}: no output for {timeout:g} s" + self._quote())
            return self._unread.popleft() if self._unread else None

    def wait_for(self, text: str, timeout: float) -> str:
        """Return the first unread line that contains `text`.

        Raises ServiceError when the command ends without one, or prints none in `timeout` seconds.
        """
        deadline = monotonic() + timeout
        while (line := self.next_line(max(0.0, deadline - monotonic()))) is not None:
            if text in line:
                return line
        raise ServiceError(
            f"{self.name} ended with exit code {self.process.wait()} before it said {text!r}" + self._quote()
        )

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM, wait, and return the exit code; SIGKILL after `timeout` seconds (the exit code is then -9)."""
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # A descendant that outlived the command may hold the pipe open: its namespace will kill it.
        self._reader.join(1.0)
        return self.process.returncode

    def _quote(self) -> str:
        return ". It said:\n" + "\n".join(self._tail) if self._tail else ". It said nothing."

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
