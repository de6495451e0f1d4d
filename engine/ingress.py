"""tun -> flow key -> shard -> ring -> doorbell. The master's packet path; everything a packet meets is in this file.

    1. `read_batch` runs when the tun is readable and reads up to BATCH packets, each straight into a free pool slot
    2. the flow key is cut out of the packet with one unpack (`flow_key` for the rare shapes), and hashed
    3. a small packet is copied into the shard's ring and its slot stays free; a large one is handed over in its slot
    4. a shard that sleeps is woken: at once for a large packet, at the end of the batch for small ones
    5. slots that the workers are done with come back over the free rings

Nothing here waits: a full ring or an empty pool drops the packet and counts it.

While workers of an earlier generation drain, `read_batch` is another function, which asks for each packet whether its flow
lives in one of them (engine/pins.py) before it hashes.

The hash is Python's own over bytes: SipHash with a key drawn per process (unless PYTHONHASHSEED fixes it), so nobody
outside can aim flows at one worker. It is salted as well, for the case that it is fixed.
"""

import os
from collections.abc import Callable
from struct import Struct
from time import monotonic

from engine.flow import Fragment, Malformed, flow_key
from engine.fragments import MAX_BYTES, Reassembler
from engine.pins import Pins
from engine.tun import ReadPacket
from shared.metrics import Cell, Counters
from shared.pool import Pool
from shared.ring import INLINE_MAX, Ring
from shared.system import ring_doorbell
from shared.wire.virtio import HEADER_LEN

__all__ = ["Ingress", "Shard"]

BATCH = 64
"""Packets read before the loop may serve other descriptors (signals, control socket)."""

HELD_PER_FREE = 2
"""A shard may hold this many slots for each free one, so that a worker that hangs cannot take the pool from the others:
the dynamic threshold of shared-memory switches (Choudhury and Hahne, 1998). One hanging worker holds 2/3 of the slots."""

# From the virtio header on: IPv4 version+IHL, fragment field, protocol, then addresses and ports in one piece.
_IPV4 = Struct(f"!{HEADER_LEN}x B5xHxB2x 12s")
# IPv6 version, next header, then addresses and ports in one piece.
_IPV6 = Struct(f"!{HEADER_LEN}x B5xBx 36s")
_SHORTEST = HEADER_LEN + 20 + 8
_TCP, _UDP = 6, 17

# Plain integers: an attribute of an Enum and its conversion cost more than the rest of the count.
_PACKETS_IN, _BYTES_IN, _WAKEUPS = int(Cell.PACKETS_IN), int(Cell.BYTES_IN), int(Cell.WAKEUPS)


class Shard:
    """The master's ends of one worker: the ring to it, the ring of slots back, its doorbell."""

    def __init__(self, ring: Ring, free_ring: Ring, doorbell: int) -> None:
        self.ring = ring
        self.free_ring = free_ring
        self.doorbell = doorbell  # its writing end
        self.held = 0
        """Slots that the worker has."""

    def wake(self) -> bool:
        """Ring the doorbell if the worker sleeps; returns whether it was rung."""
        if self.ring.must_wake():
            ring_doorbell(self.doorbell)
            return True
        return False

    def close(self) -> None:
        """Let go of the shared memory (not of the doorbell)."""
        self.ring.close()
        self.free_ring.close()


class Ingress:
    """Reads the tun and hands packets to `shards`. `counters` is the master's row of the shared counters.

    read_batch  dispatches what the tun has, at most BATCH packets. Raises OSError when the tun is gone (EBADFD)

    `header_len`, `read` and `kept` are those of engine.tun.TunDevice; `reassembly_buffer`: bytes of IP fragments to hold at most.
    """

    def __init__(
        self,
        tun_fd: int,
        pool: Pool,
        shards: list[Shard],
        counters: Counters,
        *,
        header_len: int,
        read: ReadPacket = os.readv,
        kept: Callable[[], int] = int,
        reassembly_buffer: int = MAX_BYTES,
    ) -> None:
        self._fd = tun_fd
        self._read = read
        self._kept = kept
        self._pool = pool
        self._shards = shards  # of the workers that take new flows; a flow's hash is an index in it
        self._draining: list[Shard] = []
        self._pins = Pins[Shard]()
        self._counters = counters
        self._reassembler = Reassembler(reassembly_buffer)
        self._salt = os.urandom(8)
        # Without virtio header the packet goes behind a header of zeros: a shorter header lies in the end of it, in fields
        # that have no meaning while the flags are zero.
        self._offset = HEADER_LEN - header_len
        # The last slot is never handed over: it takes what is read while the pool is empty.
        self._spare = pool.layout.slots - 1
        self._free = list(range(self._spare))[::-1]  # LIFO: the slot used last is the one still in the cache
        self._owner: dict[int, Shard] = {}  # slot that is not free -> shard that holds it
        self._targets = [[view[self._offset :]] for view in pool.slots]
        self.read_batch: Callable[[], None] = self._read_batch

    @property
    def free_slots(self) -> int:
        """Slots that no worker holds: on the free list, or on their way back to it."""
        return len(self._free) + sum(len(shard.free_ring) for shard in (*self._shards, *self._draining))

    def close(self) -> None:
        """Let go of the shared memory, the shards' too; the tun and the doorbells stay open."""
        for shard in (*self._shards, *self._draining):
            shard.close()
        for (target,) in self._targets:
            target.release()

    def _read_batch(self) -> None:
        """`read_batch` while no worker drains."""
        fd, targets, free, slots, shards = self._fd, self._targets, self._free, self._pool.slots, self._shards
        offset, salt, count = self._offset, self._salt, len(shards)
        read, ipv4, ipv6 = self._read, _IPV4.unpack_from, _IPV6.unpack_from
        packets = total = 0
        woken: set[Shard] = set()
        failure: OSError | None = None
        self._reclaim()
        while packets < BATCH or self._kept():
            slot = free[-1] if free else self._spare
            try:
                length = read(fd, targets[slot]) + offset
            except BlockingIOError:
                break
            except OSError as error:
                failure = error  # for later: what was read before it is to be handed over and counted
                break
            packets += 1
            total += length
            packet = slots[slot]
            # The three common shapes; a packet too short for the unpack meets stale bytes and is refused by the worker.
            version, fragment, protocol, key = ipv4(packet)
            if version == 0x45 and length >= _SHORTEST and protocol == _TCP and not fragment & 0x3FFF:
                shard = shards[hash(salt + key) % count]
            elif version == 0x45 and length >= _SHORTEST and protocol == _UDP and not fragment & 0x3FFF:
                shard = shards[hash(salt + key[:4] + key[8:10]) % count]
            else:
                version, protocol, key = ipv6(packet)
                if version >> 4 == 6 and length >= _SHORTEST + 20 and protocol == _TCP:
                    shard = shards[hash(salt + key) % count]
                elif version >> 4 == 6 and length >= _SHORTEST + 20 and protocol == _UDP:
                    shard = shards[hash(salt + key[:16] + key[32:34]) % count]
                else:
                    self._dispatch_rare(packet[:length])
                    continue
            if length <= INLINE_MAX:
                if shard.ring.push_inline(packet[:length]):
                    woken.add(shard)
                else:
                    self._counters[Cell.DROP_RING_FULL] += 1
            else:
                self._push_slot(shard, length, slot)
        for shard in woken:
            self._wake(shard)
        counters = self._counters
        counters[_PACKETS_IN] += packets
        counters[_BYTES_IN] += total - packets * HEADER_LEN
        counters[_WAKEUPS] += 1
        if failure is not None:
            raise failure

    # generations

    @property
    def pins(self) -> Pins[Shard]:
        """Flows that live where their hash does not say. Those that a worker has when `switch` is called must be in it."""
        return self._pins

    def switch(self, shards: list[Shard]) -> None:
        """New flows go to `shards` from now on, pinned ones to where they live."""
        self._draining += self._shards
        self._shards = shards
        self._choose_reader()

    def drop(self, shard: Shard) -> None:
        """The worker of a shard that drained has ended: take back the slots that it held. Harmless for a shard not in use."""
        if shard in self._draining:
            self._draining.remove(shard)
            self._release(shard)
            self._choose_reader()

    def replace(self, shard: Shard, successor: Shard) -> None:
        """Put `successor` in the place of a dead worker's shard, and take back the slots that it held."""
        self._shards[self._shards.index(shard)] = successor
        self._release(shard)

    def _release(self, shard: Shard) -> None:
        for slot in [slot for slot, owner in self._owner.items() if owner is shard]:
            self._take_back(slot, shard)
        self._pins.drop(shard)
        shard.close()

    def _choose_reader(self) -> None:
        self.read_batch = self._read_batch_pinned if self._draining else self._read_batch

    def _read_batch_pinned(self) -> None:
        """`read_batch` while workers drain: each packet costs a look at the pins, and the key's slower extraction."""
        packets = total = 0
        self._reclaim()
        try:
            while packets < BATCH or self._kept():
                slot = self._free[-1] if self._free else self._spare
                length = self._read(self._fd, self._targets[slot]) + self._offset
                packets += 1
                total += length
                self._dispatch_rare(self._pool.slots[slot][:length])
        except BlockingIOError:
            pass
        finally:
            counters = self._counters
            counters[_PACKETS_IN] += packets
            counters[_BYTES_IN] += total - packets * HEADER_LEN
            counters[_WAKEUPS] += 1

    def expire(self) -> None:
        """Drop fragments whose time is up; called every few seconds."""
        self._reassembler.expire(monotonic())
        self._count_fragments()

    def _reclaim(self) -> None:
        owner = self._owner
        for shard in (*self._shards, *self._draining) if self._draining else self._shards:
            ring = shard.free_ring
            item = ring.pull()
            if item is None:
                continue
            while item is not None:
                slot = item[2]
                if owner.get(slot) is shard:  # a worker cannot return what it was not given
                    self._take_back(slot, shard)
                item = ring.pull()
            ring.release()

    def _take_back(self, slot: int, shard: Shard) -> None:
        del self._owner[slot]
        shard.held -= 1
        self._free.append(slot)

    def _push_slot(self, shard: Shard, length: int, slot: int) -> None:
        """Hand the packet in `slot`, the next free one or the spare, to a shard."""
        if slot == self._spare or shard.held > HELD_PER_FREE * len(self._free):
            self._counters[Cell.DROP_POOL_EMPTY] += 1
        elif shard.ring.push(length, slot):
            self._free.pop()
            self._owner[slot] = shard
            shard.held += 1
            self._wake(shard)
        else:
            self._counters[Cell.DROP_RING_FULL] += 1

    def _wake(self, shard: Shard) -> None:
        if shard.wake():
            self._counters[Cell.DOORBELLS] += 1

    def _dispatch_rare(self, packet: memoryview) -> None:
        """Fragments, IP options, extension headers, ICMP, garbage; while workers drain, everything."""
        try:
            key = flow_key(packet)
        except Malformed:
            self._counters[Cell.DROP_MALFORMED] += 1
            return
        except Fragment:
            whole = self._reassembler.add(packet, monotonic())
            self._count_fragments()
            if whole is not None:
                self._counters[Cell.FRAGMENTS_REASSEMBLED] += 1
                self._dispatch_whole(memoryview(whole))
            return
        self._hand_over(packet, key)

    def _dispatch_whole(self, packet: memoryview) -> None:
        """A packet made of fragments."""
        try:
            key = flow_key(packet)
        except (Malformed, Fragment):  # fragments within fragments are garbage
            self._counters[Cell.DROP_MALFORMED] += 1
            return
        self._hand_over(packet, key)

    def _hand_over(self, packet: memoryview, key: bytes) -> None:
        """Push a packet that was read into the next free slot, or one that lies outside the pool."""
        shard = self._pins.get(key) or self._shards[hash(self._salt + key) % len(self._shards)]
        length = len(packet)
        if length > INLINE_MAX:
            slot = self._free[-1] if self._free else self._spare
            if packet.obj is not self._pool.slots[slot].obj:  # made of fragments, or else it lies in `slot` already
                self._pool.slots[slot][:length] = packet
            self._push_slot(shard, length, slot)
        elif shard.ring.push_inline(packet):
            self._wake(shard)
        else:
            self._counters[Cell.DROP_RING_FULL] += 1

    def _count_fragments(self) -> None:
        self._counters[Cell.DROP_FRAGMENT] += self._reassembler.dropped
        self._reassembler.dropped = 0
