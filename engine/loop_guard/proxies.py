"""The processes behind local upstreams: whoever listens at their addresses, and their children.

Nothing is watched. The listening socket is asked for at each question, which takes microseconds; when it is another than
before, the proxy has started or restarted, and its processes are looked for again.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from time import monotonic

from engine.processes import Socket
from engine.processes.finder import ProcessFinder
from shared.process import ProcessInfo

__all__ = ["DNS_PORT", "Endpoint", "LocalProxies", "dynamic_forwards"]

log = logging.getLogger(__name__)

Endpoint = tuple[bytes, int]
"""Packed address and port of an upstream on this machine."""

ENDPOINTS_MAX = 16
"""Proxies that are followed, those of a chain among them."""
DNS_PORT = 53
RESOLVERS_FOR = 2.0
"""Seconds after which it is looked again whether a resolver has started."""
INIT = 1
"""It holds the sockets of socket-activated services too, and everything is its child."""


@dataclass(frozen=True, slots=True)
class _Proxy:
    """Who listens at one endpoint."""

    listeners: frozenset[int]
    """Inodes of the listening sockets: more than one where they share the port (SO_REUSEPORT)."""
    pids: tuple[int, ...]
    """Who holds them; empty when that could not be found out."""
    process: ProcessInfo
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """What one look has found."""

    proxies: Mapping[Endpoint, _Proxy]
    uids: frozenset[int]
    """Users of the proxies, of their descendants, of the listening sockets and of resolvers."""
    sockets: Mapping[int, ProcessInfo]
    """Inodes of all their sockets, each with the proxy that it belongs to."""
    resolvers: Mapping[int, int]
    """Inodes of the sockets at port 53 of other programs, each with a process that holds it."""
    of_resolvers: frozenset[int]
    """Inodes of all sockets of those processes."""
    made_at: float


_NOTHING = _View({}, frozenset(), {}, {}, frozenset(), float("-inf"))


class LocalProxies:
    """Tells the sockets of the proxies at `endpoints` from all others."""

    def __init__(self, finder: ProcessFinder, endpoints: Iterable[Endpoint]) -> None:
        self._finder = finder
        self._endpoints = tuple(endpoints)
        self._view = _NOTHING
        self._former: dict[Endpoint, _Proxy] = {}  # as they were when they stopped listening
        self._look_now: asyncio.Task[None] | None = None
        self._look_next: asyncio.Task[None] | None = None

    @property
    def all_listen(self) -> bool:
        """Whether a proxy was found at every endpoint at the last look."""
        return len(self._view.proxies) == len(self._endpoints)

    @property
    def sockets(self) -> Collection[int]:
        """Inodes of the proxies' sockets at the last look."""
        return self._view.sockets.keys()

    async def owner(self, sock: Socket) -> ProcessInfo | None:
        """Return the proxy that a socket belongs to, or that is about to start; None: none. Raises ProcessError."""
        listening = {endpoint: self._finder.table.listener(*endpoint) for endpoint in self._endpoints}
        silent = [endpoint for endpoint, listener in listening.items() if listener is None]
        if len(silent) < len(listening):
            if any(listener and self._is_new(endpoint, listener) for endpoint, listener in listening.items()):
                await self.look()
            if sock.inode not in self._view.sockets and sock.uid in self._view.uids:
                await self.look()
            owner = self._view.sockets.get(sock.inode)
            if owner is not None:
                return owner
        return await self._starting(sock, silent) if silent else None

    def _is_new(self, endpoint: Endpoint, listener: Socket) -> bool:
        known = self._view.proxies.get(endpoint)
        return known is None or listener.inode not in known.listeners

    async def look(self) -> None:
        """Look at the proxies' processes and sockets. Those who call while a look is under way share the next one."""
        if self._look_next is None:
            self._look_next = asyncio.get_running_loop().create_task(self._look_after(self._look_now), name="look")
        await asyncio.shield(self._look_next)

    async def follow(self, sock: Socket) -> bool:
        """Take in the program of a socket if it is the next one in a chain; return whether it is.

        A chain: the proxy hands its connections to another proxy on this machine (Privoxy to Tor), and that one sends them
        out. It listens where the proxy is connected to now. Raises ProcessError.
        """
        if len(self._endpoints) >= ENDPOINTS_MAX:
            return False
        await self.look()
        endpoint = await self._finder.in_thread(self._next_in_chain, sock)
        if endpoint is None:
            return False
        self._endpoints += (endpoint,)
        await self.look()
        return sock.inode in self._view.sockets

    async def waits_for(self, sock: Socket) -> bool:
        """Tell whether a proxy waits for an answer of the program that a socket is of, which is a resolver of this machine.

        The proxy looks its server up: had it to carry the resolver's question, it would wait for itself. Raises ProcessError.
        """
        if not self._view.proxies:
            return False
        if monotonic() - self._view.made_at > RESOLVERS_FOR:
            await self.look()
        return self.is_resolver(sock) and await self._finder.in_thread(self._is_asked, sock)

    def is_resolver(self, sock: Socket) -> bool:
        """Whether the program that a socket is of was found to answer at port 53, when `owner` was asked about the socket."""
        return sock.inode in self._view.of_resolvers

    def close(self) -> None:
        """Give up looking; whoever waits is cancelled."""
        for task in self._look_now, self._look_next:
            if task is not None:
                task.cancel()

    async def _look_after(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait((previous,))
        self._look_now, self._look_next = self._look_next, None
        before = self._view.proxies
        self._view = await self._finder.in_thread(self._examine, before)
        now = self._view.proxies
        self._former.update((endpoint, proxy) for endpoint, proxy in before.items() if endpoint not in now)
        for endpoint, proxy in now.items():
            if proxy.pids and (endpoint not in before or before[endpoint].pids != proxy.pids):
                log.info("%s: its own traffic leaves directly", _describe(endpoint, proxy))

    # in the thread

    def _examine(self, before: Mapping[Endpoint, _Proxy]) -> _View:
        table = self._finder.table
        held = cache(table.sockets_of)  # of one moment, and each process is read once
        all_listeners = table.listeners()
        proxies: dict[Endpoint, _Proxy] = {}
        sockets: dict[int, ProcessInfo] = {}
        uids: set[int] = set()
        for endpoint in self._endpoints:
            listeners = _reached(endpoint, all_listeners)
            if not listeners:
                continue
            known = before.get(endpoint)
            is_same = known is not None and _still_listens(known, listeners, held)
            proxy = known if known is not None and is_same else self._identify(listeners)
            proxies[endpoint] = proxy
            family = {*proxy.pids, *(child for pid in proxy.pids for child in table.descendants(pid))}
            uids.update(listener.uid for listener in listeners)
            uids.update(uid for pid in family if (uid := table.uid_of(pid)) is not None)
            for pid in family:
                sockets.update(dict.fromkeys(held(pid), proxy.process))
        resolvers = self._find_resolvers(sockets, all_listeners, held)
        uids.update(uid for pid in resolvers.values() if (uid := table.uid_of(pid)) is not None)
        of_resolvers = frozenset(inode for pid in set(resolvers.values()) for inode in held(pid))
        return _View(proxies, frozenset(uids), sockets, resolvers, of_resolvers, monotonic())

    def _find_resolvers(
        self, ours: Collection[int], listeners: Iterable[Socket], held: Callable[[int], set[int]]
    ) -> dict[int, int]:
        """Find who answers at port 53; those who did so at the last look are not looked for."""
        at_port = [*self._finder.table.bound(DNS_PORT), *(one for one in listeners if one.local_port == DNS_PORT)]
        wanted = {one.inode: one.uid for one in at_port if one.inode not in ours}
        before = self._view.resolvers
        found = {inode: before[inode] for inode in wanted if inode in before and inode in held(before[inode])}
        new = wanted.keys() - found.keys()
        if new:
            holders = self._finder.table.holders(new, uids={wanted[inode] for inode in new})
            found.update((inode, holder.pid) for inode, holder in holders.items() if holder.pid != INIT)
        return found

    def _identify(self, listeners: list[Socket]) -> _Proxy:
        """Find who holds the listening sockets."""
        table = self._finder.table
        inodes = frozenset(listener.inode for listener in listeners)
        pids = sorted({pid for inode in inodes for pid in table.all_holders(inode)} - {INIT})
        first = pids[0] if pids else None
        process = table.describe(first, listeners[0].uid)
        return _Proxy(inodes, tuple(pids), process, table.arguments(first) if first is not None else ())

    def _next_in_chain(self, sock: Socket) -> Endpoint | None:
        """Return where the proxies are connected to the program of a socket, or to one that has started it."""
        table = self._finder.table
        ours = self._view.sockets
        holder = table.holders((sock.inode,), uids=(sock.uid,)).get(sock.inode)
        if holder is None or sock.inode in ours:
            return None
        connected = {(one.remote, one.remote_port) for one in table.connections("tcp") if one.inode in ours}
        listeners = table.listeners()
        for pid in (holder.pid, *table.ancestors(holder.pid)):
            held = table.sockets_of(pid)
            for endpoint in connected.difference(self._endpoints):
                if any(one.inode in held for one in _reached(endpoint, listeners)):
                    return endpoint
        return None

    def _is_asked(self, sock: Socket) -> bool:
        table = self._finder.table
        ours = self._view.sockets
        questions = [*table.connections("udp"), *table.connections("tcp")]
        asked = {(one.remote, DNS_PORT) for one in questions if one.remote_port == DNS_PORT and one.inode in ours}
        if not asked:
            return False
        servers = {one.inode for one in (*table.bound(DNS_PORT), *table.listeners()) if _serves(one, asked)}
        holder = table.holders((sock.inode,), uids=(sock.uid,)).get(sock.inode)
        return holder is not None and not servers.isdisjoint(table.sockets_of(holder.pid))

    # proxies that do not listen yet

    async def _starting(self, sock: Socket, silent: list[Endpoint]) -> ProcessInfo | None:
        """Return the program of a socket if it will listen at one of the `silent` endpoints.

        `ssh -D` logs in before it listens, and others look their servers up first. Until then it is known by its command line:
        it is that of the proxy which listened there before, or it is ssh and names the port.
        """
        known = [self._view.proxies.get(endpoint) or self._former.get(endpoint) for endpoint in silent]
        process = await self._finder.owner(sock)
        if process.pid is None:
            return None
        arguments = self._finder.table.arguments(process.pid)
        if any(proxy and (process.path, arguments) == (proxy.process.path, proxy.arguments) for proxy in known):
            return process
        is_ssh = process.name == "ssh" and not dynamic_forwards(arguments).isdisjoint(port for _, port in silent)
        return process if is_ssh else None


def _still_listens(known: _Proxy, listeners: list[Socket], held: Callable[[int], set[int]]) -> bool:
    """Tell whether the same processes hold the same sockets.

    A daemon's first process listens, starts the one that stays, and ends: the socket is the same, its holder is not.
    """
    inodes = {listener.inode for listener in listeners}
    return (
        known.listeners == inodes and known.pids != () and not any(inodes.isdisjoint(held(pid)) for pid in known.pids)
    )


def _serves(server: Socket, asked: Collection[Endpoint]) -> bool:
    """Tell whether a socket is one that was asked."""
    return any(port == server.local_port and server.local in (address, bytes(4), bytes(16)) for address, port in asked)


def _reached(endpoint: Endpoint, listeners: Iterable[Socket]) -> list[Socket]:
    """Return the sockets that a connection to the endpoint may reach: those bound to its address, else those of any."""
    address, port = endpoint
    at_port = [listener for listener in listeners if listener.local_port == port]
    exact = [listener for listener in at_port if listener.local == address]
    # A socket of any IPv6 address takes IPv4 too, unless it was told not to.
    return exact or [one for one in at_port if not any(one.local) and len(one.local) >= len(address)]


def _describe(endpoint: Endpoint, proxy: _Proxy) -> str:
    name = proxy.process.name or "a program"
    return f"the proxy at {ip_address(endpoint[0])} port {endpoint[1]} is {name} (pid {proxy.pids[0]})"


_SSH_OPTIONS_WITH_VALUE = "BbcDEeFIiJLlmOoPpQRSWw"  # ssh(1)


def dynamic_forwards(arguments: Iterable[str]) -> set[int]:
    """Return the ports of -D and of DynamicForward in a command line of ssh(1)."""
    ports: set[int] = set()
    words = iter(tuple(arguments)[1:])
    for word in words:
        if not word.startswith("-"):
            continue
        for place, letter in enumerate(word[1:], start=2):
            if letter in _SSH_OPTIONS_WITH_VALUE:
                value = word[place:] or next(words, "")
                if letter == "o" and value.lower().startswith("dynamicforward"):
                    value = value[len("dynamicforward") :].strip(" =\t")
                elif letter != "D":
                    break
                port = value.rpartition(":")[2].rpartition("/")[2]
                if port.isdecimal():
                    ports.add(int(port))
                break
    return ports
