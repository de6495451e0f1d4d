"""The tables of TCP and UDP sockets: sysctl net.inet.{tcp,udp}.pcblist_n (sys/socketvar.h, netinet/in_pcb.h). Pure.

    xinpgen (24 bytes) | per socket: records of length and kind, each rounded up to 8 bytes | xinpgen

Records are walked by their own length, because it differs from release to release: Darwin 22 has made that of the socket
longer, and TCP has one more than UDP.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["PCBLIST_TCP", "PCBLIST_UDP", "SocketRecord", "parse_pcblist"]

PCBLIST_TCP: Final = "net.inet.tcp.pcblist_n"
PCBLIST_UDP: Final = "net.inet.udp.pcblist_n"

XSO_SOCKET: Final = 0x1
XSO_INPCB: Final = 0x10

INP_IPV4, INP_IPV6 = 0x1, 0x2

_RECORD = struct.Struct("=II")  # length, kind
_PORTS = struct.Struct("!HH")  # at 16 of xinpcb_n: foreign, local
_VFLAG_AT = 44
_FOREIGN, _LOCAL = slice(48, 64), slice(64, 80)
_XINPCB_MIN = 80  # bytes that are looked at
_XSOCKET = struct.Struct("=8xQ48xIii")  # handle; then, at 64: user, last process, process on whose behalf
_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class SocketRecord:
    """One socket of the kernel."""

    handle: int
    """What tells it from all others for as long as it is there."""
    local: bytes
    """Packed, 4 or 16 bytes; all zeros: any address."""
    local_port: int
    remote: bytes
    """All zeros: not connected, or listening."""
    remote_port: int
    uid: int
    pid: int
    """Process that has used it last, or on whose behalf that one did (a download in the background)."""
    dual: bool
    """An IPv6 socket that takes IPv4 as well."""


def parse_pcblist(data: bytes) -> list[SocketRecord]:
    """Return the sockets of one table. What is cut short is left out."""
    found = []
    pcb: bytes | None = None
    for kind, record in _records(data):
        if kind == XSO_INPCB:
            pcb = record if len(record) >= _XINPCB_MIN else None
        elif kind == XSO_SOCKET and pcb is not None:
            if len(record) >= _XSOCKET.size:
                found.append(_socket(pcb, record))
            pcb = None
    return found


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) < _RECORD.size:
        return
    generation_size, _ = _RECORD.unpack_from(data)
    at = generation_size
    while at >= _RECORD.size and len(data) - at > generation_size:  # the same struct stands at the end
        length, kind = _RECORD.unpack_from(data, at)
        if length < _RECORD.size or at + length > len(data):
            return
        yield kind, data[at : at + length]
        at += (length + 7) & ~7


def _socket(pcb: bytes, record: bytes) -> SocketRecord:
    remote_port, local_port = _PORTS.unpack_from(pcb, 16)
    versions = pcb[_VFLAG_AT]
    local, remote = pcb[_LOCAL], pcb[_FOREIGN]
    if not versions & INP_IPV6 or _is_mapped(local, remote):
        local, remote = local[12:], remote[12:]
    handle, uid, last, behalf = _XSOCKET.unpack_from(record)
    return SocketRecord(
        handle, local, local_port, remote, remote_port, uid, behalf or last, versions == INP_IPV4 | INP_IPV6
    )


def _is_mapped(local: bytes, remote: bytes) -> bool:
    return local.startswith(_MAPPED) or remote.startswith(_MAPPED)
