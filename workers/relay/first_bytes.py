"""The first bytes of a TCP flow, taken before it is known where they go: for sniffing.

The application's handshake is completed first, or it would send nothing. What is taken here is handed on by whoever takes over
the connection; what exceeds the bound stays in the stack, held against the receive window.
"""

import asyncio
from time import monotonic

from workers.stack import CloseReason, TcpHandler
from workers.stack.tcp.connection import TcpConnection

__all__ = ["FirstBytes"]


class FirstBytes(TcpHandler):
    """Stands in for `flow`, the connection's handler, until `hand_to`.

    data   what has come and was not taken yet
    ended  the application has sent FIN behind it
    """

    def __init__(self, connection: TcpConnection, flow: TcpHandler, limit: int) -> None:
        self.data = bytearray()
        self.ended = False
        self._connection = connection
        self._flow = flow
        self._limit = limit
        self._news: asyncio.Future[None] | None = None
        connection.handler = self
        connection.accept(monotonic())

    @property
    def is_complete(self) -> bool:
        """Whether no more can come."""
        return self.ended or len(self.data) >= self._limit

    async def grown_to(self, size: int) -> None:
        """Wait until there are `size` bytes, or no more can come."""
        while len(self.data) < size and not self.is_complete:
            self._news = asyncio.get_running_loop().create_future()
            await self._news

    def take(self) -> bytes:
        """Return what there is, and make room for what the stack has held back."""
        data = bytes(self.data)
        self.data.clear()
        self._connection.resume(monotonic())
        return data

    def hand_to(self, handler: TcpHandler) -> None:
        """Make `handler` the connection's; it is given what is left, as from the application."""
        assert not self.data, "what was taken was handed on by the caller"
        self._connection.handler = handler
        self._connection.resume(monotonic())
        if self.ended:
            handler.on_eof()

    def on_data(self, data: memoryview, /) -> int:
        """TcpHandler: keep a copy, as much as there is room for."""
        room = self._limit - len(self.data)
        taken = data[:room]
        self.data += taken
        self._tell()
        return len(taken)

    def on_eof(self) -> None:
        """TcpHandler: no more will come."""
        self.ended = True
        self._tell()

    def on_send_space(self) -> None:
        """TcpHandler: nothing is sent yet."""

    def on_closed(self, reason: CloseReason, /) -> None:
        """TcpHandler: the flow is over; whoever waits here is cancelled with it."""
        self._flow.on_closed(reason)

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
