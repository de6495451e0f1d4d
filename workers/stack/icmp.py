"""ICMP and ICMPv6: echo answered, errors sent within a rate, errors about our TCP segments understood."""

from collections.abc import Callable
from struct import Struct

from shared.config import StackConfig
from shared.metrics import Cell, Counters
from shared.wire import icmp, ip
from shared.wire.virtio import F_DATA_VALID, F_NEEDS_CSUM, HEADER_NONE
from workers.stack import Refusal, Transmit

__all__ = ["IcmpLayer"]

ERRORS_PER_SECOND = 1000.0  # as Linux' icmp_msgs_per_sec; RFC 1812 4.3.2.8 and RFC 4443 2.4 (f) ask for a limit
ERRORS_BURST = 50.0  # as Linux' icmp_msgs_burst

_TCP_SEQUENCE = Struct(">I")


class TokenBucket:
    """`rate` tokens per second, at most `burst` kept."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        self._tokens = min(self._burst, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class IcmpLayer:
    """The ICMP part of a stack.

    `on_too_big` is called with the flow key of the connection (as the application's packets have it), the MTU and the
    sequence number quoted, when the application's side says that a TCP segment of ours was too big.
    """

    def __init__(
        self,
        config: StackConfig,
        transmit: Transmit,
        on_too_big: Callable[[bytes, int, int], None],
        counters: Counters,
    ) -> None:
        self._config = config
        self._transmit = transmit
        self._on_too_big = on_too_big
        self._counters = counters
        self._bucket = TokenBucket(ERRORS_PER_SECOND, ERRORS_BURST)
        self._ident = 0

    def process(self, packet: memoryview, version: int, source: bytes, destination: bytes, at: int, end: int) -> None:
        """Take in the message packet[at:end]."""
        if end - at < icmp.HEADER_LENGTH:
            self._counters[Cell.DROP_MALFORMED] += 1
            return
        # The kernel does not offload ICMP sums: with NEEDS_CSUM the field is the pseudo header's alone (ICMPv6), which
        # packets of this machine may have; otherwise the sum is complete.
        vouched = packet[0] & (F_NEEDS_CSUM | F_DATA_VALID)
        if not vouched and icmp.checksum_of(version, source, destination, packet[at:end]) != 0xFFFF:
            self._counters[Cell.DROP_CHECKSUM] += 1
            return
        kind, code, _, rest = icmp.HEADER.unpack_from(packet, at)
        body = packet[at + icmp.HEADER_LENGTH : end]
        if kind == icmp.ECHO_REQUEST[version] and not code:
            self._counters[Cell.ICMP_ECHO_REPLIES] += 1
            self._send(version, destination, source, icmp.ECHO_REPLY[version], 0, rest, body)
        elif version == 4 and (kind, code) == (icmp.UNREACHABLE[4], icmp.FRAGMENTATION_NEEDED):
            self._process_too_big(body, 4, rest & 0xFFFF)
        elif version == 6 and kind == icmp.PACKET_TOO_BIG:
            self._process_too_big(body, 6, rest)
        else:
            # "Unreachable" about a segment of ours is a soft error (RFC 9293 3.9.2.2): the timers decide.
            self._counters[Cell.DROP_UNSUPPORTED] += 1

    def _process_too_big(self, body: memoryview, version: int, mtu: int) -> None:
        header_length = ip.HEADER_LENGTH[version]
        # The quoted packet is cut short, so its length fields cannot be checked; IP options we never send.
        is_ours = len(body) >= header_length + 8 and (
            (version == 4 and body[0] == 0x45 and body[9] == ip.TCP)
            or (version == 6 and body[0] >> 4 == 6 and body[6] == ip.TCP)
        )
        if not is_ours:
            self._counters[Cell.DROP_UNSUPPORTED] += 1
            return
        size = 4 if version == 4 else 16
        remote = bytes(body[header_length - 2 * size : header_length - size])
        app = bytes(body[header_length - size : header_length])
        ports = bytes(body[header_length : header_length + 4])
        (seq,) = _TCP_SEQUENCE.unpack_from(body, header_length + 4)
        self._on_too_big(app + remote + ports[2:] + ports[:2], mtu, seq)

    def send_error(
        self, refusal: Refusal, version: int, source: bytes, destination: bytes, offending: bytes, now: float
    ) -> None:
        """Tell `destination` that its packet `offending` is not carried, unless too many were told so already.

        `source`, the address that speaks, is the one the packet was for: the tun has no router in front of it.
        """
        value = refusal.value or Refusal.PORT_UNREACHABLE.value
        assert value is not None, "PORT_UNREACHABLE has ICMP codes"
        if not self._bucket.take(now):
            self._counters[Cell.DROP_RATE_LIMIT] += 1
            return
        kind, code = value[0] if version == 4 else value[1]
        self._counters[Cell.ICMP_ERRORS_SENT] += 1
        self._send(version, source, destination, kind, code, 0, memoryview(offending)[: icmp.QUOTE_MAX[version]])

    def _send(
        self, version: int, source: bytes, destination: bytes, kind: int, code: int, rest: int, body: memoryview
    ) -> None:
        head = icmp.header(version, source, destination, kind, code, rest, body)
        protocol = ip.PROTOCOL_ICMP[version]
        length = len(head) + len(body)
        if ip.HEADER_LENGTH[version] + length <= self._config.mtu:
            packet = HEADER_NONE + ip.header(version, source, destination, protocol, length) + head
            self._transmit((packet, body))
            return
        self._ident += 1
        whole = memoryview(head + bytes(body))
        for fragment, part in ip.fragments(
            version, source, destination, protocol, whole, self._config.mtu, self._ident
        ):
            self._transmit((HEADER_NONE + fragment, part))
