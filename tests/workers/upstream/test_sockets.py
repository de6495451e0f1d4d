"""workers/upstream/sockets.py: connections notice that their other end has vanished."""

import asyncio
import socket

from shared.config import DialConfig
from shared.metrics import CELLS
from tests.support.loop import on_loop
from workers.upstream.sockets import Sockets


@on_loop
async def test_half_open_connections_come_to_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sockets = Sockets(asyncio.get_running_loop(), DialConfig(), [0] * CELLS, mark=None)
        with await sockets.connect("127.0.0.1", server.getsockname()[1], timeout=5) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            silence = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            questions = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            questions *= sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            assert silence + questions <= 180
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
