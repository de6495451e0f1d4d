"""Headers of datagrams to the application: virtio, IP and UDP in one Struct.pack, constants packed beforehand.

As workers/stack/tcp/header.py does for TCP. Only with offload: the checksum field holds the sum of the pseudo header and the
kernel does the rest, so that the payload need not be looked at.
"""

from struct import Struct

from shared.wire import ip
from shared.wire.checksum import ones_sum, pseudo_header_sum
from shared.wire.virtio import F_NEEDS_CSUM, GSO_NONE, HEADER

__all__ = ["Template", "pack_header", "template"]

# virtio + version/IHL/TOS | total length | id, DF, TTL, protocol | checksum | addresses, ports | length, checksum
_V4 = Struct(">12sH6sH12sHH").pack
# virtio + version/class/label | payload length | next header, hop limit | addresses, ports | length, checksum
_V6 = Struct(">14sH2s36sHH").pack

_CHECKSUM_AT = 6  # in the UDP header
_V4_FIXED = bytes((0, 0, ip.IPV4_DONT_FRAGMENT >> 8, 0, ip.HOP_LIMIT, ip.UDP))
_V6_FIXED = bytes((ip.UDP, ip.HOP_LIMIT))
_HEADER = {
    4: HEADER.pack(F_NEEDS_CSUM, GSO_NONE, 28, 0, 20, _CHECKSUM_AT) + b"\x45\x00",
    6: HEADER.pack(F_NEEDS_CSUM, GSO_NONE, 48, 0, 40, _CHECKSUM_AT) + b"\x60\x00\x00\x00",
}

Template = tuple[int, bytes, int, int]
"""Version, addresses and ports, sum of the pseudo header without length, sum of the IPv4 header without length."""


def template(version: int, source: bytes, source_port: int, destination: bytes, destination_port: int) -> Template:
    """Return what `pack_header` needs for datagrams from `source` to `destination`."""
    flow = source + destination + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
    fixed = ones_sum(b"\x45\x00" + _V4_FIXED + source + destination) if version == 4 else 0
    return version, flow, pseudo_header_sum(source, destination, ip.UDP, 0), fixed


def pack_header(made: Template, size: int) -> bytes:
    """Return virtio, IP and UDP header of a datagram with `size` bytes of payload."""
    version, flow, pseudo, fixed = made
    length = size + 8
    if version == 4:
        total = length + 20
        return _V4(_HEADER[4], total, _V4_FIXED, -(fixed + total) % 0xFFFF, flow, length, (pseudo + length) % 0xFFFF)
    return _V6(_HEADER[6], length, _V6_FIXED, flow, length, (pseudo + length) % 0xFFFF)
