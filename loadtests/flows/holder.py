"""An application with many flows: `python -m loadtests.flows.holder SEED ADDRESS...`, for as long as its stdin is open.

A line on stdin tells it what to do, and a line of JSON on stdout what came of it (Carried):

    open TCP UDP        opens so many connections, and makes so many UDP sockets, spread over the addresses
    carry PHASE ORDER   every flow sends a message and compares its echo; ORDER: forth, back or mixed
    close               ends them all
"""

import asyncio
import errno
import hashlib
import random
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec
import uvloop

from engine.limits import raise_file_limit

__all__ = ["MESSAGE", "ORDERS", "Carried", "Holder", "message"]

AT_ONCE = 64
"""Connections under way, and flows that wait for their echo."""
CONNECT_TIMEOUT = ECHO_TIMEOUT = 60.0  # seconds
DATAGRAM_TIMEOUT = 5.0  # seconds until a datagram is sent again
DATAGRAM_TRIES = 12
PORT = 7
MESSAGE = 1024
"""Bytes that a flow carries in each direction, each time."""


ORDERS: dict[str, Callable[[range], Iterable[int]]] = {
    "forth": lambda numbers: numbers,
    "back": reversed,
    "mixed": lambda numbers: random.Random(7).sample(numbers, len(numbers)),
}
"""In which the flows take their turns."""


class Carried(msgspec.Struct):
    """What came of a command."""

    tcp: int = 0
    """Flows that carried every byte; for `open`, those that are open."""
    udp: int = 0
    errors: dict[str, int] = {}
    """Name of an error -> flows."""
    sent_again: int = 0
    """Datagrams of which no echo came in time."""


def message(seed: str, phase: str, number: int) -> bytes:
    """Return what flow `number` sends in this phase: the same in no other flow or phase."""
    return hashlib.shake_128(f"{seed} {phase} {number}".encode()).digest(MESSAGE)


class Holder:
    """Holds flows to `targets`, which echo at PORT. `seed` is no other holder's. `close` ends them all."""

    def __init__(self, seed: str, targets: Sequence[str]) -> None:
        self._seed = seed
        self._targets = targets
        self.tcp: list[socket.socket] = []
        self.udp: list[socket.socket] = []
        self.errors: Counter[str] = Counter()
        """Names of errors, and of how many flows."""
        self.sent_again = 0
        """Datagrams of which no echo came in time."""

    async def open_tcp(self, count: int) -> None:
        """Open connections, of which those that fail are counted in `errors`."""
        loop = asyncio.get_running_loop()

        async def connect(number: int) -> None:
            sock = socket.socket()
            try:
                sock.setblocking(False)
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await loop.sock_connect(sock, self._target(number))
            except OSError as error:
                sock.close()
                self._note("connect", error)
            else:
                self.tcp.append(sock)

        await _each(connect, range(count))

    def open_udp(self, count: int) -> None:
        """Make UDP sockets, each of which will be a mapping of its own."""
        for number in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.append(sock)
            sock.setblocking(False)
            sock.connect(self._target(number))

    async def carry(self, phase: str, order: str) -> tuple[int, int]:
        """Have every flow send a message and compare its echo; return how many TCP and UDP flows carried it whole."""
        whole: Counter[str] = Counter()

        async def by_tcp(number: int) -> None:
            if await self._echoes_stream(self.tcp[number], message(f"{self._seed} tcp", phase, number)):
                whole["tcp"] += 1

        async def by_udp(number: int) -> None:
            if await self._echoes_datagram(self.udp[number], message(f"{self._seed} udp", phase, number)):
                whole["udp"] += 1

        await _each(by_tcp, ORDERS[order](range(len(self.tcp))))
        await _each(by_udp, ORDERS[order](range(len(self.udp))))
        return whole["tcp"], whole["udp"]

    async def _echoes_stream(self, sock: socket.socket, data: bytes) -> bool:
        loop = asyncio.get_running_loop()
        received = b""
        try:
            async with asyncio.timeout(ECHO_TIMEOUT):
                await loop.sock_sendall(sock, data)
                while len(received) < len(data) and (piece := await loop.sock_recv(sock, len(data) - len(received))):
                    received += piece
        except OSError as error:
            self._note("stream", error)
            return False
        if received != data:
            self.errors["stream: wrong bytes"] += 1
        return received == data

    async def _echoes_datagram(self, sock: socket.socket, data: bytes) -> bool:
        loop = asyncio.get_running_loop()
        for _ in range(DATAGRAM_TRIES):
            try:
                async with asyncio.timeout(DATAGRAM_TIMEOUT):
                    await loop.sock_sendall(sock, data)
                    # The echo of an earlier phase may come late; of this one it is whole or not at all.
                    while (received := await loop.sock_recv(sock, 2 * MESSAGE)) != data:
                        if len(received) != MESSAGE:
                            self.errors["datagram: wrong bytes"] += 1
                            return False
                return True
            except TimeoutError:
                self.sent_again += 1
            except OSError as error:
                self._note("datagram", error)
                return False
        self.errors["datagram: no echo"] += 1
        return False

    def _target(self, number: int) -> tuple[str, int]:
        return self._targets[number % len(self._targets)], PORT

    def _note(self, what: str, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        self.errors[f"{what}: {name}"] += 1

    def close(self) -> None:
        """End all flows."""
        for sock in self.tcp + self.udp:
            sock.close()
        self.tcp.clear()
        self.udp.clear()


async def _each(work: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    """Do `work` for all numbers, AT_ONCE at a time."""
    waiting = iter(numbers)

    async def some() -> None:
        for number in waiting:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())


async def _serve(holder: Holder) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        holder.errors.clear()
        holder.sent_again = 0
        match line.split():
            case ["open", tcp, udp]:
                await holder.open_tcp(int(tcp))
                holder.open_udp(int(udp))
                whole = len(holder.tcp), len(holder.udp)
            case ["carry", phase, order]:
                whole = await holder.carry(phase, order)
            case ["close"]:
                holder.close()
                whole = 0, 0
            case _:
                raise ValueError(f"no command: {line}")
        done = Carried(*whole, dict(holder.errors), holder.sent_again)
        print(msgspec.json.encode(done).decode(), flush=True)


def main() -> None:
    """Command line; see the module's docstring."""
    raise_file_limit()
    holder = Holder(sys.argv[1], sys.argv[2:])
    try:
        uvloop.run(_serve(holder))
    finally:
        holder.close()


if __name__ == "__main__":
    main()
