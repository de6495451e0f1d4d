"""The master's front of the process table: quick answers on the loop, everything slow in one thread.

Questions that need a walk of /proc wait for the next one together, so that a hundred new flows cost one walk, not a hundred.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from engine.processes import Holder, ProcessError, ProcessTable, Socket
from shared.metrics import Cell, Counters
from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["ProcessFinder"]

log = logging.getLogger(__name__)

T = TypeVar("T")

KNOWN_MAX = 1024
"""Sockets whose owner is remembered, half a KiB each; the one longest unused is forgotten. Most have long been closed."""
WAITING_MAX = 1024
"""Sockets that may wait for a walk; beyond it an answer has the user only (process_unknown)."""

NOBODY = ProcessInfo()


@dataclass(frozen=True, slots=True)
class _Owner:
    holder: Holder | None
    process: ProcessInfo


class ProcessFinder:
    """Finds owners of flows. Takes over `table`. Use it on one loop."""

    def __init__(self, table: ProcessTable, counters: Counters) -> None:
        self.table = table
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="processes")
        self._known: OrderedDict[int, _Owner] = OrderedDict()  # by inode
        self._waiting: dict[int, tuple[Socket, asyncio.Future[ProcessInfo]]] = {}  # by inode
        self._walk: asyncio.Task[None] | None = None
        self._failed = False

    def close(self) -> None:
        """Give up what is under way; questions not yet answered are cancelled."""
        if self._walk is not None:
            self._walk.cancel()
        for _, future in self._waiting.values():
            future.cancel()
        self._thread.shutdown(cancel_futures=True)
        self.table.close()

    async def find(self, flow: Ends, *, user_only: bool = False) -> ProcessInfo:
        """Return whose flow it is; what cannot be found out is empty. `user_only`: the user is enough, which needs no walk."""
        self._counters[Cell.PROCESS_LOOKUPS] += 1
        socket = await self.find_socket(flow)
        if socket is None:
            process = NOBODY
        elif user_only:
            process = await self.in_thread(self.table.describe, None, socket.uid)
        else:
            process = await self.owner(socket)
        if process.uid is None or (process.pid is None and not user_only):
            self._counters[Cell.PROCESS_UNKNOWN] += 1
        return process

    async def find_socket(self, flow: Ends) -> Socket | None:
        """Return the flow's socket; None when no process of this machine holds it (forwarded traffic, other namespaces)."""
        try:
            socket = self.table.find(flow)
            if socket is None and flow.network == "udp":
                # Connected TCP sockets have no more than one entry, which the exact query finds. UDP sockets may share
                # a port, of which the kernel returns the one that it would have chosen.
                socket = await self.in_thread(self.table.search, flow)
        except ProcessError as error:
            if not self._failed:
                self._failed = True
                log.warning("%s", error)
            return None
        return socket

    async def owner(self, socket: Socket) -> ProcessInfo:
        """Return the process that holds a socket; only its user when there are too many questions."""
        known = self._known.get(socket.inode)
        if known is not None:
            if known.holder is not None and self.table.holds(known.holder, socket.inode):
                self._known.move_to_end(socket.inode)
                return known.process
            del self._known[socket.inode]
        entry = self._waiting.get(socket.inode)
        if entry is None:
            if len(self._waiting) >= WAITING_MAX:
                return ProcessInfo(uid=socket.uid)
            entry = self._waiting[socket.inode] = (socket, self._loop.create_future())
            if self._walk is None:
                self._walk = self._loop.create_task(self._walk_for_all(), name="processes")
        return await asyncio.shield(entry[1])  # others may wait for it too

    async def in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        """Run one of the table's slow methods in the thread that may use them."""
        return await self._loop.run_in_executor(self._thread, call, *arguments)

    async def _walk_for_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, {}
                sockets = [socket for socket, _ in batch.values()]
                try:
                    owners = await self.in_thread(self._identify, sockets)
                except BaseException:
                    for _, future in batch.values():
                        future.cancel()
                    raise
                for owner, (socket, future) in zip(owners, batch.values(), strict=True):
                    self._remember(socket.inode, owner)
                    if not future.done():
                        future.set_result(owner.process)
        finally:
            self._walk = None

    def _identify(self, sockets: list[Socket]) -> list["_Owner"]:
        """In the thread: find who holds each socket, and what that is."""
        holders = self.table.holders([socket.inode for socket in sockets], uids={socket.uid for socket in sockets})
        found = [(holders.get(socket.inode), socket.uid) for socket in sockets]
        return [_Owner(holder, self.table.describe(holder.pid if holder else None, uid)) for holder, uid in found]

    def _remember(self, inode: int, owner: _Owner) -> None:
        if owner.holder is None:  # it may be found the next time: the socket was on its way from one process to another
            return
        if len(self._known) >= KNOWN_MAX:
            self._known.popitem(last=False)
        self._known[inode] = owner
