"""What really leaves an interface: every packet, as AF_PACKET shows it, told apart by its ends."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.netns import Namespace

__all__ = ["Capture", "Packet", "capture"]

_ETH_P_ALL = 3  # include/uapi/linux/if_ether.h
_PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # include/linux/socket.h, include/uapi/linux/if_packet.h
_RCVBUFFORCE = 33  # SO_RCVBUFFORCE, include/uapi/asm-generic/socket.h
_SIZE = 128  # bytes kept of a packet: all headers
_BUFFER = 64 * 1024 * 1024


@dataclass(frozen=True)
class Packet:
    """One IP packet. Ports are 0 for what has none; of ICMP they are type and code."""

    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    leaves: bool
    """It was sent out of the interface, not received there."""
    opens: bool
    """It is TCP's SYN without ACK."""


@dataclass
class Capture:
    """Packets seen so far; `read` takes in what has come since."""

    sock: socket.socket
    packets: list[Packet] = field(default_factory=list)

    def read(self) -> list[Packet]:
        """Return all packets since the beginning. Fails when the kernel had to drop some."""
        while True:
            try:
                frame, (_, ethertype, kind, *_) = self.sock.recvfrom(_SIZE)
            except BlockingIOError:
                break
            packet = _parse(frame, ethertype, kind == _PACKET_OUTGOING)
            if packet is not None:
                self.packets.append(packet)
        _, dropped = struct.unpack("II", self.sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        assert not dropped, f"the kernel has dropped {dropped} packets of the capture"
        return self.packets

    def to_port(self, port: int) -> list[Packet]:
        """Packets from or to a port."""
        return [packet for packet in self.read() if port in (packet.source_port, packet.destination_port)]

    def beside(self, *allowed: str) -> list[Packet]:
        """Unicast packets between anybody but the addresses named, neighbour discovery left out."""
        return [
            packet
            for packet in self.read()
            if packet.destination not in allowed
            and packet.source not in allowed
            and not packet.destination.startswith(("fe80:", "ff0", "224.", "239."))
        ]


@contextmanager
def capture(namespace: Namespace, interface: str) -> Iterator[Capture]:
    """See every packet that passes an interface from now on."""
    with namespace.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        sock.setblocking(False)
        sock.bind((interface, _ETH_P_ALL))
        yield Capture(sock)


def _parse(data: bytes, ethertype: int, leaves: bool) -> Packet | None:
    if ethertype == 0x0800 and len(data) >= 20:
        protocol, at = data[9], (data[0] & 15) * 4
        family, source, destination = socket.AF_INET, data[12:16], data[16:20]
    elif ethertype == 0x86DD and len(data) >= 40:
        protocol, at = data[6], 40
        family, source, destination = socket.AF_INET6, data[8:24], data[24:40]
    else:
        return None
    ports = (0, 0)
    if protocol in (6, 17) and len(data) >= at + 4:
        ports = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
    elif protocol in (1, 58) and len(data) >= at + 2:
        ports = data[at], data[at + 1]
    ends = socket.inet_ntop(family, source), ports[0], socket.inet_ntop(family, destination), ports[1]
    opens = protocol == 6 and len(data) > at + 13 and data[at + 13] & 0x12 == 0x02
    return Packet(protocol, *ends, leaves, opens)
