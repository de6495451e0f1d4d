"""UDP datagrams per second, one way, as fast as the sender can: what arrives is counted.

    python -m loadtests.bench.datagram_load server HOST:PORT up|down SIZE SECONDS
    python -m loadtests.bench.datagram_load client HOST:PORT up|down SIZE SECONDS [--socks HOST:PORT]

1. The client opens FLOWS sockets and says hello on each until the server has answered: associations are now set up.
2. The sender (client for `up`, server for `down`) floods all flows in turn with datagrams of SIZE bytes, for SECONDS.
3. The receiver counts until nothing has come for IDLE_TIMEOUT seconds.

The server prints `listening` first. Both print one JSON object, the sender `sent` and `seconds`, the receiver `received`
and `seconds` (from the first to the last datagram, so that queues which drain after the end are neither lost nor
flattering). With --socks the client speaks SOCKS5 itself (RFC 1928, section 7): the figure without a tun.
"""

import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

FLOWS = 4
"""Source endpoints; more than one, as on a real machine, so that an engine may use its cores."""
HELLO = b"hello"
HELLO_TIMEOUT = 1.0
HELLO_ATTEMPTS = 10
MEET_TIMEOUT = 20.0
"""Seconds the server waits for its client."""
IDLE_TIMEOUT = 1.0
"""Seconds of silence that mean the flood is over."""
BUFFER_SIZE = 4 * 1024 * 1024
"""Bytes of SO_RCVBUF, so that a receiver that waits for the processor loses little."""
BATCH = 64
"""Datagrams between two looks at the clock."""

Endpoint = tuple[str, int]


def endpoint(text: str) -> Endpoint:
    """Return HOST:PORT as a pair."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def udp_socket() -> socket.socket:
    """Return a UDP socket with a large receive buffer."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)
    return udp


class Flow:
    """One of the client's source endpoints, connected to the server or, behind `prefix`, to the SOCKS server's relay."""

    def __init__(self, server: Endpoint, proxy: Endpoint | None) -> None:
        self.socket = udp_socket()
        self.prefix = b""
        self._control: socket.socket | None = None
        if proxy is None:
            self.socket.connect(server)
        else:
            self._associate(server, proxy)

    def _associate(self, server: Endpoint, proxy: Endpoint) -> None:
        """Ask for a relay and keep the asking connection: the association ends with it (RFC 1928, sections 4, 6, 7)."""
        self._control = control = socket.create_connection(proxy, HELLO_TIMEOUT)
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        with control.makefile("rb") as replies:
            reply = replies.read(2 + 10)
        if len(reply) < 12 or reply[:4] != b"\x05\x00\x05\x00" or reply[5] != 1:
            raise ConnectionError(f"the SOCKS server gave no IPv4 relay: {reply.hex(' ')}")
        host = socket.inet_ntoa(reply[6:10])
        self.socket.connect((proxy[0] if host == "0.0.0.0" else host, int.from_bytes(reply[10:12], "big")))
        self.prefix = struct.pack("!HBB4sH", 0, 0, 1, socket.inet_aton(server[0]), server[1])

    def hello(self) -> None:
        """Send HELLO until something comes back. Raises TimeoutError."""
        self.socket.settimeout(HELLO_TIMEOUT)
        for _ in range(HELLO_ATTEMPTS):
            try:
                self.socket.send(self.prefix + HELLO)
                self.socket.recv(65536)
                return
            except (TimeoutError, ConnectionRefusedError):
                continue
        raise TimeoutError(f"no datagram came back after {HELLO_ATTEMPTS} hellos")


def meet(server: socket.socket) -> list[Endpoint]:
    """Answer hellos until FLOWS peers are known, and return them. Raises TimeoutError."""
    server.settimeout(MEET_TIMEOUT)
    peers: list[Endpoint] = []
    while len(peers) < FLOWS:
        data, peer = server.recvfrom(65536)
        if data == HELLO:
            server.sendto(HELLO, peer)
            if peer not in peers:
                peers.append(peer)
    return peers


def flood(sends: Sequence[Callable[[], object]], seconds: float) -> dict[str, float]:
    """Call `sends` in turn for `seconds`; each sends one datagram. Return what the sender prints."""
    sent = 0
    started = now = time.monotonic()
    rounds = range(BATCH // len(sends))
    while now - started < seconds:
        for _ in rounds:
            for send in sends:
                try:
                    send()
                    sent += 1
                except (BlockingIOError, ConnectionRefusedError):
                    continue  # the queue is full, or an ICMP error of an earlier datagram is told here
        now = time.monotonic()
    return {"sent": sent, "seconds": now - started}


def count(sockets: Sequence[socket.socket], size: int, timeout: float) -> dict[str, float]:
    """Count datagrams of `size` bytes until there is silence. Return what the receiver prints.

    The first may take `timeout` seconds to come. Datagrams of another size are hellos that came late, or damaged.
    """
    buffer = bytearray(65536)
    received = 0
    first = last = 0.0
    with selectors.DefaultSelector() as selector:
        for udp in sockets:
            udp.setblocking(False)
            selector.register(udp, selectors.EVENT_READ, data=udp)
        while ready := selector.select(IDLE_TIMEOUT if received else timeout):
            for key, _ in ready:
                received += drain(key.data, buffer, size)
            last = time.monotonic()
            first = first or last
    return {"received": received, "seconds": last - first}


def drain(udp: socket.socket, buffer: bytearray, size: int) -> int:
    """Read at most BATCH datagrams and return how many had `size` bytes."""
    received = 0
    try:
        for _ in range(BATCH):
            received += udp.recv_into(buffer) == size
    except (BlockingIOError, ConnectionRefusedError):
        pass
    return received


def run_server(address: Endpoint, direction: str, size: int, seconds: float) -> dict[str, float]:
    """The server's side of the three steps."""
    server = udp_socket()
    server.bind(address)
    print("listening", flush=True)
    peers = meet(server)
    if direction == "up":
        return count([server], size, MEET_TIMEOUT)
    payload = bytes(size)
    server.setblocking(False)
    return flood([partial(server.sendto, payload, peer) for peer in peers], seconds)


def run_client(server: Endpoint, direction: str, size: int, seconds: float, proxy: Endpoint | None) -> dict[str, float]:
    """The client's side of the three steps."""
    flows = [Flow(server, proxy) for _ in range(FLOWS)]
    for flow in flows:
        flow.hello()
    if direction == "down":
        return count([flow.socket for flow in flows], size + len(flows[0].prefix), MEET_TIMEOUT)
    for flow in flows:
        flow.socket.setblocking(False)
    datagram = flows[0].prefix + bytes(size)
    return flood([partial(flow.socket.send, datagram) for flow in flows], seconds)


def main(arguments: list[str]) -> None:
    """Command line; see the module's docstring."""
    role, address, direction, size, seconds, *rest = arguments
    try:
        if role == "server":
            result = run_server(endpoint(address), direction, int(size), float(seconds))
        else:
            proxy = endpoint(rest[1]) if rest else None
            result = run_client(endpoint(address), direction, int(size), float(seconds), proxy)
    except OSError as error:
        raise SystemExit(f"UDP {role}: {error}") from error
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
