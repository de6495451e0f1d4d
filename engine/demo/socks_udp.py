"""The data of a UDP ASSOCIATE (RFC 1928, section 7): datagrams between one client and any number of remote peers.

    client -> relay socket -> header parsed, fragments joined -> one unconnected socket per IP version -> peer
    peer -> that socket -> header of the peer's address, split if need be -> relay socket -> client

What a full socket buffer does not take is dropped, as UDP may.
"""

import asyncio
import socket
from ipaddress import ip_address
from time import monotonic

from shared.wire.socks5 import (
    DOMAIN,
    IPV4,
    Reassembler,
    encode_udp_header,
    max_datagram,
    parse_udp_header,
    split_datagram,
)

__all__ = ["UdpAssociation"]

READS_PER_TURN = 64
"""Datagrams of one socket before others get their turn."""
SOCKET_BUFFER = 4 * 1024 * 1024  # bytes asked for, of each socket
REMEMBERED_MAX = 1024
"""Peers whose address an association keeps in the form it needs; then it forgets all and begins anew."""

_Address = tuple[str, int] | tuple[str, int, int, int]


class UdpAssociation:
    """One client's association; it lives as long as the client's control connection, whose owner calls `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, local: str, client: str, buffer: memoryview) -> None:
        """Bind a relay socket at the address `local`; only datagrams from the address `client` are relayed.

        `buffer` (64 KiB or more) is used within a callback only, so it may be shared. Raises OSError.
        """
        self._loop = loop
        self._client_address = client
        self._relay = _udp_socket(socket.AF_INET6 if ":" in local else socket.AF_INET)
        try:
            self._relay.bind((local, 0))
        except OSError:
            self._relay.close()
            raise
        self._limit = max_datagram(over_ipv6=":" in local)
        self._buffer = buffer
        self._peers: dict[int, socket.socket] = {}  # by address family
        self._targets: dict[tuple[bytes, int], tuple[socket.socket, _Address]] = {}
        self._headers: dict[_Address, bytes] = {}
        self._names: set[asyncio.Task[None]] = set()  # look-ups under way
        self._reassembler = Reassembler()
        self._loop.add_reader(self._relay.fileno(), self._on_first)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where the client shall send its datagrams."""
        address, port, *_ = self._relay.getsockname()
        return address, port

    def close(self) -> None:
        """Release the sockets and give up look-ups."""
        for sock in (self._relay, *self._peers.values()):
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for task in self._names:
            task.cancel()

    # client -> peer

    def _on_first(self) -> None:
        """Learn the client's port from its first datagram; from then on the kernel keeps all others out."""
        try:
            size, source = self._relay.recvfrom_into(self._buffer)
        except BlockingIOError:
            return
        if source[0] != self._client_address:
            return
        self._relay.connect(source)
        self._loop.add_reader(self._relay.fileno(), self._on_client)
        self._forward(self._buffer[:size])

    def _on_client(self) -> None:
        buffer, recv_into = self._buffer, self._relay.recv_into
        for _ in range(READS_PER_TURN):
            try:
                size = recv_into(buffer)
            except OSError:  # drained; or the client has closed its socket, and its control connection will tell
                return
            self._forward(buffer[:size])

    def _forward(self, datagram: memoryview) -> None:
        header = parse_udp_header(datagram)
        if header is None:
            return
        fragment, kind, address, port, payload_at = header
        payload: memoryview | bytearray | None = datagram[payload_at:]
        if fragment:
            payload = self._reassembler.add(fragment, address, port, datagram[payload_at:], monotonic())
        if payload is None:
            return
        if kind == DOMAIN:
            task = self._loop.create_task(
                self._forward_by_name(address.decode("ascii", "replace"), port, bytes(payload))
            )
            self._names.add(task)
            task.add_done_callback(self._names.discard)
            return
        try:
            sock, target = self._targets.get((address, port)) or self._new_target(kind, address, port)
            sock.sendto(payload, target)
        except OSError:
            return

    def _new_target(self, kind: int, address: bytes, port: int) -> tuple[socket.socket, _Address]:
        if len(self._targets) >= REMEMBERED_MAX:
            self._targets.clear()
        family = socket.AF_INET if kind == IPV4 else socket.AF_INET6
        target = (self._peer_socket(family), (socket.inet_ntop(family, address), port))
        self._targets[address, port] = target
        return target

    async def _forward_by_name(self, name: str, port: int, payload: bytes) -> None:
        try:
            infos = await self._loop.getaddrinfo(name, port, type=socket.SOCK_DGRAM)
            family, _, _, _, target = infos[0]
            self._peer_socket(family).sendto(payload, target)
        except (OSError, UnicodeError):  # unknown, or not a host name at all
            return

    def _peer_socket(self, family: int) -> socket.socket:
        sock = self._peers.get(family)
        if sock is None:
            sock = self._peers[family] = _udp_socket(family)
            self._loop.add_reader(sock.fileno(), self._on_peer, sock)
        return sock

    # peer -> client

    def _on_peer(self, sock: socket.socket) -> None:
        buffer, headers, relay = self._buffer, self._headers, self._relay
        for _ in range(READS_PER_TURN):
            try:
                size, source = sock.recvfrom_into(buffer)
            except OSError:
                return
            header = headers.get(source) or self._new_header(source)
            try:
                if len(header) + size <= self._limit:
                    relay.sendmsg((header, buffer[:size]))
                else:
                    for part in split_datagram(header, buffer[:size], self._limit):
                        relay.sendmsg(part)
            except OSError:
                continue

    def _new_header(self, source: _Address) -> bytes:
        if len(self._headers) >= REMEMBERED_MAX:
            self._headers.clear()
        header = encode_udp_header(ip_address(source[0].partition("%")[0]).packed, source[1])
        self._headers[source] = header
        return header


def _udp_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    return sock
