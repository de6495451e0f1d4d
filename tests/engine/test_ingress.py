"""engine/ingress.py over a socket that keeps packet boundaries as a tun does, with a real pool and real rings.

The workers' ends of the rings are held by the test: `Workers` pulls what was dispatched and gives slots back.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.ingress import BATCH, Ingress, Shard
from shared.metrics import Cell
from shared.pool import Pool, PoolLayout
from shared.ring import INLINE_MAX
from shared.wire.utun import family_of
from tests.support.packets import (
    DESTINATION_OPTIONS,
    HOP_BY_HOP,
    TCP,
    UDP,
    VIRTIO_NONE,
    extension,
    icmp_echo,
    icmp_error,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    tcp,
    udp,
)

A4, B4, C4 = "192.0.2.1", "198.51.100.7", "203.0.113.99"
A6, B6, C6 = "2001:db8::1", "2001:db8:ffff::7", "2001:db8:eeee::3"
HEADERS = [VIRTIO_NONE, b"", bytes(family_of(4))]
LARGE = bytes(INLINE_MAX)  # payload of a packet that needs a slot

Received = list[tuple[int, bytes]]  # (shard, packet without virtio header)


class Bed:
    """An Ingress, the network's end of its tun, and the workers' ends of its rings."""

    def __init__(self, *, workers: int, slots: int, ring_entries: int, header: bytes) -> None:
        self.pool = Pool.create(PoolLayout(workers, slots, ring_entries))
        self.header = header
        self.doorbells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(workers)]
        self.network, self._tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tun.setblocking(False)
        self.row = self.pool.counters[workers]
        self.shards = [self.shard(i) for i in range(workers)]
        self.ingress = Ingress(self._tun.fileno(), self.pool, list(self.shards), self.row, header_len=len(header))
        self.rings = [self.pool.ring(i) for i in range(workers)]
        self.free_rings = [self.pool.free_ring(i) for i in range(workers)]
        self.slots_held: list[list[int]] = [[] for _ in range(workers)]

    def shard(self, index: int) -> Shard:
        return Shard(self.pool.ring(index), self.pool.free_ring(index), self.doorbells[index])

    def close(self) -> None:
        self.ingress.close()
        for ring in self.rings + self.free_rings:
            ring.close()
        for doorbell in self.doorbells:
            os.close(doorbell)
        self.network.close()
        self._tun.close()
        self.pool.close()

    def send(self, *packets: bytes) -> None:
        """Put IP packets on the tun, and let the engine read until it has them all."""
        for packet in packets:
            self.network.send(self.header + packet)
            self.ingress.read_batch()

    def receive(self, *, give_back: bool = True) -> Received:
        """Pull everything from all rings, in order of shard."""
        received = []
        for index, ring in enumerate(self.rings):
            while (item := ring.pull()) is not None:
                position, length, slot = item
                view = ring.inline[position] if slot < 0 else self.pool.slots[slot]
                assert (
                    bytes(view[:6]) == VIRTIO_NONE[:6]
                )  # no flags: the rest has no meaning, and may be the family of a utun
                received.append((index, bytes(view[10:length])))
                if slot >= 0:
                    self.slots_held[index].append(slot)
            ring.release()
        if give_back:
            self.give_back()
        return received

    def give_back(self) -> None:
        """Return every slot over the free ring of the worker that got it."""
        for held, free_ring in zip(self.slots_held, self.free_rings, strict=True):
            while held:
                free_ring.push(0, held.pop())

    def shard_of(self, packet: bytes) -> int:
        """The one shard that `packet` reaches, unchanged."""
        self.send(packet)
        ((index, received),) = self.receive()
        assert received == packet
        return index

    def drops(self) -> dict[str, int]:
        return {cell.name: self.row[cell] for cell in Cell if cell.name.startswith("DROP_") and self.row[cell]}


@contextmanager
def bed(*, workers: int = 2, slots: int = 16, ring_entries: int = 64, header: bytes = VIRTIO_NONE) -> Iterator[Bed]:
    made = Bed(workers=workers, slots=slots, ring_entries=ring_entries, header=header)
    try:
        yield made
    finally:
        made.close()


def large_tcp(port: int) -> bytes:
    return tcp(A4, port, B4, 443, LARGE)


def ports_of_shard(made: Bed, index: int, count: int) -> list[int]:
    """Source ports whose TCP flows from A4 to B4:443 go to shard `index`."""
    found: list[int] = []
    port = 1024
    while len(found) < count:
        port += 1
        if made.shard_of(tcp(A4, port, B4, 443)) == index:
            found.append(port)
    return found


# which shard


@pytest.mark.parametrize("header", HEADERS, ids=["virtio", "none", "utun"])
def test_packets_arrive_unchanged_small_and_large(header: bytes) -> None:
    packets = [tcp(A4, 1, B4, 2), tcp(A6, 1, B6, 2, LARGE), udp(A4, 1, B4, 2, bytes(65507)), udp(A6, 3, B6, 4, b"")]
    packets += [tcp(A4, 1, B4, 2, bytes(INLINE_MAX - 50 + n)) for n in range(2)]  # the last inline one, the first not
    with bed(workers=1, header=header) as made:
        made.send(*packets)
        assert made.receive() == [(0, packet) for packet in packets]
        assert made.row[Cell.PACKETS_IN] == len(packets)
        assert made.row[Cell.BYTES_IN] == sum(map(len, packets))
        assert made.drops() == {}


def test_flow_keeps_its_shard() -> None:
    with bed(workers=8) as made:
        for here, there in ((A4, B4), (A6, B6)):
            for port in range(1, 30):
                shards = {made.shard_of(tcp(here, port, there, 443, payload)) for payload in (b"", b"x", LARGE)}
                assert len(shards) == 1


def test_udp_socket_has_one_shard_whatever_it_talks_to() -> None:
    with bed(workers=8) as made:
        for here, others in ((A4, (B4, C4)), (A6, (B6, C6))):
            for port in range(1, 30):
                shards = {made.shard_of(udp(here, port, there, 53 + n)) for n, there in enumerate(others)}
                assert len(shards) == 1


addresses4 = st.binary(min_size=4, max_size=4)
addresses6 = st.binary(min_size=16, max_size=16)
ports = st.integers(0, 65535)
flows = st.one_of(
    *(
        st.tuples(address, ports, address, ports, st.sampled_from([b"", b"data", LARGE]))
        for address in (addresses4, addresses6)
    )
)


@settings(max_examples=60)
@given(several=st.lists(flows, min_size=1, max_size=10), options=st.binary(min_size=1, max_size=40))
def test_rare_shapes_go_where_the_common_shape_goes(
    several: list[tuple[bytes, int, bytes, int, bytes]], options: bytes
) -> None:
    """IP options, extension headers, fragments, and ICMP errors that quote the flow: all by flow_key."""
    with bed(workers=16, slots=8) as made:
        for source, source_port, destination, destination_port, payload in several:
            flow = source, source_port, destination, destination_port
            segment, datagram = tcp(*flow, payload), udp(*flow, payload + bytes(16))
            header = 20 if len(source) == 4 else 40
            tcp_shard, udp_shard = made.shard_of(segment), made.shard_of(datagram)
            for protocol, packet, shard in ((TCP, segment, tcp_shard), (UDP, datagram, udp_shard)):
                if header == 20:
                    rare = ipv4(source, destination, protocol, packet[20:], options=options)
                else:
                    chain = ((HOP_BY_HOP, extension(8)), (DESTINATION_OPTIONS, extension(24)))
                    rare = ipv6(source, destination, protocol, packet[40:], extensions=chain)
                assert made.shard_of(rare) == shard
            if header == 20:
                fragments = ipv4_fragments(datagram, [16], 9)
            else:
                fragments = ipv6_fragments(source, destination, UDP, datagram[40:], [16], 9)
            made.send(*fragments)
            assert [index for index, _ in made.receive()] == [udp_shard]
            answer_tcp = tcp(destination, destination_port, source, source_port)
            answer_udp = udp(destination, destination_port, source, source_port, bytes(4))
            assert made.shard_of(icmp_error(source, destination, answer_tcp)) == tcp_shard
            assert made.shard_of(icmp_error(source, destination, answer_udp[: header + 8])) == udp_shard
        assert made.drops() == {}


@pytest.mark.parametrize("build", [tcp, udp])
@pytest.mark.parametrize(("here", "there"), [(A4, B4), (A6, B6)])
def test_ten_thousand_flows_spread_evenly_over_four_shards(build, here: str, there: str) -> None:  # type: ignore[no-untyped-def]
    """2,500 expected for each, standard deviation 43: a tenth away from it is six of them."""
    counts = [0] * 4
    with bed(workers=4) as made:
        for first in range(0, 10_000, 50):
            for port in range(first, first + 50):
                made.network.send(VIRTIO_NONE + build(here, 10_000 + port, there, 443))
            made.ingress.read_batch()
            for index, _ in made.receive():
                counts[index] += 1
        assert made.drops() == {}
    assert sum(counts) == 10_000
    assert all(2250 < count < 2750 for count in counts), counts


# doorbells


def rung(made: Bed) -> list[int]:
    """How often each doorbell was rung since the last look."""
    counts = []
    for doorbell in made.doorbells:
        try:
            counts.append(os.eventfd_read(doorbell))
        except BlockingIOError:
            counts.append(0)
    return counts


def test_one_doorbell_for_a_batch_and_none_for_a_worker_that_is_awake() -> None:
    with bed(workers=2) as made:
        (port,) = ports_of_shard(made, 1, 1)
        rung(made)
        assert all(ring.try_sleep() for ring in made.rings)
        for _ in range(10):
            made.network.send(VIRTIO_NONE + tcp(A4, port, B4, 443))
        made.ingress.read_batch()
        assert rung(made) == [0, 1]
        assert made.row[Cell.DOORBELLS] == 1
        made.send(large_tcp(port), icmp_echo(A4, B4, 1))
        assert rung(made)[1] == 0, "the worker was told already"


@pytest.mark.parametrize("packet", [large_tcp(1), icmp_echo(A4, B4, 1), ipv4(A4, B4, TCP, bytes(20), options=bytes(4))])
def test_sleeping_worker_is_woken_for_every_kind_of_packet(packet: bytes) -> None:
    with bed(workers=1) as made:
        assert made.rings[0].try_sleep()
        made.send(packet)
        assert rung(made) == [1]


def test_no_more_than_a_batch_is_read_at_once() -> None:
    with bed(workers=1, ring_entries=256) as made:
        for _ in range(BATCH + 6):
            made.network.send(VIRTIO_NONE + tcp(A4, 1, B4, 2))
        made.ingress.read_batch()
        assert len(made.receive()) == BATCH
        made.ingress.read_batch()
        assert len(made.receive()) == 6


def test_packets_read_before_the_tun_failed_are_dispatched_and_counted() -> None:
    with bed(workers=1) as made:
        assert made.rings[0].try_sleep()
        made.network.send(VIRTIO_NONE + tcp(A4, 1, B4, 2))
        readv, calls = os.readv, []

        def fails_the_second_time(fd: int, buffers: list[memoryview]) -> int:
            calls.append(fd)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
            return readv(fd, buffers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.ingress, "_read", fails_the_second_time)
            with pytest.raises(OSError, match="Input/output"):
                made.ingress.read_batch()
        assert rung(made) == [1]
        assert len(made.receive()) == made.row[Cell.PACKETS_IN] == 1


def test_packets_that_the_reader_keeps_do_not_wait_for_the_next_batch() -> None:
    """They are no longer the kernel's, so the tun would not become readable for them (recvmsg_x of macOS)."""
    with bed(workers=1, ring_entries=256) as made:
        kept = [VIRTIO_NONE + tcp(A4, port, B4, 2) for port in range(1, BATCH + 21)]

        def read(fd: int, targets: Sequence[memoryview]) -> int:
            packet = kept.pop(0)
            targets[0][: len(packet)] = packet
            return len(packet)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.ingress, "_read", read)
            patch.setattr(made.ingress, "_kept", lambda: len(kept))
            made.ingress.read_batch()
        assert (len(kept), made.row[Cell.PACKETS_IN]) == (0, BATCH + 20)


# full rings, empty pool


@pytest.mark.parametrize("packet", [tcp(A4, 1, B4, 2), icmp_echo(A4, B4, 1), tcp(A4, 1, B4, 2, LARGE)])
def test_full_ring_drops_counts_and_keeps_the_slots(packet: bytes) -> None:
    with bed(workers=1, slots=64, ring_entries=4) as made:
        before = made.ingress.free_slots
        made.send(*[packet] * 7)
        assert made.drops() == {"DROP_RING_FULL": 3}
        assert made.receive() == [(0, packet)] * 4
        assert made.ingress.free_slots == before
        assert made.shard_of(packet) == 0


def test_empty_pool_drops_large_packets_and_carries_small_ones() -> None:
    with bed(workers=1, slots=4) as made:
        made.send(*[large_tcp(1)] * 20)
        held = len(made.receive(give_back=False))
        assert 0 < held <= 3
        assert made.drops() == {"DROP_POOL_EMPTY": 20 - held}
        small = [tcp(A4, 1, B4, 2), tcp(A6, 1, B6, 2), icmp_echo(A4, B4, 1)]
        made.send(*small)
        assert made.receive(give_back=False) == [(0, packet) for packet in small]
        made.give_back()
        made.send(large_tcp(1))
        assert made.receive() == [(0, large_tcp(1))]


def test_reassembled_packet_needs_a_slot_as_well() -> None:
    with bed(workers=1, slots=4) as made:
        fragments = ipv4_fragments(udp(A4, 1, B4, 2, bytes(4000)), [1480, 1480], 3)
        made.send(*fragments)
        assert made.row[Cell.FRAGMENTS_REASSEMBLED] == 1
        ((_, whole),) = made.receive()
        assert whole[20:] == udp(A4, 1, B4, 2, bytes(4000))[20:]
        made.send(*[large_tcp(1)] * 10)
        dropped = made.drops()["DROP_POOL_EMPTY"]
        made.send(*fragments)
        assert made.drops() == {"DROP_POOL_EMPTY": dropped + 1}


def test_worker_that_hangs_does_not_take_the_pool_from_the_others() -> None:
    with bed(workers=2, slots=32) as made:
        (hung,), (alive,) = ports_of_shard(made, 0, 1), ports_of_shard(made, 1, 1)
        made.send(*[large_tcp(hung)] * 100)
        assert made.drops()["DROP_POOL_EMPTY"] > 0, "the hanging worker's ring took the whole pool"
        dropped = made.drops()
        for _ in range(100):
            made.send(large_tcp(alive))
            item = made.rings[1].pull()
            assert item is not None
            made.rings[1].release()
            made.free_rings[1].push(0, item[2])
        assert made.drops() == dropped


# slots


def test_slots_come_back_after_many_laps() -> None:
    with bed(workers=3, slots=16, ring_entries=8) as made:
        before = made.ingress.free_slots
        for port in range(500):
            made.send(large_tcp(port))
            assert len(made.receive()) == 1
        assert made.ingress.free_slots == before
        assert made.drops() == {}


def test_slot_given_back_twice_is_free_once() -> None:
    with bed(workers=1, slots=8) as made:
        before = made.ingress.free_slots
        made.send(large_tcp(1))
        made.receive(give_back=False)
        (slot,) = made.slots_held[0]
        for _ in range(3):
            made.free_rings[0].push(0, slot)
        made.send(tcp(A4, 1, B4, 2))
        assert made.ingress.free_slots == before
        made.receive()
        made.send(*[large_tcp(n) for n in range(4)])
        made.receive(give_back=False)
        assert len(set(made.slots_held[0])) == len(made.slots_held[0]) == 4, "two packets share a slot"


@pytest.mark.parametrize("slot", [0, 7, 8, 0x7FFD])
def test_slot_that_the_worker_does_not_hold_is_not_taken_from_it(slot: int) -> None:
    """Of the other worker, free, the spare, or beyond the pool: a worker's memory is not trusted."""
    with bed(workers=2, slots=8) as made:
        (port,) = ports_of_shard(made, 0, 1)
        made.send(*[large_tcp(port)] * 3)
        before = made.ingress.free_slots
        made.free_rings[1].push(0, slot)
        made.send(tcp(A4, port, B4, 443))
        assert made.ingress.free_slots == before
        assert len(made.receive()) == 4


def test_replaced_shard_gives_back_exactly_the_slots_of_the_dead_worker() -> None:
    with bed(workers=2, slots=64) as made:
        dead, alive = ports_of_shard(made, 0, 3), ports_of_shard(made, 1, 2)
        before = made.ingress.free_slots
        made.send(*map(large_tcp, dead + alive))
        made.receive(give_back=False)
        assert made.ingress.free_slots == before - 5
        made.free_rings[0].push(0, made.slots_held[0].pop())  # on its way back when the worker died
        made.rings[0].close()
        made.free_rings[0].close()
        made.pool.reset_rings(0)
        made.ingress.replace(made.shards[0], made.shard(0))
        made.rings[0], made.free_rings[0] = made.pool.ring(0), made.pool.free_ring(0)
        made.slots_held[0].clear()
        assert made.ingress.free_slots == before - 2
        assert made.shard_of(large_tcp(dead[0])) == 0, "the successor gets the dead worker's flows"
        made.give_back()
        made.send(tcp(A4, 1, B4, 2))
        assert made.ingress.free_slots == before


# fragments and garbage


def test_fragments_are_counted_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("engine.ingress.monotonic", lambda: now)
    with bed(workers=1) as made:
        first, _ = ipv4_fragments(udp(A4, 1, B4, 2, bytes(100)), [80], 3)
        made.send(first)
        made.ingress.expire()
        assert made.drops() == {}
        now += 60.0
        made.ingress.expire()
        assert made.drops() == {"DROP_FRAGMENT": 1}


@settings(max_examples=100)
@given(
    packets=st.lists(
        st.binary(max_size=120)
        | st.builds(lambda first, rest: bytes((first,)) + rest, st.sampled_from([0x45, 0x46, 0x60]), st.binary(max_size=120)),
        max_size=20,
    ),
    header=st.sampled_from(HEADERS),
)  # fmt: skip
def test_garbage_is_dispatched_or_counted_and_nothing_is_lost(packets: list[bytes], header: bytes) -> None:
    packets = [packet for packet in packets if packet]
    with bed(workers=2, header=header) as made:
        before = made.ingress.free_slots
        made.send(*packets)
        dispatched = len(made.receive())
        assume(made.row[Cell.FRAGMENTS_REASSEMBLED] == 0)  # then several packets would have become one
        held = sum(len(datagram.pieces) for datagram in made.ingress._reassembler._datagrams.values())
        assert dispatched + held + sum(made.drops().values()) == len(packets)
        assert made.row[Cell.BYTES_IN] == sum(map(len, packets))
        assert made.ingress.free_slots == before


def test_stale_bytes_of_an_earlier_packet_give_a_short_one_no_flow() -> None:
    """A packet too short for its ports, read into a slot where a longer one lay."""
    with bed(workers=2) as made:
        made.send(tcp(A4, 1, B4, 2))
        made.receive()
        made.send(ipv4(A4, B4, TCP, b"abc"), ipv6(A6, B6, UDP, b"abc"))
        assert made.drops() == {"DROP_MALFORMED": 2}
