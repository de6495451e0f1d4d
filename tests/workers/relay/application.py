"""What stands in the stack's place in tests of UDP relaying alone: the application's end, as plain values."""

import asyncio
from time import monotonic

from workers.stack import Refusal


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
