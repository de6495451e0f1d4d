"""The loop guard: answers workers, learns the servers of local proxies, and routes them around the tun."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from time import monotonic
from typing import Protocol

from engine.loop_guard.proxies import DNS_PORT, Endpoint, LocalProxies
from engine.loop_guard.servers import UNUSED_FOR, LearnedServers
from engine.netconf import NetworkError
from engine.processes import ProcessError
from engine.processes.finder import ProcessFinder
from shared.process import ProcessInfo
from shared.rules.flow import Ends

__all__ = ["Bypassing", "LoopGuard"]

log = logging.getLogger(__name__)

CHANGES_MAX = 256
"""Changes of routes that may wait for the disk."""
EXPIRE_INTERVAL = UNUSED_FOR / 4  # seconds


class Bypassing(Protocol):
    """What of engine.netconf.Network routes hosts around the tun."""

    async def bypass(self, addresses: Iterable[str]) -> None:
        """Let these addresses leave beside the tun. Raises NetworkError."""

    async def end_bypass(self, addresses: Iterable[str]) -> None:
        """Lead them into the tun again. Raises NetworkError."""


class LoopGuard:
    """Tells the flows of local proxies from those of applications. `clock` gives monotonic seconds."""

    def __init__(self, finder: ProcessFinder, network: Bypassing, *, clock: Callable[[], float] = monotonic) -> None:
        self._finder = finder
        self._network = network
        self._clock = clock
        self._proxies = LocalProxies(finder, ())
        self._servers = LearnedServers()
        # Addresses, and whether they are to bypass the tun. While it is full nothing is learned: it is at a later flow.
        self._changes: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self._fake: tuple[IPv4Network | IPv6Network, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []
        self._failed = False

    def start(self, upstreams: Iterable[Endpoint], *, fake_ranges: Iterable[str] = ()) -> None:
        """Begin to guard the proxies at these local endpoints. Again after a reload: what was learned is kept.

        `fake_ranges`: prefixes whose addresses stand for names; they are nobody's server.
        """
        self._fake = tuple(map(ip_network, fake_ranges))
        self._proxies.close()
        self._proxies = LocalProxies(self._finder, upstreams)
        loop = asyncio.get_running_loop()
        if not self._tasks:
            self._tasks = [
                loop.create_task(self._apply_changes(), name="bypass"),
                loop.create_task(self._expire_for_ever(), name="expire servers"),
            ]
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(loop.create_task(self._look_first(self._proxies), name="look first"))

    async def _look_first(self, proxies: LocalProxies) -> None:
        try:
            await proxies.look()
        except ProcessError as error:
            self._tell_failure(error)
        else:
            if not proxies.all_listen:
                log.warning("the proxy on this machine is not running (yet): until it is, nothing can be carried")

    async def close(self) -> None:
        """Stop. Routes are left to Network.restore."""
        self._proxies.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def own_proxy(self, flow: Ends) -> tuple[ProcessInfo | None, bool]:
        """Return the proxy whose own a flow is that came out of the tun, and learn from it; None: it is an application's.

        And whether that holds for all that its socket sends: what a resolver asks is the proxy's at one time, and an
        application's at another.
        """
        now = self._clock()
        try:
            sock = await self._finder.find_socket(flow)
            proxy = await self._proxies.owner(sock) if sock is not None else None
            is_question = flow.destination_port == DNS_PORT
            if sock is not None and proxy is None and is_question and await self._proxies.waits_for(sock):
                return await self._finder.owner(sock), False
        except ProcessError as error:
            self._tell_failure(error)
            return None, False
        if sock is None or proxy is None:
            self._servers.asked_for(flow.destination, now)
            return None, sock is None or not self._proxies.is_resolver(sock)
        if self._may_be_server(flow):
            udp_socket = sock.inode if flow.network == "udp" else None
            if self._servers.contacted(flow.destination, now, udp_socket=udp_socket):
                self._changes.put_nowait((flow.destination, True))
                for address in self._servers.surplus():
                    self._changes.put_nowait((address, False))
        return proxy, True

    async def follow(self, flow: Ends) -> bool:
        """Look whether a flow that seems to lead in a circle is of a program behind a proxy; if so, it is let out from now on."""
        try:
            sock = await self._finder.find_socket(flow)
            if sock is None or not await self._proxies.follow(sock):
                return False
        except ProcessError as error:
            self._tell_failure(error)
            return False
        self._servers.retract(flow.destination)
        return True

    def _tell_failure(self, error: ProcessError) -> None:
        if not self._failed:
            self._failed = True
            log.warning("%s; the proxy on this machine must be let out by a rule", str(error).rstrip("."))

    def _may_be_server(self, flow: Ends) -> bool:
        # Servers asked at port 53 are the machine's resolvers, which applications ask too.
        if flow.destination_port == DNS_PORT or self._changes.qsize() >= CHANGES_MAX:
            return False
        address = ip_address(flow.destination)
        return not any(address in fake for fake in self._fake)

    async def _apply_changes(self) -> None:
        """Change routes one after the other: the order counts, and each is written to disk first."""
        while True:
            address, around = await self._changes.get()
            host = str(ip_address(address))
            try:
                if around:
                    await self._network.bypass([host])
                    log.info("%s is a server of the proxy on this machine: it is routed around the tun", host)
                else:
                    await self._network.end_bypass([host])
                    log.info("%s is no longer used by the proxy: it goes through the tun again", host)
            except NetworkError as error:
                log.warning("%s", error)

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_INTERVAL)
            if self._servers:
                await self.expire()

    async def expire(self) -> None:
        """Give up the servers that the proxy no longer uses."""
        try:
            await self._proxies.look()
            connections = await self._finder.in_thread(self._finder.table.connections, "tcp")
            connections += await self._finder.in_thread(self._finder.table.connections, "udp")
        except ProcessError:
            return
        sockets = self._proxies.sockets
        connected = {found.remote for found in connections if found.inode in sockets}
        for address in self._servers.expire(connected, sockets, self._clock()):
            self._changes.put_nowait((address, False))
