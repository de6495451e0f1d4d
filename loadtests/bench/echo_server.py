"""TCP echo at several ports, until killed: `python -m loadtests.bench.echo_server ADDRESS FIRST_PORT END_PORT`."""

import asyncio
import sys
from typing import cast

import uvloop

BACKLOG = 4096


class Echo(asyncio.Protocol):
    """Sends back what comes; closes when the client has."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._transport.write(data)


async def serve(address: str, ports: range) -> None:
    """Listen at `address` on every one of `ports`, for ever."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Echo, address, port, backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], range(int(sys.argv[2]), int(sys.argv[3]))))
