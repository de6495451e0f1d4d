"""workers/upstream/sockets.py: connections notice that their other end has vanished."""

import asyncio
import socket

import pytest

from shared.config import DialConfig
from shared.metrics import CELLS
from tests.support.loop import on_loop
from workers.upstream.sockets import Sockets


@pytest.mark.parametrize(
    ("dial", "asks", "idle", "interval", "patience"),
    [
        (DialConfig(), 1, 30, 10, 60),
        (DialConfig(keep_alive_idle=2, keep_alive_interval=1), 1, 2, 1, 5),
        (DialConfig(keep_alive=False), 0, None, None, 60),
    ],
)
def test_half_open_connections_come_to_an_end(
    dial: DialConfig, asks: int, idle: int | None, interval: int | None, patience: int
) -> None:
    @on_loop
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            sockets = Sockets(asyncio.get_running_loop(), dial, [0] * CELLS, mark=None)
            with await sockets.connect("127.0.0.1", server.getsockname()[1], timeout=5) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == asks
                for option, value in (socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, interval):
                    assert value is None or sock.getsockopt(socket.IPPROTO_TCP, option) == value
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == patience * 1000

    run()
