"""Flow key of a raw IP packet: which packets must reach the same worker, for every shape the fast path does not know.

TCP: both addresses and ports. UDP: source address and port, so that one application socket has one worker and one SOCKS5
association. ICMP echo: addresses and identifier. An ICMP error belongs to the flow of the packet it quotes. All else:
both addresses. The keys equal those that `Ingress` cuts out of the common packet in one piece.
"""

from shared.wire.virtio import HEADER_LEN

__all__ = ["Fragment", "Malformed", "flow_key"]

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58  # IANA protocol numbers
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60  # RFC 8200 (4)
EXTENSIONS_MAX = 8
"""Extension headers followed before a packet counts as malformed; RFC 8200 (4.1) has each at most twice."""
ICMP_ERRORS_V4 = frozenset((3, 4, 5, 11, 12))  # RFC 1122 (3.2.2)


class Malformed(Exception):
    """The packet is not one that RFC 791 / RFC 8200 allow; drop and count it."""


class Fragment(Exception):
    """The packet is an IP fragment: it must be reassembled before it has a flow."""


def flow_key(packet: memoryview) -> bytes:
    """Return the key of `packet` (virtio header + IP packet, exact length). Raises Malformed or Fragment."""
    return _ip_key(packet[HEADER_LEN:], quoted=False)


def _ip_key(ip: memoryview, *, quoted: bool) -> bytes:
    """Key of an IP packet. `quoted`: it stands, perhaps cut short, in an ICMP error, so it flowed towards the application."""
    if len(ip) < 20:
        raise Malformed
    version = ip[0] >> 4
    if version == 4:
        return _ipv4_key(ip, quoted)
    if version == 6:
        return _ipv6_key(ip, quoted)
    raise Malformed


def _ipv4_key(ip: memoryview, quoted: bool) -> bytes:
    header = (ip[0] & 15) * 4
    total = ip[2] << 8 | ip[3]
    if header < 20 or header > len(ip) or total < header or (total > len(ip) and not quoted):
        raise Malformed
    if (ip[6] << 8 | ip[7]) & 0x3FFF:  # more fragments, or an offset
        raise Fragment
    return _transport_key(ip[9], bytes(ip[12:16]), bytes(ip[16:20]), ip[header:], quoted)


def _ipv6_key(ip: memoryview, quoted: bool) -> bytes:
    if len(ip) < 40 or (40 + (ip[4] << 8 | ip[5]) > len(ip) and not quoted):
        raise Malformed
    protocol, at = ip[6], 40
    for _ in range(EXTENSIONS_MAX):
        if protocol == FRAGMENT:
            raise Fragment
        if protocol not in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
            return _transport_key(protocol, bytes(ip[8:24]), bytes(ip[24:40]), ip[at:], quoted)
        if at + 8 > len(ip):
            raise Malformed
        protocol, at = ip[at], at + 8 + ip[at + 1] * 8
    raise Malformed


def _transport_key(protocol: int, source: bytes, destination: bytes, segment: memoryview, quoted: bool) -> bytes:
    if quoted:
        source, destination = destination, source
    if protocol in (TCP, UDP):
        if len(segment) < 4:
            raise Malformed
        source_port, destination_port = bytes(segment[0:2]), bytes(segment[2:4])
        if quoted:
            source_port, destination_port = destination_port, source_port
        if protocol == UDP:
            return source + source_port
        return source + destination + source_port + destination_port
    if protocol in (ICMP, ICMPV6):
        if len(segment) < 8:
            raise Malformed
        is_error = segment[0] in ICMP_ERRORS_V4 if protocol == ICMP else segment[0] < 128  # RFC 4443 (2.1)
        if is_error and quoted:  # no error is sent about an error (RFC 1122, 3.2.2): not worth a look inside
            return source + destination
        if is_error:
            try:
                return _ip_key(segment[8:], quoted=True)
            except Fragment:
                return source + destination
        return source + destination + bytes(segment[4:6])
    return source + destination
