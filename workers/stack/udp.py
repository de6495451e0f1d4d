"""UDP: datagrams of the application checked and handed on, datagrams to the application built (RFC 768).

`process_plain` and the first lines of `send` are the fast paths: the packet as nearly all packets are.
"""

from struct import Struct

from shared.buffer import Buffer
from shared.config import StackConfig
from shared.metrics import Cell, Counters
from shared.wire import ip, udp
from shared.wire.checksum import ones_sum, pseudo_header_sum
from shared.wire.virtio import F_DATA_VALID, F_NEEDS_CSUM, GSO_UDP_L4, HEADER, HEADER_LEN, HEADER_NONE
from workers.stack import DatagramHandler, Transmit
from workers.stack.udp_header import Template, pack_header, template

__all__ = ["UdpLayer"]

# flags, gso_type | total length, fragment | addresses, ports, length
_PLAIN4 = Struct(">BB10xH2xH4x4s4sHHH2x").unpack_from
# flags, gso_type | payload length | addresses, ports, length
_PLAIN6 = Struct(">BB12xH2x16s16sHHH2x").unpack_from
_VOUCHED = F_NEEDS_CSUM | F_DATA_VALID

TEMPLATES_MAX = 512
"""Pairs of peer and application whose header is remembered; then those of before are forgotten, unless they are used again."""

_Pair = tuple[bytes, int, bytes, int]
"""Source and destination: packed address and port each."""


class UdpLayer:
    """The UDP part of a stack. It keeps no state of flows: that is the relay's."""

    def __init__(
        self, config: StackConfig, transmit: Transmit, on_datagram: DatagramHandler, counters: Counters
    ) -> None:
        self._config = config
        self._transmit = transmit
        self._on_datagram = on_datagram
        self._counters = counters
        self._plain_max = config.mtu - 48  # payload of a datagram that is never sent in fragments
        self._ident = 0  # of the next packet sent in fragments
        self._templates: dict[_Pair, Template] = {}
        self._older: dict[_Pair, Template] = {}

    def process_plain(self, packet: memoryview) -> bool:
        """Hand on a datagram without IP options or extension headers that needs no look at its checksum.

        False: it is not of that kind (or not right), `process` is to look at it. `packet` is as long as its headers at least.
        """
        size = len(packet)
        if packet[HEADER_LEN] == 0x45:
            flags, gso, total, fragment, source, destination, source_port, destination_port, length = _PLAIN4(packet)
            end, at, version = HEADER_LEN + total, HEADER_LEN + 28, 4
            if fragment & ip.IPV4_FRAGMENT_MASK:
                return False
        else:
            flags, gso, total, source, destination, source_port, destination_port, length = _PLAIN6(packet)
            end, at, version = HEADER_LEN + 40 + total, HEADER_LEN + 48, 6
        if not flags & _VOUCHED or gso or end > size or length < 8 or at - 8 + length != end:
            return False
        self._on_datagram(version, source, source_port, destination, destination_port, packet[at:end])
        return True

    def process(self, packet: memoryview, version: int, source: bytes, destination: bytes, at: int, end: int) -> None:
        """Check the datagram packet[at:end] and hand it on; one that the kernel left to us to cut (USO), piece by piece."""
        if end - at < udp.HEADER_LENGTH:
            self._counters[Cell.DROP_MALFORMED] += 1
            return
        source_port, destination_port, length, field = udp.HEADER.unpack_from(packet, at)
        is_gso = packet[1] == GSO_UDP_L4
        if is_gso:
            length = end - at  # the field may tell of one piece only
        if not udp.HEADER_LENGTH <= length <= end - at:
            self._counters[Cell.DROP_MALFORMED] += 1
            return
        end = at + length
        if not packet[0] & (F_NEEDS_CSUM | F_DATA_VALID):
            if not field and version == 6:
                self._counters[Cell.DROP_CHECKSUM] += 1  # RFC 8200 8.1: not optional
                return
            pseudo = pseudo_header_sum(source, destination, ip.UDP, length)
            if field and ones_sum(packet[at:end], pseudo) != 0xFFFF:
                self._counters[Cell.DROP_CHECKSUM] += 1
                return
        at += udp.HEADER_LENGTH
        step = HEADER.unpack_from(packet)[3] if is_gso else 0
        if not step or at == end:
            self._on_datagram(version, source, source_port, destination, destination_port, packet[at:end])
            return
        for begin in range(at, end, step):
            piece = packet[begin : min(begin + step, end)]
            self._on_datagram(version, source, source_port, destination, destination_port, piece)

    def send(
        self, version: int, source: bytes, source_port: int, destination: bytes, destination_port: int, payload: Buffer
    ) -> None:
        """Send a datagram of at most udp.PAYLOAD_MAX bytes to the application, in fragments when it exceeds the MTU."""
        size = len(payload)
        assert size <= udp.PAYLOAD_MAX, "no UDP datagram is longer than 65,507 bytes"
        if self._config.offload and size <= self._plain_max:
            key = (source, source_port, destination, destination_port)
            made = self._templates.get(key)
            if made is None:
                made = self._remember_template(version, key)
            self._transmit((pack_header(made, size), payload))
            return
        head = udp.header(source, source_port, destination, destination_port, payload)
        length = udp.HEADER_LENGTH + size
        if ip.HEADER_LENGTH[version] + length <= self._config.mtu:
            self._transmit((HEADER_NONE + ip.header(version, source, destination, ip.UDP, length) + head, payload))
            return
        self._ident += 1
        whole = memoryview(head + bytes(payload))
        for fragment, part in ip.fragments(version, source, destination, ip.UDP, whole, self._config.mtu, self._ident):
            self._transmit((HEADER_NONE + fragment, part))

    def _remember_template(self, version: int, key: _Pair) -> Template:
        if len(self._templates) >= TEMPLATES_MAX:
            self._templates, self._older = {}, self._templates
        made = self._older.pop(key, None)
        if made is None:
            made = template(version, *key)
        self._templates[key] = made
        return made

    def offending(
        self, version: int, source: bytes, source_port: int, destination: bytes, destination_port: int, payload: Buffer
    ) -> bytes:
        """Rebuild the packet by which the application sent `payload`, to quote it in an ICMP error."""
        head = udp.header(source, source_port, destination, destination_port, payload)
        length = udp.HEADER_LENGTH + memoryview(payload).nbytes
        return ip.header(version, source, destination, ip.UDP, length) + head + bytes(payload)


assert HEADER_LEN == 10, "process() reads the flags and gso_type of the virtio header at bytes 0 and 1"
