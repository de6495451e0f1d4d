"""What connections to servers have in common: framed.py and https.py say what is spoken over one."""

import asyncio
from time import monotonic

__all__ = ["Connection"]


class Connection(asyncio.Protocol):
    """One connection to a server, made by the loop.

    heard_at  monotonic seconds of the last bytes that came
    usable    takes further questions
    """

    idle_timeout: float
    """Seconds without a question after which we close."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.heard_at = monotonic()
        self.usable = True
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, message: bytes) -> bytes:
        """Return the answer to a message. Raises ConnectionLost when it may be asked again elsewhere, else ServerFailed."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once."""
        self.usable = False
        self._stop_idle()
        if self._transport is not None:
            self._transport.abort()

    def _start_idle(self) -> None:
        if self.usable:
            self._stop_idle()
            self._idle = self._loop.call_later(self.idle_timeout, self.abort)

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _fail_all(self) -> None:
        """The connection is gone: tell everybody who waits."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses of Transport

    def data_received(self, data: bytes) -> None:
        self.heard_at = monotonic()

    def eof_received(self) -> bool:
        return False  # close: the server is done

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._stop_idle()
        self._fail_all()
