"""Raw packets for tests, byte by byte and independent of the code under test: IPv4, IPv6, TCP, UDP, ICMP, fragments.

Addresses are text ("192.0.2.1"), or packed bytes. A builder whose name starts with `tun_` puts the 10-byte virtio header
of no offload in front, as a packet read from the tun has it. Checksums are right unless said otherwise.
"""

import struct
from ipaddress import ip_address

__all__ = [
    "DESTINATION_OPTIONS",
    "FRAGMENT",
    "HOP_BY_HOP",
    "ICMP",
    "ICMPV6",
    "ROUTING",
    "TCP",
    "UDP",
    "VIRTIO_NONE",
    "extension",
    "icmp",
    "icmp_echo",
    "icmp_error",
    "internet_checksum",
    "ip",
    "ipv4",
    "ipv4_fragments",
    "ipv6",
    "ipv6_fragments",
    "packed",
    "tcp",
    "tun_tcp",
    "tun_udp",
    "udp",
]

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58  # IANA protocol numbers
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60  # RFC 8200 (4)
VIRTIO_NONE = bytes(10)
MORE_FRAGMENTS = 0x2000  # RFC 791 (3.1)

Address = str | bytes


def packed(address: Address) -> bytes:
    """Return the 4 or 16 bytes of `address`."""
    return address if isinstance(address, bytes) else ip_address(address).packed


def internet_checksum(data: bytes) -> int:
    """RFC 1071, the obvious way: add the 16-bit words with end-around carry, complement."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# network layer


def ipv4(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    identification: int = 0,
    fragment_field: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet (RFC 791, 3.1). `options` is padded with zeros to whole words; `fragment_field`: flags and offset."""
    options += b"\0" * (-len(options) % 4)
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        4 << 4 | words, 0, words * 4 + len(payload), identification, fragment_field, ttl, protocol, 0,
        packed(source), packed(destination),
    )  # fmt: skip
    header += options
    return header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:] + payload


def ipv6(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    extensions: tuple[tuple[int, bytes], ...] = (),
    hop_limit: int = 64,
) -> bytes:
    """An IPv6 packet (RFC 8200, 3). `extensions` are (type, contents without the next-header byte), in their order."""
    chain = b""
    following = protocol
    for kind, contents in reversed(extensions):
        chain = bytes((following,)) + contents + chain
        following = kind
    body = chain + payload
    return (
        struct.pack("!IHBB16s16s", 6 << 28, len(body), following, hop_limit, packed(source), packed(destination)) + body
    )


def extension(size: int = 8) -> bytes:
    """Contents of a hop-by-hop, routing or destination options header of `size` bytes (8, 16, ...): padding only."""
    assert size % 8 == 0 and 8 <= size <= 2048
    if size == 8:
        return b"\0\x01\x04" + bytes(4)  # PadN of 6 bytes
    return bytes((size // 8 - 1,)) + bytes(size - 2)  # Pad1 throughout


def ip(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """An IPv4 or IPv6 packet, by the length of the addresses."""
    build = ipv4 if len(packed(source)) == 4 else ipv6
    return build(source, destination, protocol, payload)


# transport layer


def _with_checksum(source: Address, destination: Address, protocol: int, segment: bytes, at: int) -> bytes:
    """Put the checksum over the pseudo header and `segment` (whose own field is zero) at offset `at`."""
    source, destination = packed(source), packed(destination)
    if len(source) == 4:
        pseudo = source + destination + struct.pack("!BBH", 0, protocol, len(segment))
    else:
        pseudo = source + destination + struct.pack("!I3xB", len(segment), protocol)
    value = internet_checksum(pseudo + segment)
    if protocol == UDP and value == 0:
        value = 0xFFFF  # RFC 768: zero would mean none
    return segment[:at] + value.to_bytes(2, "big") + segment[at + 2 :]


def tcp(
    source: Address,
    source_port: int,
    destination: Address,
    destination_port: int,
    payload: bytes = b"",
    *,
    sequence: int = 0,
    acknowledgment: int = 0,
    flags: int = 0x10,
    window: int = 65535,
    options: bytes = b"",
) -> bytes:
    """An IP packet with a TCP segment (RFC 9293, 3.1); `flags` 0x02 SYN, 0x10 ACK, 0x01 FIN, 0x04 RST."""
    options += b"\0" * (-len(options) % 4)
    segment = struct.pack(
        "!HHIIBBHHH",
        source_port, destination_port, sequence, acknowledgment, (5 + len(options) // 4) << 4, flags, window, 0, 0,
    )  # fmt: skip
    segment = _with_checksum(source, destination, TCP, segment + options + payload, 16)
    return ip(source, destination, TCP, segment)


def udp(source: Address, source_port: int, destination: Address, destination_port: int, payload: bytes = b"") -> bytes:
    """An IP packet with a UDP datagram (RFC 768)."""
    datagram = struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload
    return ip(source, destination, UDP, _with_checksum(source, destination, UDP, datagram, 6))


def tun_tcp(*args: object, **kwargs: object) -> bytes:
    """`tcp`, as read from the tun."""
    return VIRTIO_NONE + tcp(*args, **kwargs)  # type: ignore[arg-type]


def tun_udp(*args: object, **kwargs: object) -> bytes:
    """`udp`, as read from the tun."""
    return VIRTIO_NONE + udp(*args, **kwargs)  # type: ignore[arg-type]


def icmp(source: Address, destination: Address, kind: int, code: int, rest: bytes) -> bytes:
    """An ICMP (RFC 792) or ICMPv6 (RFC 4443) message: type, code, checksum, `rest`."""
    message = bytes((kind, code, 0, 0)) + rest
    if len(packed(source)) == 16:
        return ip(source, destination, ICMPV6, _with_checksum(source, destination, ICMPV6, message, 2))
    message = message[:2] + internet_checksum(message).to_bytes(2, "big") + message[4:]
    return ip(source, destination, ICMP, message)


def icmp_echo(
    source: Address, destination: Address, identifier: int, sequence: int = 1, data: bytes = b"ping"
) -> bytes:
    """An echo request of either version."""
    kind = 8 if len(packed(source)) == 4 else 128
    return icmp(source, destination, kind, 0, struct.pack("!HH", identifier, sequence) + data)


def icmp_error(source: Address, destination: Address, quoted: bytes) -> bytes:
    """Port unreachable about the packet `quoted`, which is cut short by the caller if it is to be."""
    kind, code = (3, 3) if len(packed(source)) == 4 else (1, 4)
    return icmp(source, destination, kind, code, bytes(4) + quoted)


# fragments


def ipv4_fragments(packet: bytes, sizes: list[int], identification: int) -> list[bytes]:
    """Cut an IPv4 packet into fragments of `sizes` payload bytes (multiples of 8); what is left is the last one.

    All fragments carry the options, as if each of them had the copied flag (RFC 791, 3.1).
    """
    header_len = (packet[0] & 15) * 4
    payload = packet[header_len:]
    result = []
    for at, piece, more in _pieces(payload, sizes):
        field = at // 8 | (MORE_FRAGMENTS if more else 0)
        result.append(
            ipv4(
                packet[12:16], packet[16:20], packet[9], piece,
                options=packet[20:header_len], identification=identification, fragment_field=field, ttl=packet[8],
            )
        )  # fmt: skip
    return result


def ipv6_fragments(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    sizes: list[int],
    identification: int,
    *,
    extensions: tuple[tuple[int, bytes], ...] = (),
) -> list[bytes]:
    """Cut an IPv6 payload into fragments (RFC 8200, 4.5); `extensions` stand before the fragment header of each."""
    return [
        ipv6(
            source,
            destination,
            protocol,
            piece,
            extensions=(*extensions, (FRAGMENT, struct.pack("!BHI", 0, at | more, identification))),
        )
        for at, piece, more in _pieces(payload, sizes)
    ]


def _pieces(payload: bytes, sizes: list[int]) -> list[tuple[int, bytes, bool]]:
    """(offset, piece, whether more follow), for pieces of `sizes` bytes and the rest."""
    result = []
    at = 0
    for size in sizes:
        if at + size >= len(payload):
            break
        result.append((at, payload[at : at + size], True))
        at += size
    result.append((at, payload[at:], False))
    return result
