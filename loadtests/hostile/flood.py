"""The attacker: puts packets on the tun at a given rate until SIGTERM. Started by __main__.py.

Prints a line `ready` before the first packet, and how many it has sent at the end.
"""

import itertools
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from random import Random

import msgspec

from loadtests.hostile.attacks import ATTACKS, FORGED, TALKER_PORT, ForgedFlow, Target
from shared.wire import tcp
from tests.support import packets
from tests.support.tcp_peer import read_segment

__all__ = ["Order"]

SOL_PACKET, PACKET_VNET_HDR = 263, 15  # include/uapi/linux/if_packet.h
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
TICK = 0.002  # seconds between two bunches of packets
BUNCH_MAX = 200  # packets; the tun's queue takes 500
HANDSHAKE_TIMEOUT = 20.0


class Order(msgspec.Struct, frozen=True):
    """What is to be sent. `flow`: key of a live flow; `forged`: connections to open from FORGED first, with window 0."""

    attack: str
    interface: str
    host: str
    rate: int
    seed: int
    flow: bytes = b""
    forged: int = 0


def flood(order: Order) -> int:
    """Do what was ordered; return the number of packets sent."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.settimeout(HANDSHAKE_TIMEOUT)
        forged = _open(sock, order) if order.forged else ()
        print("ready", flush=True)
        stream = ATTACKS[order.attack](Target(order.host, order.flow, forged), Random(order.seed))
        sent = _send(sock, order, stream)
        for flow in forged:
            _put(sock, order.interface, tcp.build(flow.key(order.host), seq=flow.seq, ack=0, flags=tcp.RST))
        return sent


def _send(sock: socket.socket, order: Order, stream: Iterator[bytes]) -> int:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    last = time.monotonic()
    sent = 0
    while not ended.wait(TICK):
        now = time.monotonic()
        # What was not sent in time, as while this process was stopped, is not made up for.
        due = int(min((now - last) * order.rate, BUNCH_MAX))
        last += due / order.rate if due < BUNCH_MAX else now - last
        for packet in itertools.islice(stream, due):
            _put(sock, order.interface, packet)
        sent += due
    return sent


def _put(sock: socket.socket, interface: str, packet: bytes) -> None:
    protocol = ETH_P_IPV6 if packet[10:11] >= b"\x60" else ETH_P_IP
    try:
        sock.sendto(packet, socket.MSG_DONTWAIT, (interface, protocol))
    except OSError:
        pass  # the tun's queue is full: the engine does not read fast enough


def _open(sock: socket.socket, order: Order) -> tuple[ForgedFlow, ...]:
    """Complete handshakes from an address that no kernel has."""
    sock.bind((order.interface, ETH_P_ALL))
    opened: dict[int, ForgedFlow] = {}
    ports = range(3000, 3000 + order.forged)
    for port in ports:
        syn = packets.tun_tcp(
            FORGED, port, order.host, TALKER_PORT, flags=tcp.SYN, sequence=port << 8, options=b"\2\4\5\xb4"
        )
        _put(sock, order.interface, syn)
    while len(opened) < order.forged:
        packet, (_, _, kind, *_) = sock.recvfrom(70000)
        if kind == socket.PACKET_OUTGOING or packet[10] >> 4 != 4 or packet[19] != packets.TCP:
            continue
        if packet[26:30] != packets.packed(FORGED):
            continue
        answer = read_segment(packet)
        if answer.flags == tcp.SYN | tcp.ACK and answer.destination_port not in opened:
            port = answer.destination_port
            flow = ForgedFlow(port, (port << 8) + 1, answer.seq + 1 & 0xFFFFFFFF)
            opened[port] = flow
            _put(sock, order.interface, tcp.build(flow.key(order.host), seq=flow.seq, ack=flow.ack, flags=tcp.ACK))
    return tuple(opened.values())


if __name__ == "__main__":
    print(flood(msgspec.json.decode(sys.argv[1], type=Order)))
