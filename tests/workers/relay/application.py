"""What stands in the stack's place in tests of the relay alone: the application's end of flows, as plain values."""

import asyncio
from time import monotonic

from workers.stack import CloseReason, Refusal, TcpHandler


class Datagrams:
    """Receives what the relay gives the application: datagrams and ICMP errors, in order."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, int, bytes, int, bytes]] = asyncio.Queue()
        self.errors: asyncio.Queue[tuple[Refusal, bytes, int, bytes, int, bytes]] = asyncio.Queue()

    @property
    def now(self) -> float:
        return monotonic()

    def send_datagram(
        self,
        version: int,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        payload: memoryview,
    ) -> None:
        assert version == (4 if len(source) == len(destination) == 4 else 6)
        self.received.put_nowait((source, source_port, destination, destination_port, bytes(payload)))

    def send_unreachable(
        self,
        refusal: Refusal,
        version: int,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        payload: memoryview,
    ) -> None:
        assert version == (4 if len(source) == len(destination) == 4 else 6)
        self.errors.put_nowait((refusal, source, source_port, destination, destination_port, bytes(payload)))


class Connection:
    """One TCP connection whose application is the test: it says what arrives and how much space there is.

    It keeps the contract of TcpConnection and TcpHandler: what the handler did not take is held, and offered by resume.
    """

    handler: TcpHandler

    def __init__(self, destination: tuple[bytes, int], space: int = 1 << 30) -> None:
        self.destination, self.destination_port = destination
        self.version = 4 if len(self.destination) == 4 else 6
        self.space = space  # bytes that the send buffer still takes
        self.received = bytearray()  # what the relay has sent to the application
        self.refused: Refusal | None = None
        self.closed_with: CloseReason | None = None
        self.changed = asyncio.Condition()
        self.accepted = False
        self.finished = False  # the relay has sent FIN
        self._held = bytearray()
        self._eof = False
        self._buffer = bytearray(65536)
        self._tasks: set[asyncio.Task[None]] = set()

    async def until(self, condition: str) -> None:
        """Wait until the attribute `condition` is true."""
        async with self.changed:
            await self.changed.wait_for(lambda: getattr(self, condition))

    async def until_received(self, size: int) -> bytes:
        """Wait for `size` bytes in all, and return them."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.received) >= size)
        return bytes(self.received)

    def _notify(self) -> None:
        async def notify() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # the application

    def data(self, data: bytes) -> None:
        """Data arrives from the application."""
        view = memoryview(data)
        taken = 0 if self._held else self.handler.on_data(view)
        self._held += view[taken:]

    def eof(self) -> None:
        """FIN arrives from the application."""
        self._eof = True
        self._offer()

    def reset(self) -> None:
        """RST arrives from the application."""
        self._close(CloseReason.RESET)

    def grant(self, space: int) -> None:
        """The application has acknowledged `space` bytes."""
        self.space += space
        self.handler.on_send_space()

    @property
    def held(self) -> int:
        return len(self._held)

    def _offer(self) -> None:
        while self._held:
            taken = self.handler.on_data(memoryview(bytes(self._held[:65536])))
            del self._held[:taken]
            if not taken:
                return
        if self._eof:
            self._eof = False
            self.handler.on_eof()

    def _close(self, reason: CloseReason) -> None:
        if self.closed_with is None:
            self.closed_with = reason
            self.handler.on_closed(reason)
            self._notify()

    # TcpConnection, as the relay uses it

    def accept(self, now: float) -> None:
        self.accepted = True
        self._notify()

    def refuse(self, refusal: Refusal, now: float) -> None:
        self.refused = refusal
        self._close(CloseReason.ABORTED)

    def resume(self, now: float) -> None:
        self._offer()
        self._notify()

    def send_buffer(self) -> memoryview | None:
        return memoryview(self._buffer)[: self.space] if self.space else None

    def commit(self, n: int, now: float) -> None:
        self.space -= n
        self.received += self._buffer[:n]
        self._notify()

    def shutdown(self, now: float) -> None:
        self.finished = True
        self._notify()

    def abort(self, now: float) -> None:
        self._close(CloseReason.ABORTED)
