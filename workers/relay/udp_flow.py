"""UDP: one association per source endpoint, endpoint-independent mapping and filtering (RFC 4787, REQ-1 and REQ-8).

    application -> proxy   on_datagram -> the endpoint's UdpFlow -> send: a cached header + the payload where it lies
    proxy -> application   UdpFlow._on_readable -> header parsed -> Stack.send_datagram, whoever the remote peer is

The first datagram of an endpoint opens its association; those that come meanwhile wait in a bounded queue. A proxy without
UDP is remembered for a while, and datagrams are answered with ICMP at once instead of vanishing.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from shared.config import UdpConfig
from shared.metrics import Cell, Counters
from shared.wire.socks5 import (
    IPV4,
    IPV6,
    Reassembler,
    encode_udp_header,
    max_datagram,
    parse_udp_header,
    split_datagram,
)
from workers.stack import Refusal
from workers.stack.stack import Stack
from workers.upstream import ProxyFailed, UdpUnsupported
from workers.upstream.socks import Dialer
from workers.upstream.socks5_udp import Association, associate

__all__ = ["UdpFlow", "UdpRelay"]

log = logging.getLogger(__name__)

QUEUE_DATAGRAMS = 64
QUEUE_BYTES = 256 * 1024
"""What an endpoint may send before its association is open; beyond it datagrams are dropped (DROP_UDP_QUEUE)."""
READS_PER_TURN = 64
"""Datagrams of one association before other flows get their turn."""
HEADERS_MAX = 1024
"""Destinations whose header an association remembers; then it forgets all and begins anew."""
UNSUPPORTED_FOR = 30.0
"""Seconds until a proxy without UDP is asked again."""
FAILED_FOR = 1.0
"""Seconds until a proxy that failed is asked again for UDP."""
SWEEPS_PER_TIMEOUT = 8
"""Sweeps in one idle timeout: an association lives up to an eighth longer than it should."""

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # of IPv4-mapped addresses, RFC 4291 section 2.5.5.2

Endpoint = tuple[bytes, int]
"""Packed address and port; the length of the address tells the IP version."""


class UdpRelay:
    """The associations of one worker. `stack` is assigned by the composition root before the first datagram."""

    stack: Stack

    def __init__(
        self,
        dialer: Dialer,
        config: UdpConfig,
        counters: Counters,
        *,
        timeout: float,
        on_support: Callable[[bool, str], None],
        on_proxy_failed: Callable[[ProxyFailed], None],
    ) -> None:
        self.loop = dialer.loop
        self.counters = counters
        self.buffer = bytearray(
            65536
        )  # one datagram at a time: received, parsed and given to the stack before the next
        self._dialer = dialer
        self._config = config
        self._timeout = timeout
        self._on_support = on_support
        self._on_proxy_failed = on_proxy_failed
        self._supported: bool | None = None  # as told to `on_support`
        self._flows: dict[Endpoint, UdpFlow] = {}
        self._refused_until = 0.0
        self._sweep_timer: asyncio.TimerHandle | None = None

    def on_datagram(
        self,
        version: int,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        payload: memoryview,
    ) -> None:
        """Stack: a datagram of the application."""
        flow = self._flows.get((source, source_port))
        if flow is not None:
            flow.send(destination, destination_port, payload)
            return
        now = self.stack.now
        if now < self._refused_until:
            self.refuse((source, source_port), (destination, destination_port), payload)
            return
        if self._supported is False:
            # One association asks again; until it knows, the answer to the others stays what it was.
            self._refused_until = now + UNSUPPORTED_FOR
        flow = self._open((source, source_port), now)
        flow.send(destination, destination_port, payload)

    def refuse(self, source: Endpoint, destination: Endpoint, payload: bytes | memoryview) -> None:
        """Answer one datagram with ICMP port unreachable, and count it.

        Whatever the reason: of the codes that fit, it alone is an error to a UDP socket (Linux, net/ipv4/icmp.c,
        icmp_err_convert: not `fatal`), and an application that hears nothing waits in vain.
        """
        self.counters[Cell.UDP_REFUSED] += 1
        version = 4 if len(source[0]) == 4 else 6
        self.stack.send_unreachable(Refusal.PORT_UNREACHABLE, version, *source, *destination, payload)

    def close(self) -> None:
        """Close every association."""
        for flow in tuple(self._flows.values()):
            self.remove(flow)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    # associations

    def _open(self, source: Endpoint, now: float) -> "UdpFlow":
        if len(self._flows) >= self._config.max_associations:
            # A scan, but next to the round trips of the association that makes it necessary; no datagram pays for an order.
            self.remove(min(self._flows.values(), key=lambda flow: flow.used_at))
        flow = UdpFlow(self, source, now)
        self._flows[source] = flow
        self.counters[Cell.UDP_OPENED] += 1
        self.counters[Cell.UDP_ACTIVE] += 1
        flow.task = self.loop.create_task(self._associate(flow), name="associate")
        if self._sweep_timer is None:
            self._schedule_sweep()
        return flow

    async def _associate(self, flow: "UdpFlow") -> None:
        try:
            association = await associate(self._dialer, timeout=self._timeout)
        except UdpUnsupported as error:
            self._refuse_for(UNSUPPORTED_FOR)
            self._tell_support(False, str(error))
            flow.fail()
        except ProxyFailed as error:
            self.counters[Cell.CONNECT_FAILED] += 1
            self._refuse_for(FAILED_FOR)
            self._on_proxy_failed(error)
            flow.fail()
        except Exception:
            self.counters[Cell.CALLBACK_ERRORS] += 1
            log.exception("opening a UDP association")
            flow.fail()
        else:
            self._refused_until = 0.0
            self._tell_support(True, "")
            flow.start(association)

    def _refuse_for(self, seconds: float) -> None:
        self._refused_until = monotonic() + seconds

    def _tell_support(self, supported: bool, reason: str) -> None:
        if supported is not self._supported:
            self._supported = supported
            self._on_support(supported, reason)

    def remove(self, flow: "UdpFlow") -> None:
        """Close a flow and forget it; the endpoint's next datagram opens another."""
        del self._flows[flow.source]
        flow.close()
        self.counters[Cell.UDP_CLOSED] += 1
        self.counters[Cell.UDP_ACTIVE] -= 1

    def _schedule_sweep(self) -> None:
        self._sweep_timer = self.loop.call_later(self._config.idle_timeout / SWEEPS_PER_TIMEOUT, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long. One timer a worker: a datagram only notes the time."""
        idle_since = monotonic() - self._config.idle_timeout
        for flow in [flow for flow in self._flows.values() if flow.used_at <= idle_since]:
            self.remove(flow)
        if self._flows:
            self._schedule_sweep()
        else:
            self._sweep_timer = None


class UdpFlow:
    """One source endpoint and its association. Opened, removed and kept by UdpRelay."""

    __slots__ = (
        "_association",
        "_headers",
        "_limit",
        "_queue",
        "_queued_bytes",
        "_reassembler",
        "_recv_into",
        "_relay",
        "_sendmsg",
        "source",
        "task",
        "used_at",
    )

    def __init__(self, relay: UdpRelay, source: Endpoint, now: float) -> None:
        self._relay = relay
        self.source = source
        self.used_at = now  # monotonic seconds of the last datagram in either direction
        self.task: asyncio.Task[None] | None = None  # associates; dropped when it is done
        self._association: Association | None = None
        self._queue: list[tuple[Endpoint, bytes]] = []
        self._queued_bytes = 0
        self._headers: dict[Endpoint, bytes] = {}
        self._reassembler: Reassembler | None = None

    def start(self, association: Association) -> None:
        """The association is open: send what has waited, and listen."""
        self.task = None
        self._association = association
        self._limit = max_datagram(association.over_ipv6)
        self._sendmsg = association.relay.sendmsg
        self._recv_into = association.relay.recv_into
        self._relay.loop.add_reader(association.relay.fileno(), self._on_readable)
        self._relay.loop.add_reader(association.control.fileno(), self._on_control)
        queue, self._queue = self._queue, []
        for destination, payload in queue:
            if self._association is None:  # the relay's port is closed, and the flow with it
                return
            self.send(*destination, memoryview(payload))

    def fail(self) -> None:
        """There is no association: answer what has waited."""
        self.task = None
        self._relay.remove(self)
        for destination, payload in self._queue:
            self._relay.refuse(self.source, destination, payload)

    def close(self) -> None:
        """Release the association, or give up opening it."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self._association is not None:
            self._relay.loop.remove_reader(self._association.relay.fileno())
            self._relay.loop.remove_reader(self._association.control.fileno())
            self._association.close()
            self._association = None

    # application -> proxy

    def send(self, address: bytes, port: int, payload: memoryview) -> None:
        """Send one datagram of the application; `payload` is not kept."""
        relay = self._relay
        self.used_at = relay.stack.now
        if self._association is None:
            self._enqueue((address, port), payload)
            return
        header = self._headers.get((address, port))
        if header is None:
            header = self._remember_header(address, port)
        try:
            if len(header) + len(payload) <= self._limit:
                self._sendmsg((header, payload))
            else:
                for part in split_datagram(header, payload, self._limit):
                    self._sendmsg(part)
        except ConnectionError:
            # ICMP: nobody listens at the relay's port any more. The next datagram opens a new association.
            relay.counters[Cell.DROP_UDP_UPSTREAM] += 1
            relay.remove(self)
        except OSError:  # the socket's buffer is full, the network is down: a datagram is lost, as datagrams may be
            relay.counters[Cell.DROP_UDP_UPSTREAM] += 1

    def _enqueue(self, destination: Endpoint, payload: memoryview) -> None:
        if len(self._queue) >= QUEUE_DATAGRAMS or self._queued_bytes + len(payload) > QUEUE_BYTES:
            self._relay.counters[Cell.DROP_UDP_QUEUE] += 1
            return
        self._queued_bytes += len(payload)
        self._queue.append((destination, bytes(payload)))

    def _remember_header(self, address: bytes, port: int) -> bytes:
        if len(self._headers) >= HEADERS_MAX:
            self._headers.clear()
        header = self._headers[address, port] = encode_udp_header(address, port)
        return header

    # proxy -> application

    def _on_readable(self) -> None:
        relay = self._relay
        buffer = memoryview(relay.buffer)
        recv_into = self._recv_into
        self.used_at = now = monotonic()
        for _ in range(READS_PER_TURN):
            try:
                size = recv_into(buffer)
            except BlockingIOError:
                return
            except ConnectionError:
                relay.remove(self)
                return
            except OSError:  # another ICMP error about an earlier datagram
                relay.counters[Cell.DROP_UDP_UPSTREAM] += 1
                return
            self._deliver(buffer[:size], now)

    def _deliver(self, datagram: memoryview, now: float) -> None:
        """Give one datagram of the relay to the application; drop and count what is malformed or of the other IP version."""
        header = parse_udp_header(datagram)
        peer = self._peer_address(header[1], header[2]) if header is not None else None
        if header is None or peer is None:
            self._relay.counters[Cell.DROP_UDP_UPSTREAM] += 1
            return
        fragment, _, _, port, payload_at = header
        payload: memoryview | bytearray | None = datagram[payload_at:]
        if fragment:
            if self._reassembler is None:
                self._reassembler = Reassembler()
            payload = self._reassembler.add(fragment, peer, port, datagram[payload_at:], now)
        if payload is not None:
            source, source_port = self.source
            self._relay.stack.send_datagram(4 if len(source) == 4 else 6, peer, port, source, source_port, payload)

    def _peer_address(self, kind: int, address: bytes) -> bytes | None:
        """Return the peer's address in the application's IP version; None when it has none."""
        if len(self.source[0]) == 16:
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
            self._relay.remove(self)
