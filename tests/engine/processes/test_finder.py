"""engine/processes/finder.py on the real table: answers at once, walks shared, owners remembered and checked again."""

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from engine.processes import Holder, open_process_table
from engine.processes.finder import WAITING_MAX, ProcessFinder
from engine.processes.linux import LinuxProcessTable
from engine.processes.sockets import open_sock_diag
from shared.metrics import CELLS, Cell
from shared.rules.flow import Ends
from tests.engine.processes.test_linux import ELSEWHERE, LOOPBACK, flow_of, inode_of


class CountingTable(LinuxProcessTable):
    """The real table; counts the walks."""

    def __init__(self) -> None:
        super().__init__(open_sock_diag(), open_sock_diag())
        self.walks: list[int] = []

    def holders(self, inodes: Collection[int], *, uids: Collection[int] = ()) -> dict[int, Holder]:
        self.walks.append(len(inodes))
        return super().holders(inodes, uids=uids)


def run(body: Callable[[ProcessFinder, CountingTable, list[int]], Coroutine[Any, Any, None]]) -> None:
    """Run `body` with a finder, its table and its counters."""

    async def session() -> None:
        table, counters = CountingTable(), [0] * CELLS
        finder = ProcessFinder(table, counters)
        try:
            await body(finder, table, counters)
        finally:
            finder.close()

    asyncio.run(session())


def connected(server: socket.socket) -> socket.socket:
    return socket.create_connection(server.getsockname())


def test_owner_is_found_once_and_remembered() -> None:
    async def body(finder: ProcessFinder, table: CountingTable, counters: list[int]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, connected(server) as app:
            flow = flow_of(app, "tcp")
            first = await finder.find(flow)
            assert first.pid == os.getpid()
            assert await finder.find(flow) == first
            assert table.walks == [1]
            assert (counters[Cell.PROCESS_LOOKUPS], counters[Cell.PROCESS_UNKNOWN]) == (2, 0)

    run(body)


def test_questions_that_come_together_share_a_walk() -> None:
    async def body(finder: ProcessFinder, table: CountingTable, counters: list[int]) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=32) as server:
            apps = [connected(server) for _ in range(20)]
            flows = [flow_of(app, "tcp") for app in apps]
            found = await asyncio.gather(*(finder.find(flow) for flow in (*flows, *flows)))
            assert {process.pid for process in found} == {os.getpid()}
            assert table.walks == [20]
            for app in apps:
                app.close()

    run(body)


def test_socket_that_went_to_another_descriptor_is_looked_for_again() -> None:
    async def body(finder: ProcessFinder, table: CountingTable, counters: list[int]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, connected(server) as app:
            flow = flow_of(app, "tcp")
            await finder.find(flow)
            with app.dup():
                os.close(app.detach())
                assert (await finder.find(flow)).pid == os.getpid()
            assert len(table.walks) == 2

    run(body)


def test_flow_without_socket_here_has_nothing() -> None:
    async def body(finder: ProcessFinder, table: CountingTable, counters: list[int]) -> None:
        for network in "tcp", "udp":
            process = await finder.find(Ends(network, ELSEWHERE, 1, LOOPBACK[4], 2))  # type: ignore[arg-type]
            assert process.pid is None and process.uid is None
        assert counters[Cell.PROCESS_UNKNOWN] == 2
        assert table.walks == []

    run(body)


def test_too_many_questions_are_answered_with_the_user_alone() -> None:
    async def body(finder: ProcessFinder, table: CountingTable, counters: list[int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
            app.connect(("127.0.0.1", 9))
            found = table.find(flow_of(app, "udp"))
            assert found is not None and found.inode == inode_of(app)
            made = [type(found)(b"", 0, b"", 0, found.uid, -number) for number in range(WAITING_MAX + 1)]
            answers = await asyncio.gather(*(finder.owner(one) for one in made))
            assert answers[-1].uid == os.getuid()
            assert table.walks == [WAITING_MAX]

    run(body)


def test_close_gives_up_what_waits() -> None:
    async def session() -> None:
        finder = ProcessFinder(open_process_table(), [0] * CELLS)
        with socket.create_server(("127.0.0.1", 0)) as server, connected(server) as app:
            question = asyncio.get_running_loop().create_task(finder.find(flow_of(app, "tcp")))
            await asyncio.sleep(0)
            finder.close()
            await asyncio.gather(question, return_exceptions=True)
            assert question.cancelled()

    asyncio.run(session())
