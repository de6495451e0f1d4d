"""Headers of data segments and ACKs: virtio, IP and TCP in one Struct.pack, with all that never changes packed beforehand.

With offload the checksum field holds the sum of the pseudo header, not complemented, and the kernel does the rest
(virtio 1.2, 5.1.6.2 "driver requirements"); a payload above the MSS is left to the kernel to cut (GSO).
"""

from struct import Struct

from shared.buffer import Buffer
from shared.wire import ip
from shared.wire.checksum import ones_sum, pseudo_header_sum
from shared.wire.tcp import TIMESTAMP_LAYOUT, reverse
from shared.wire.virtio import F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEADER, HEADER_LEN, HEADER_NONE
from workers.stack.tcp.seqnum import MASK

__all__ = ["HeaderTemplate"]

# virtio + version/IHL/TOS | total length | id, DF, TTL, protocol | checksum | addresses, ports
# | seq, ack, offset+flags, window, checksum
_V4 = Struct(">12sH6sH12sIIHHH2x").pack
_V4_TIMESTAMP = Struct(">12sH6sH12sIIHHH2xIII").pack
# virtio + version/class/label | payload length | next header, hop limit | addresses, ports | as above
_V6 = Struct(">14sH2s36sIIHHH2x").pack
_V6_TIMESTAMP = Struct(">14sH2s36sIIHHH2xIII").pack

# DF is set, so the identification field means nothing and may be 0 (RFC 6864 4.1).
_V4_FIXED = bytes((0, 0, ip.IPV4_DONT_FRAGMENT >> 8, 0, ip.HOP_LIMIT, ip.TCP))
_V6_FIXED = bytes((ip.TCP, ip.HOP_LIMIT))


class HeaderTemplate:
    """Makes the headers of one connection's segments towards the application."""

    __slots__ = (
        "_fixed_sum", "_flow", "_gso", "_offload", "_plain", "_pseudo", "_tcp_length", "_timestamps", "_version",
        "mss",
    )  # fmt: skip

    def __init__(self, key: bytes, *, mss: int, timestamps: bool, offload: bool) -> None:
        """`key`: flow key of the application's packets; `mss`: see set_mss."""
        self._version = 4 if len(key) == 12 else 6
        self._flow = reverse(key)
        size = len(key) // 2 - 2
        source, destination = self._flow[:size], self._flow[size : 2 * size]
        self._timestamps = timestamps
        self._offload = offload
        self._tcp_length = 32 if timestamps else 20
        self._pseudo = pseudo_header_sum(source, destination, ip.TCP, 0)
        # IPv4 header checksum of everything but the total length
        self._fixed_sum = ones_sum(b"\x45\x00" + _V4_FIXED + source + destination)
        self.set_mss(mss)

    def set_mss(self, mss: int) -> None:
        """Let the kernel cut segments into `mss` bytes of payload, options not counted (gso_size)."""
        self.mss = mss
        first = b"\x45\x00" if self._version == 4 else b"\x60\x00\x00\x00"
        if not self._offload:
            self._plain = self._gso = HEADER_NONE + first
            return
        start = ip.HEADER_LENGTH[self._version]
        headers = start + self._tcp_length
        gso_type = GSO_TCPV4 if self._version == 4 else GSO_TCPV6
        self._plain = HEADER.pack(F_NEEDS_CSUM, GSO_NONE, headers, 0, start, 16) + first
        self._gso = HEADER.pack(F_NEEDS_CSUM, gso_type, headers, mss, start, 16) + first

    def pack(self, size: int, seq: int, ack: int, flags: int, window: int, value: int, echo: int) -> bytes:
        """Return the headers of a segment with `size` bytes of payload.

        `seq` and `ack` are positions, `window` the field, `value` and `echo` the timestamps (not used without them).
        """
        length = self._tcp_length + size
        head = self._gso if size > self.mss else self._plain
        tcp_sum = (self._pseudo + length) % 0xFFFF if self._offload else 0
        seq &= MASK
        ack &= MASK
        if self._version == 4:
            total = length + 20
            ip_sum = -(self._fixed_sum + total) % 0xFFFF
            if self._timestamps:
                return _V4_TIMESTAMP(
                    head, total, _V4_FIXED, ip_sum, self._flow, seq, ack, 0x8000 | flags, window, tcp_sum,
                    TIMESTAMP_LAYOUT, value, echo,
                )  # fmt: skip
            return _V4(head, total, _V4_FIXED, ip_sum, self._flow, seq, ack, 0x5000 | flags, window, tcp_sum)
        if self._timestamps:
            return _V6_TIMESTAMP(
                head, length, _V6_FIXED, self._flow, seq, ack, 0x8000 | flags, window, tcp_sum,
                TIMESTAMP_LAYOUT, value, echo,
            )  # fmt: skip
        return _V6(head, length, _V6_FIXED, self._flow, seq, ack, 0x5000 | flags, window, tcp_sum)

    def complete(self, head: bytes, payload: list[Buffer]) -> bytes:
        """Return `head`, packed without offload, with the whole checksum filled in."""
        tcp_at = HEADER_LEN + ip.HEADER_LENGTH[self._version]
        segment = head[tcp_at:] + b"".join(payload)
        field = ones_sum(segment, self._pseudo + len(segment)) ^ 0xFFFF
        return head[: tcp_at + 16] + field.to_bytes(2, "big") + head[tcp_at + 18 :]
