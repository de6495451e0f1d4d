"""Datagrams of one endpoint through a SOCKS5 association (RFC 1928 section 7).

application -> proxy   to() -> a header made once, before the payload where it lies
proxy -> application   _on_readable -> header parsed -> LegOwner.deliver, whoever the remote peer is
"""

import asyncio
from time import monotonic

from shared.metrics import Cell, Counters
from shared.wire.socks5 import (
    IPV4,
    IPV6,
    Reassembler,
    encode_udp_header,
    encode_udp_header_to_name,
    max_datagram,
    parse_udp_header,
    split_datagram,
)
from workers.upstream import LegOwner, Send
from workers.upstream.sockets import pack_address
from workers.upstream.socks5_udp import Association

__all__ = ["SocksLeg"]

READS_PER_TURN = 64
"""Datagrams of one association before other flows get their turn."""

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # of IPv4-mapped addresses, RFC 4291 section 2.5.5.2


class SocksLeg:
    """Takes over an association. `buffer` (65,536 bytes) is shared by all legs: one datagram at a time is in it.

    `alone`: it leads to one host, whose addresses the proxy may be the only one to know; the owner is told no peers.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        association: Association,
        owner: LegOwner,
        counters: Counters,
        buffer: bytearray,
        *,
        alone: bool,
    ) -> None:
        self._loop = loop
        self._association: Association | None = association
        self._owner = owner
        self._counters = counters
        self._buffer = buffer
        self._limit = max_datagram(association.over_ipv6)
        self._alone = alone
        self._is_ipv6 = len(owner.source[0]) == 16
        self._sendmsg = association.relay.sendmsg
        self._recv_into = association.relay.recv_into
        self._reassembler: Reassembler | None = None
        loop.add_reader(association.relay.fileno(), self._on_readable)
        loop.add_reader(association.control.fileno(), self._on_control)

    def close(self) -> None:
        """End the association."""
        if self._association is not None:
            self._loop.remove_reader(self._association.relay.fileno())
            self._loop.remove_reader(self._association.control.fileno())
            self._association.close()
            self._association = None

    def to(self, host: bytes | str, port: int) -> Send:
        """See Leg."""
        address = host if isinstance(host, bytes) else pack_address(host)
        header = encode_udp_header(address, port) if address else encode_udp_header_to_name(str(host), port)
        sendmsg, room = self._sendmsg, self._limit - len(header)

        def send(payload: memoryview) -> None:
            try:
                if len(payload) <= room:
                    sendmsg((header, payload))
                else:
                    for part in split_datagram(header, payload, self._limit):
                        sendmsg(part)
            except ConnectionError:
                # ICMP: nobody listens at the relay's port any more. The next datagram opens a new association.
                self._counters[Cell.DROP_UDP_UPSTREAM] += 1
                self._end()
            except OSError:  # the socket's buffer is full, the network is down: a datagram is lost, as datagrams may be
                self._counters[Cell.DROP_UDP_UPSTREAM] += 1

        return send

    def _end(self) -> None:
        if self._association is not None:
            self._owner.on_leg_end(self)

    def _on_readable(self) -> None:
        buffer = memoryview(self._buffer)
        recv_into = self._recv_into
        for _ in range(READS_PER_TURN):
            try:
                size = recv_into(buffer)
            except BlockingIOError:
                return
            except ConnectionError:
                self._end()
                return
            except OSError:  # another ICMP error about an earlier datagram
                self._counters[Cell.DROP_UDP_UPSTREAM] += 1
                return
            self._deliver(buffer[:size])
            if self._association is None:
                return

    def _deliver(self, datagram: memoryview) -> None:
        """Hand on one datagram of the relay; drop and count what is malformed or of the other IP version."""
        header = parse_udp_header(datagram)
        peer = self._peer_address(header[1], header[2]) if header is not None else None
        if header is None or peer is None:
            self._counters[Cell.DROP_UDP_UPSTREAM] += 1
            return
        fragment, _, _, port, payload_at = header
        payload: memoryview | bytearray | None = datagram[payload_at:]
        if fragment:
            if self._reassembler is None:
                self._reassembler = Reassembler()
            payload = self._reassembler.add(fragment, peer, port, datagram[payload_at:], monotonic())
        if payload is not None:
            self._owner.deliver(peer, port, payload)

    def _peer_address(self, kind: int, address: bytes) -> bytes | None:
        """Return the peer's address in the application's IP version; None when it has none."""
        if self._alone:
            return b""
        if self._is_ipv6:
            return address if kind == IPV6 else None
        if kind == IPV4:
            return address
        # Dual-stack proxies may name an IPv4 peer in IPv6.
        return address[12:] if kind == IPV6 and address.startswith(_MAPPED_PREFIX) else None

    def _on_control(self) -> None:
        """The control connection has ended (nothing else is ever sent on it), and the association with it."""
        assert self._association is not None, "the reader is removed when the association closes"
        try:
            ended = not self._association.control.recv(1024)
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        if ended:
            self._end()
