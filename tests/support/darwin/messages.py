"""What Darwin's kernel writes into routing messages and socket tables."""

import struct
from ipaddress import ip_address, ip_network

__all__ = ["link", "pcb_table", "route_message", "sin", "sin6", "socket_records", "trimmed_mask"]

RTF_UP = 1


def sin(address: str) -> bytes:
    """struct sockaddr_in."""
    return bytes((16, 2, 0, 0)) + ip_address(address).packed + bytes(8)


def sin6(address: str, *, embedded_scope: int = 0) -> bytes:
    """struct sockaddr_in6, the scope of a link-local address within the address."""
    packed = bytearray(ip_address(address).packed)
    packed[2:4] = packed[2:4] if not embedded_scope else embedded_scope.to_bytes(2, "big")
    return bytes((28, 30)) + bytes(6) + bytes(packed) + bytes(4)


def link(index: int, name: str) -> bytes:
    """struct sockaddr_dl."""
    return struct.pack("<BBHBBBB", 20, 18, index, 6, len(name), 0, 0) + name.encode().ljust(12, b"\0")


def trimmed_mask(prefix: str) -> bytes:
    """The mask of a prefix without its trailing zero bytes; empty for /0."""
    network = ip_network(prefix)
    start = 4 if network.version == 4 else 8
    kept = network.netmask.packed.rstrip(b"\0")
    return bytes((start + len(kept),)) + bytes(start - 1) + kept if kept else b""


def route_message(
    kind: int,
    *,
    index: int = 0,
    flags: int = RTF_UP,
    dst: bytes,
    gateway: bytes | None = None,
    mask: bytes | None = None,
    interface: bytes | None = None,
    pid: int = 0,
    sequence: int = 0,
    errno: int = 0,
) -> bytes:
    """struct rt_msghdr and the addresses that are given."""
    parts = {1: dst, 2: gateway, 4: mask, 0x10: interface}
    present = {bit: data for bit, data in parts.items() if data is not None}
    body = b"".join(data.ljust((len(data) + 3) & ~3 or 4, b"\0") for data in present.values())
    header = struct.pack(
        "=HBBHxxiiiiiiI56x", 92 + len(body), 5, kind, index, flags, sum(present), pid, sequence, errno, 0, 0
    )
    return header + body


def socket_records(
    *,
    handle: int,
    local: tuple[str, int],
    remote: tuple[str, int],
    vflag: int,
    uid: int = 501,
    last_pid: int = 0,
    effective_pid: int = 0,
    socket_size: int = 104,
    tcp: bool,
) -> bytes:
    """The run of records of one socket: xinpcb_n, xsocket_n, buffers, statistics, and for TCP its control block."""

    def packed(text: str) -> bytes:
        return ip_address(text).packed.rjust(16, b"\0")

    pcb = bytearray(104)
    struct.pack_into("=II", pcb, 0, 104, 0x10)
    struct.pack_into("!HH", pcb, 16, remote[1], local[1])
    pcb[44] = vflag
    pcb[48:64], pcb[64:80] = packed(remote[0]), packed(local[0])
    sock = bytearray(socket_size)
    struct.pack_into("=IIQ", sock, 0, socket_size, 1, handle)
    struct.pack_into("=I", sock, 64, uid)
    struct.pack_into("=i", sock, 68, last_pid)
    struct.pack_into("=i", sock, 72, effective_pid)
    others = [(2, 32), (4, 32), (8, 36), *([(0x20, 204)] if tcp else [])]
    records = [bytes(pcb), bytes(sock), *(struct.pack("=II", size, kind).ljust(size, b"\0") for kind, size in others)]
    return b"".join(record.ljust((len(record) + 7) & ~7, b"\0") for record in records)


def pcb_table(*sockets: bytes) -> bytes:
    """A whole table: the generation before and after."""
    generation = struct.pack("=IIQQ", 24, len(sockets), 7, 7)
    return generation + b"".join(sockets) + generation
