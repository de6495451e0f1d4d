"""Forged and broken packets against a running engine, put on its tun by a packet socket, as a hostile host behind it would."""

import resource
import select
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutation import mutated
from tests.fuzz.seeds import SEEDS
from tests.support import packets
from tests.support.engine import Bed
from tests.support.netns import TARGET_V4, TARGET_V6, wait_until
from tests.support.sockets import flow, listening, pseudo_random, receive, tcp_server, udp_socket
from tests.support.tcp_peer import ACK, PSH, RST, SYN, Segment, TcpPeer, read_segment

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # include/uapi/linux/if_packet.h
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
IN_FLIGHT = 256
"""Packets on their way to the engine at most: the tun's queue takes 500, and the test is about what the engine does."""


class Wire:
    """A packet socket on the tun. Packets begin with their virtio header, both ways."""

    def __init__(self, bed: Bed, sock: socket.socket) -> None:
        self._bed = bed
        self._sock = sock
        self._interface = bed.engine.status().interface

    def send(self, *forged: bytes) -> None:
        """Put packets on the tun as if the kernel had routed them there; return when the engine has read nearly all."""
        for at in range(0, len(forged), IN_FLIGHT):
            before = self._arrived()
            part = forged[at : at + IN_FLIGHT]
            for packet in part:
                protocol = ETH_P_IPV6 if packet[10:11] >= b"\x60" else ETH_P_IP
                self._sock.sendto(packet, (self._interface, protocol))
            wait_until(lambda: self._arrived() >= before + len(part), what="the packets' arrival")  # noqa: B023

    def _arrived(self) -> int:
        status = self._bed.engine.status()
        return status.packets_in + status.tun_dropped

    def from_engine(self, patience: float = 10.0) -> Iterator[bytes]:
        """What the engine writes to the tun, until it has written nothing for `patience` seconds."""
        while select.select([self._sock], [], [], patience)[0]:
            packet, (_, _, kind, *_) = self._sock.recvfrom(70000)
            if kind != socket.PACKET_OUTGOING:
                yield packet

    def from_kernel(self) -> Iterator[bytes]:
        """What the kernel routes to the tun, forged packets among it."""
        while True:
            packet, (_, _, kind, *_) = self._sock.recvfrom(70000)
            if kind == socket.PACKET_OUTGOING:
                yield packet


@pytest.fixture(autouse=True, scope="module")
def many_descriptors() -> Iterator[None]:
    """Raise the soft limit, which the proxy inherits: a flood of SYNs is one of dials for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def wire(bed: Bed) -> Iterator[Wire]:
    """A packet socket on the tun of the module's engine."""
    with bed.net.client.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * MIB)
        sock.settimeout(10)
        sock.bind((bed.engine.status().interface, ETH_P_ALL))
        yield Wire(bed, sock)


@pytest.fixture(autouse=True)
def unharmed(bed: Bed) -> Iterator[None]:
    """Whatever a test does, no worker falls, no defect is logged, every TCP flow ends, and a new one works."""
    before = worker_memory(bed)
    yield
    wait_until(lambda: active(bed) == 0, 20, what="the end of all TCP flows")
    status = bed.engine.status()
    assert [(worker.state, worker.restarts) for worker in status.workers] == [("running", 0)] * len(status.workers)
    assert "Traceback" not in bed.engine.log
    assert worker_memory(bed) - before < 48 * MIB  # what the allocator keeps of 4096 half-open flows and some buffers
    wait_until(lambda: bed.engine.status().pool_free >= status.pool_slots - 1, what="the return of all slots")
    with open_flow(bed) as (app, peer):
        assert_exchange(app, peer, 64 * 1024)


def active(bed: Bed) -> int:
    """TCP flows, half-open ones among them."""
    return sum(worker.tcp_active for worker in bed.engine.status().workers)


def total_opened(bed: Bed) -> int:
    """TCP flows since the start."""
    return sum(worker.tcp_opened for worker in bed.engine.status().workers)


def dropped(bed: Bed, reason: str) -> int:
    """Packets dropped for `reason` by master and workers."""
    status = bed.engine.status()
    return sum(counts.get(reason, 0) for counts in (status.drops, *(worker.drops for worker in status.workers)))


def worker_memory(bed: Bed) -> int:
    """Private bytes of all workers (the shared pool does not count)."""
    total = 0
    for worker in bed.engine.status().workers:
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


@contextmanager
def open_flow(bed: Bed, host: str = TARGET_V4) -> Iterator[tuple[socket.socket, socket.socket]]:
    """One honest flow: the application's end and the peer's."""
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app, peer:
            yield app, peer


def assert_exchange(app: socket.socket, peer: socket.socket, size: int) -> None:
    """Carry `size` bytes in both directions at once; every byte must arrive as it was."""
    up, down = pseudo_random(size, "up"), pseudo_random(size, "down")
    with ThreadPoolExecutor(4) as pool:
        at_peer, at_app = pool.submit(receive, peer, size), pool.submit(receive, app, size)
        pool.submit(app.sendall, up)
        pool.submit(peer.sendall, down)
        assert at_peer.result() == up
        assert at_app.result() == down


# floods


SOURCES = 50_000
NEW_FLOWS = 20  # honest ones, during the flood
SILENCE = """
table inet tunloom_silence {
    chain answers { type filter hook output priority filter; policy accept; tcp dport 9 drop; }
}
"""


def test_syn_flood_starves_nobody(bed: Bed, wire: Wire) -> None:
    # At port 9 nobody answers, so that flows stay half-open; at port 10 nobody listens, so that each costs a dial and a RST.
    bed.net.internet.run("nft", "-f", "-", input=SILENCE)
    sources = [bytes((10, 99, number >> 8, number & 0xFF)) for number in range(SOURCES)]
    flood = [
        packets.tun_tcp(source, 1024, TARGET_V4, port, flags=SYN, sequence=number, window=1024)
        for number, source in enumerate(sources)
        for port in (9, 10)
    ]
    opened = total_opened(bed)
    with ThreadPoolExecutor(1) as pool, open_flow(bed) as (app, peer):
        flooding = pool.submit(wire.send, *flood)
        rounds = 0
        while not flooding.done() or rounds < NEW_FLOWS:
            assert_exchange(app, peer, MIB)
            with open_flow(bed) as ends:
                assert_exchange(*ends, 10_000)
            rounds += 1
        flooding.result()
    assert dropped(bed, "syn_flood") > 0, "the flood was noticed"
    reasons = ("syn_flood", "flow_limit", "ring_full", "pool_empty")
    lost = sum(dropped(bed, why) for why in reasons) + bed.engine.status().tun_dropped
    assert total_opened(bed) - opened + lost >= len(flood), "every SYN made a flow or was counted as dropped"


def test_handshakes_never_completed_are_forgotten_soon(bed: Bed, wire: Wire) -> None:
    """The server answers; nobody acknowledges the SYN-ACKs."""
    sources = [bytes((10, 95, number >> 8, number & 0xFF)) for number in range(4000)]
    with tcp_server(bed.net.internet, TARGET_V4, 443, backlog=4096):
        for _ in range(2):  # as an honest application would: in a flood, who comes again is admitted
            wire.send(
                *(
                    packets.tun_tcp(source, 1024, TARGET_V4, 443, flags=SYN, sequence=7, window=1024)
                    for source in sources
                )
            )
        assert 0 < active(bed) <= len(bed.engine.status().workers) * 2048
        with open_flow(bed) as (app, peer):
            assert_exchange(app, peer, MIB)
        wait_until(lambda: active(bed) == 0, 40, what="the end of all half-open flows")


def test_clients_that_never_read_hold_bounded_memory_and_starve_nobody(bed: Bed) -> None:
    clients = 50
    before = worker_memory(bed)
    with listening(bed.net, TARGET_V4) as server, ExitStack() as stack:
        for _ in range(clients):
            app, peer = flow(bed.net, server)
            stack.enter_context(app)
            stack.enter_context(peer).settimeout(0.1)
            with pytest.raises(TimeoutError):
                peer.sendall(bytes(64 * MIB))
        # Per flow one send buffer of an application on this machine (docs/stack.md), and what the allocator keeps.
        assert worker_memory(bed) - before < clients * MIB + 16 * MIB
        with open_flow(bed) as ends:
            assert_exchange(*ends, MIB)


def test_initial_sequence_numbers_cannot_be_foretold(bed: Bed, wire: Wire) -> None:
    count = 500
    with tcp_server(bed.net.internet, TARGET_V4, 443, backlog=2 * count):
        numbers: dict[int, Segment] = {}
        while len(numbers) < count:  # in a flood that has just ended, a SYN must come again
            missing = [port for port in range(2000, 2000 + count) if port not in numbers]
            wire.send(
                *(packets.tun_tcp("10.98.0.1", port, TARGET_V4, 443, flags=SYN, sequence=port) for port in missing)
            )
            for packet in wire.from_engine(1.0):
                segment = tcp_segment(packet, "10.98.0.1")
                if segment is not None and segment.flags == SYN | ACK:
                    numbers[segment.destination_port] = segment
                if len(numbers) == count:
                    break
        wire.send(
            *(
                packets.tun_tcp("10.98.0.1", port, TARGET_V4, 443, flags=RST, sequence=segment.ack)
                for port, segment in numbers.items()
            )
        )
    in_order = [numbers[port].seq for port in sorted(numbers)]
    deltas = [(after - before) % 2**32 for before, after in pairwise(in_order)]
    assert len(set(deltas)) == len(deltas), "a delta came twice"
    assert max(deltas) > 2**31 and min(deltas) < 2**30, "the numbers spread over the whole space"


def tcp_segment(packet: bytes, address: str) -> Segment | None:
    """The TCP segment that `packet` carries to or from `address`, else None."""
    body = packet[10:]
    if body[0] >> 4 != 4 or body[9] != packets.TCP or packets.packed(address) not in (body[12:16], body[16:20]):
        return None
    return read_segment(packet)


# blind attacks on a live flow


@dataclass(frozen=True)
class Numbers:
    """Where the application's side of a flow stands: what an attacker off the path does not know."""

    app: str
    port: int
    destination_port: int
    seq: int
    ack: int
    clock: int
    """TSval."""

    def forge(self, flags: int, seq: int, ack: int, text: bytes = b"") -> bytes:
        """A segment that seems to be the application's."""
        options = b"\1\1\x08\x0a" + struct.pack("!II", self.clock + 1, 0)
        return packets.tun_tcp(
            self.app, self.port, TARGET_V4, self.destination_port, text,
            sequence=seq % 2**32, acknowledgment=ack % 2**32, flags=flags, options=options,
        )  # fmt: skip


def overhear(wire: Wire, app: socket.socket, peer: socket.socket) -> Numbers:
    """Let the application say something, and note its numbers."""
    app.sendall(b"hello")
    assert receive(peer, 5) == b"hello"
    host, port = app.getsockname()[:2]
    for packet in wire.from_kernel():
        segment = tcp_segment(packet, host)
        if segment is not None and segment.source_port == port and segment.payload == b"hello":
            assert segment.timestamps is not None
            seq = segment.seq + len(segment.payload)
            return Numbers(host, port, segment.destination_port, seq, segment.ack, segment.timestamps[0])
    raise AssertionError("from_kernel never ends")


def refused(bed: Bed) -> int:
    """Segments that were not acceptable, and challenge ACKs withheld."""
    return dropped(bed, "out_of_window") + dropped(bed, "rate_limit")


def test_blind_resets_and_syns_kill_no_flow(bed: Bed, wire: Wire) -> None:
    random = Random(4)
    with open_flow(bed) as (app, peer):
        at = overhear(wire, app, peer)
        exact = at.seq % 2**32
        anywhere = [seq for seq in (random.getrandbits(32) for _ in range(3000)) if seq != exact]
        in_window = [at.seq + 1 + random.randrange(30_000) for _ in range(1000)]
        forged = [at.forge(flags, seq, at.ack) for seq in anywhere + in_window for flags in (RST, RST | ACK, SYN)]
        before = refused(bed)
        wire.send(*forged)
        wait_until(lambda: refused(bed) - before > len(forged) * 0.9, what="the count of the forgeries")
        assert_exchange(app, peer, MIB)


def test_injected_text_reaches_nobody(bed: Bed, wire: Wire) -> None:
    random = Random(5)
    with open_flow(bed) as (app, peer):
        at = overhear(wire, app, peer)
        far = [random.randrange(4 * MIB, 2**32 - 4 * MIB) for _ in range(2000)]
        forged = [at.forge(ACK | PSH, at.seq + shift, at.ack, b"FORGED" * 10) for shift in far]
        forged += [
            at.forge(ACK | PSH, at.seq + random.randrange(1000), at.ack + shift, b"FORGED" * 10) for shift in far
        ]
        wire.send(*forged)
        assert_exchange(app, peer, MIB)


def test_forged_too_big_does_not_slow_a_flow(bed: Bed, wire: Wire) -> None:
    random = Random(6)
    with open_flow(bed) as (app, peer):
        at = overhear(wire, app, peer)
        quotes = [
            packets.tcp(TARGET_V4, at.destination_port, at.app, at.port, bytes(8), sequence=(at.ack + shift) % 2**32)
            for shift in (random.randrange(4 * MIB, 2**32 - 4 * MIB) for _ in range(1000))
        ]
        before = dropped(bed, "out_of_window")
        wire.send(
            *(
                packets.VIRTIO_NONE + packets.icmp(at.app, TARGET_V4, 3, 4, struct.pack("!I", 68) + quote[:28])
                for quote in quotes
            )
        )
        wait_until(lambda: dropped(bed, "out_of_window") - before == len(quotes), what="the count of the forgeries")
        assert_exchange(app, peer, MIB)


# broken packets


@pytest.mark.parametrize(("host", "source"), [(TARGET_V4, "10.97.0.1"), (TARGET_V6, "fd97::1")], ids=["ipv4", "ipv6"])
def test_overlapping_fragments_are_refused(bed: Bed, wire: Wire, host: str, source: str) -> None:
    with udp_socket(bed.net.internet, host) as peer:
        port = peer.getsockname()[1]

        def fragments(text: bytes, ident: int) -> list[bytes]:
            whole = packets.udp(source, 5000, host, port, text)
            if ":" in host:
                return packets.ipv6_fragments(source, host, packets.UDP, whole[40:], [256] * 3, ident)
            return packets.ipv4_fragments(whole, [256] * 3, ident)

        evil, good = fragments(b"A" * 1000, 1), fragments(pseudo_random(1000), 2)
        shifted = fragments(b"B" * 1000, 1)[1]
        field = 42 if ":" in host else 6
        offset = int.from_bytes(shifted[field : field + 2], "big") - (64 if ":" in host else 8)
        overlapping = shifted[:field] + offset.to_bytes(2, "big") + shifted[field + 2 :]
        if ":" not in host:
            head = overlapping[:10] + b"\0\0" + overlapping[12:20]
            overlapping = head[:10] + packets.internet_checksum(head).to_bytes(2, "big") + head[12:] + overlapping[20:]
        before = dropped(bed, "fragment")
        order = [evil[0], overlapping, *evil[1:], *reversed(good)]
        wire.send(*(packets.VIRTIO_NONE + packet for packet in order))
        assert peer.recv(2000) == pseudo_random(1000)  # the same source has one association, which keeps the order
        assert dropped(bed, "fragment") - before >= len(evil) + 1  # more, where older ones ran out of time meanwhile


def test_truncated_and_lying_headers_do_no_harm(bed: Bed, wire: Wire) -> None:
    random = Random(7)
    whole = (bytes(mutated(random.choice(SEEDS), random))[10:] for _ in range(20_000))
    with open_flow(bed) as (app, peer):
        wire.send(*(packets.VIRTIO_NONE + packet for packet in whole if packet and len(packet) <= 1500))
        assert_exchange(app, peer, MIB)
    for reason in ("malformed", "checksum", "unsupported"):
        assert dropped(bed, reason) > 0


# clients that want to be expensive


@contextmanager
def forged_clients(bed: Bed, wire: Wire, count: int, **options: int) -> Iterator[list[tuple[TcpPeer, socket.socket]]]:
    """TCP clients that no kernel knows, each with its peer behind the proxy; they end by RST."""
    with tcp_server(bed.net.internet, TARGET_V4, 443, backlog=count) as server, ExitStack() as stack:
        made = []
        for number in range(count):
            client = TcpPeer(source="10.96.0.1", destination=TARGET_V4, port=3000 + number, timestamps=False, **options)
            while not client.open:  # again after a while, as the kernel does: a flood may just have ended
                client.connect()
                flush(wire, client)
                for packet in wire.from_engine(1.0):
                    if tcp_segment(packet, "10.96.0.1") is not None:
                        client.receive(packet)
                    if client.open:
                        break
            flush(wire, client)
            made.append((client, stack.enter_context(server.accept()[0])))
        yield made
        for client, _ in made:
            client.emit(b"", client.wire(client.next), RST)
            flush(wire, client)


def flush(wire: Wire, client: TcpPeer) -> None:
    """Send what the client has to say."""
    forged, client.sent = client.sent, []
    wire.send(*forged)


def test_one_byte_segments_with_gaps_cost_bounded_memory(bed: Bed, wire: Wire) -> None:
    before = dropped(bed, "buffer_limit")
    with forged_clients(bed, wire, 1) as [(client, peer)]:
        for at in range(1, 8001, 2):
            client.emit(b"x", client.wire(at), ACK)
        flush(wire, client)
        wait_until(lambda: dropped(bed, "buffer_limit") - before == 4000 - 256, what="the count of what was too much")
        for at in range(1000):
            client.emit(b"%d" % (at % 10), client.wire(at), ACK)
        flush(wire, client)
        client.next = 1000
        # What was held first is kept: the odd bytes up to 511 are those of the first wave.
        assert receive(peer, 512) == b"".join(b"%dx" % (at % 10) for at in range(0, 512, 2))


def test_window_of_zero_for_ever_holds_bounded_memory(bed: Bed, wire: Wire) -> None:
    clients = 20
    before = worker_memory(bed)
    with forged_clients(bed, wire, clients, window=0) as made:
        for _, peer in made:
            peer.settimeout(0.2)
            with pytest.raises(TimeoutError):
                peer.sendall(bytes(64 * MIB))
        # Per flow one send buffer (shared/config.py, StackConfig), and what the allocator keeps.
        assert worker_memory(bed) - before < clients * MIB + 16 * MIB
        with open_flow(bed) as (app, other):
            assert_exchange(app, other, MIB)
