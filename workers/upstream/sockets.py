"""Sockets of outbounds: made as DialConfig says, connected within a time."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_interface
from struct import Struct

from shared.config import DialConfig
from shared.metrics import Counters
from shared.system import bind_to_interface, take_any_port
from workers.upstream.egress import Egress
from workers.upstream.liveness import Liveness
from workers.upstream.local_ports import PortWatch

__all__ = [
    "Networks",
    "Sockets",
    "address_text",
    "networks",
    "pack_address",
    "round_trip_of",
    "wait_readable",
    "wait_writable",
]

_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_RTT = Struct("I")  # tcpi_rtt of struct tcp_info, microseconds (linux/tcp.h)
_RTT_AT = 68


def address_text(packed: bytes) -> str:
    """Return a packed address as text."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def pack_address(text: str) -> bytes | None:
    """Return the packed form of an address; None when it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return None


def round_trip_of(sock: socket.socket) -> float | None:
    """Return the smoothed round-trip time of a TCP socket in seconds; None where the kernel does not tell (macOS)."""
    if _TCP_INFO is None:
        return None
    try:
        (microseconds,) = _RTT.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RTT_AT + _RTT.size), _RTT_AT)
    except OSError:
        return None
    return float(microseconds) / 1e6


Networks = tuple[IPv4Network | IPv6Network, ...]


def networks(texts: Iterable[str]) -> Networks:
    """Return the networks of addresses with number of bits. Raises ValueError."""
    return tuple(ip_interface(text).network for text in texts)


class Sockets:
    """Makes the sockets of one outbound.

    `mark` is set as SO_MARK where the outbound has none of its own, so that the policy routes let it out beside the tun;
    on macOS it is an Egress, by which the socket is bound.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dial: DialConfig, counters: Counters, *, mark: int | Egress | None
    ) -> None:
        self.loop = loop
        self._ports = PortWatch(counters)
        self.timeout = dial.connect_timeout
        self._egress = mark if isinstance(mark, Egress) and dial.bind_interface is None else None
        own_mark = mark if isinstance(mark, int) else None
        self._mark = dial.routing_mark if dial.routing_mark is not None else own_mark
        self._interface = dial.bind_interface
        self._liveness = Liveness(dial)

    def make(self, family: int, kind: int, *, local: bool = False) -> socket.socket:
        """Return a non-blocking socket, marked and, unless it is for a `local` address, bound. Raises OSError."""
        sock = socket.socket(family, kind)
        try:
            sock.setblocking(False)
            if self._mark is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            if self._interface is not None and not local:
                bind_to_interface(sock, self._interface)
            elif self._egress is not None and not local:
                self._egress.bind(sock)
        except OSError:
            sock.close()
            raise
        return sock

    async def connect(self, address: str, port: int, *, timeout: float) -> socket.socket:
        """Return a TCP connection to an address. Raises OSError (NoLocalPort among them), TimeoutError."""
        self._ports.check(address, port)
        try:
            return await self._connect(address, port, timeout)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise self._ports.explain(error, address, port) from error
            raise

    async def _connect(self, address: str, port: int, timeout: float) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.make(family, socket.SOCK_STREAM, local=address == "::1" or address.startswith("127."))
        try:
            take_any_port(sock)
            target = (address, port)
            code = sock.connect_ex(target)
            if code == errno.EINPROGRESS:
                # A proxy on this machine has answered before the first call returned: ask once more before waiting.
                code = sock.connect_ex(target)
            if code == errno.EALREADY:
                async with asyncio.timeout(timeout):
                    await wait_writable(self.loop, sock.fileno())
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code and code != errno.EISCONN:  # as macOS says it to who asks twice
                raise OSError(code, os.strerror(code))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._liveness.watch(sock)
        except BaseException:
            sock.close()
            raise
        return sock


async def wait_readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Return when a descriptor can be read."""
    waiter = loop.create_future()
    loop.add_reader(fd, _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(fd)


async def wait_writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Return when a descriptor can be written."""
    waiter = loop.create_future()
    loop.add_writer(fd, _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_writer(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():  # the descriptor stays ready until the waiter has run
        waiter.set_result(None)
