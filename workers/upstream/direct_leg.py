"""Datagrams of one endpoint from sockets of our own, one per IP version in use.

The sockets are not connected: every peer sees the same port (endpoint-independent mapping, RFC 4787 REQ-1), and any peer may
answer it. ICMP errors come through the error queue (ip(7), IP_RECVERR), which alone says which datagram they are about.
"""

import socket
from collections.abc import Callable
from errno import ECONNREFUSED
from struct import Struct

from shared.metrics import Cell, Counters
from workers.upstream import LegOwner, Send
from workers.upstream.sockets import Sockets

__all__ = ["DirectLeg"]

READS_PER_TURN = 64
"""Datagrams of one socket before other flows get their turn."""
SOCKET_BUFFER = 1024 * 1024  # bytes asked for; the default holds three datagrams of 64 KiB

_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT, _IP_RECVERR = 10, 0, 11  # include/uapi/linux/in.h
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25  # include/uapi/linux/in6.h
_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_RECVERR),
}
_ERROR = Struct("=IBBBBII").unpack_from  # struct sock_extended_err, include/uapi/linux/errqueue.h
_QUOTED_MAX = 65536
_HAS_ERROR_QUEUE = hasattr(socket, "MSG_ERRQUEUE")
"""Linux; elsewhere the numbers above mean something else, datagrams are sent in fragments, and errors are not told apart."""


class DirectLeg:
    """Sockets are opened when the first datagram of their IP version is sent.

    `is_shut` tells of addresses that nothing is sent to. `address`: where the leg leads to alone; the owner is told no peers.
    """

    def __init__(
        self,
        sockets: Sockets,
        owner: LegOwner,
        counters: Counters,
        buffer: bytearray,
        is_shut: Callable[[str], bool],
        *,
        address: bytes | None,
    ) -> None:
        self._make = sockets.make
        self._loop = sockets.loop
        self._owner = owner
        self._counters = counters
        self._buffer = buffer
        self._is_shut = is_shut
        self._address = address
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._packed: dict[str, bytes] = {}

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def to(self, host: bytes | str, port: int) -> Send:
        """See Leg."""
        packed = self._address if isinstance(host, str) else host
        assert packed is not None, "only a leg that leads to one host is given its name"
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        target = (socket.inet_ntop(family, packed), port)
        counters = self._counters
        told = b"" if self._address else packed
        where: tuple[tuple[str, int], ...] = (target,)
        transmit: Callable[..., int] | None = None
        try:
            if not self._is_shut(target[0]):
                sock = self._socket(family)
                transmit = sock.sendto
                if self._address is not None:  # whoever else sends to us is not meant
                    sock.connect(target)
                    transmit, where = sock.send, ()
        except OSError:
            pass

        def send(payload: memoryview) -> None:
            if transmit is None:
                counters[Cell.DROP_UDP_UPSTREAM] += 1
                self._owner.unreachable(told, port, bytes(payload))
                return
            try:
                transmit(payload, *where)
            except BlockingIOError:
                counters[Cell.DROP_UDP_UPSTREAM] += 1
            except OSError:
                # It may be the error that ICMP brought about an earlier datagram, told once: this one was not sent.
                try:
                    transmit(payload, *where)
                except OSError:
                    counters[Cell.DROP_UDP_UPSTREAM] += 1
                    self._owner.unreachable(told, port, bytes(payload))

        return send

    def _socket(self, family: socket.AddressFamily) -> socket.socket:
        """Return the socket of an IP version. Raises OSError."""
        sock = self._sockets.get(family)
        if sock is not None:
            return sock
        sock = self._make(family, socket.SOCK_DGRAM)
        try:
            level, mtu_discover, recverr = _OPTIONS[family]
            # The application knows nothing of our path: what does not fit it is sent in fragments.
            if _HAS_ERROR_QUEUE:
                sock.setsockopt(level, mtu_discover, _IP_PMTUDISC_DONT)
                sock.setsockopt(level, recverr, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        except OSError:
            sock.close()
            raise
        self._sockets[family] = sock
        self._loop.add_reader(sock.fileno(), self._on_readable, sock)
        return sock

    def _on_readable(self, sock: socket.socket) -> None:
        buffer = memoryview(self._buffer)
        for _ in range(READS_PER_TURN):
            try:
                size, peer = sock.recvfrom_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                self._read_errors(sock)
                if sock.fileno() < 0:
                    return
                continue
            if self._address is not None:
                self._owner.deliver(b"", peer[1], buffer[:size])
            elif (packed := self._pack(sock.family, peer[0])) is not None:
                self._owner.deliver(packed, peer[1], buffer[:size])
            if sock.fileno() < 0:
                return

    def _pack(self, family: int, host: str) -> bytes | None:
        """Return the packed address of a peer; None when the application speaks the other IP version."""
        packed = self._packed.get(host)
        if packed is None:
            packed = socket.inet_pton(family, host.partition("%")[0])
            if len(self._packed) >= 256:
                self._packed.clear()
            self._packed[host] = packed
        if len(packed) != len(self._owner.source[0]):
            self._counters[Cell.DROP_UDP_UPSTREAM] += 1
            return None
        return packed

    def _read_errors(self, sock: socket.socket) -> None:
        """Tell the application of the datagrams that ICMP errors came back for."""
        for _ in range(READS_PER_TURN if _HAS_ERROR_QUEUE else 0):
            try:
                payload, ancillary, _, peer = sock.recvmsg(_QUOTED_MAX, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            self._counters[Cell.DROP_UDP_UPSTREAM] += 1
            refused = any(_ERROR(data)[0] == ECONNREFUSED for _, _, data in ancillary if len(data) >= 16)
            if refused:
                packed = b"" if self._address else socket.inet_pton(sock.family, peer[0].partition("%")[0])
                self._owner.unreachable(packed, peer[1], payload)
