"""shared/ring.py against a deque, across its wraps, and between two real processes.

Run as a script, this file is the consumer of the test with two processes: `test_ring.py POOL_FD DOORBELL ANSWER_BELL COUNT MODE`.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.pool import Pool, PoolLayout
from shared.ring import INLINE_MAX, Ring, ring_size

CONSUMER_TIMEOUT = 60.0  # seconds until a lost wake-up, which is a hang, becomes a failure
PROCESS_ENTRIES = 200_000
ROUND_TRIPS = 10_000
SLOTS = 64
LAPS_PER_SEQUENCE = 0xFFFFFFFF  # a lap has numbers 1..0xFFFFFFFF


def new_memory(entries: int, *, inline: bool = True) -> memoryview:
    return memoryview(bytearray(ring_size(entries, inline)))


def new_pair(entries: int, *, inline: bool = True) -> tuple[Ring, Ring]:
    """A producer and a consumer over zeroed memory."""
    memory = new_memory(entries, inline=inline)
    return Ring(memory, entries, inline=inline), Ring(memory, entries, inline=inline)


def new_aged_pair(entries: int, passed: int) -> tuple[Ring, Ring]:
    """A pair through which `passed` entries have gone, every word holding what the last lap left in it."""
    producer, consumer = new_pair(entries)
    for index in range(max(0, passed - entries), passed):
        producer._next, producer._limit = index, index + entries
        assert producer.push(1, 1)
    consumer._next = passed
    consumer.release()
    producer._limit = passed + entries
    return producer, consumer


def pull_all(consumer: Ring) -> list[tuple[int, int, int]]:
    return list(iter(consumer.pull, None))


# one process


def test_push_then_pull_gives_length_and_slot() -> None:
    producer, consumer = new_pair(4)
    assert producer.push(65_545, 0x7FFD)
    assert consumer.pull() == (0, 65_545, 0x7FFD)
    assert consumer.pull() is None


def test_inline_packet_lies_in_the_ring_until_release() -> None:
    producer, consumer = new_pair(2)
    assert producer.push_inline(memoryview(b"first"))
    assert producer.push_inline(memoryview(b"x" * INLINE_MAX))
    index, length, slot = consumer.pull() or pytest.fail("nothing came")
    assert slot == -1
    assert bytes(consumer.inline[index][:length]) == b"first"
    assert not producer.push_inline(memoryview(b"third")), "the entry is still the consumer's"
    assert bytes(consumer.inline[index][:length]) == b"first"
    consumer.release()
    assert producer.push_inline(memoryview(b"third"))


def test_waiting_is_what_was_pushed_and_not_released() -> None:
    producer, consumer = new_aged_pair(4, 103)
    assert producer.waiting == 0
    producer.push(1, 1)
    producer.push(2, 2)
    assert producer.waiting == 2
    consumer.pull()
    assert producer.waiting == 2
    consumer.release()
    assert producer.waiting == 1


def test_full_ring_refuses_and_writes_nothing() -> None:
    producer, consumer = new_pair(4)
    assert all(producer.push(n, n) for n in range(4))
    assert not producer.push(99, 99)
    assert not producer.push_inline(memoryview(b"no room"))
    assert [item[1:] for item in pull_all(consumer)] == [(n, n) for n in range(4)]
    assert not producer.push(99, 99), "pulled, but not released"
    consumer.release()
    assert producer.push(5, 5)
    assert consumer.pull() == (0, 5, 5)


def test_slot_zero_is_not_inline() -> None:
    producer, consumer = new_pair(2)
    producer.push(0, 0)
    assert consumer.pull() == (0, 0, 0)


def test_length_counts_what_is_not_released() -> None:
    producer, consumer = new_pair(8)
    for n in range(5):
        producer.push(n, n)
    assert len(producer) == len(consumer) == 5
    consumer.pull()
    assert len(producer) == 5
    consumer.release()
    assert len(producer) == 4


@pytest.mark.parametrize("entries", [1, 2, 1024])
def test_word_of_an_earlier_lap_is_not_processed(entries: int) -> None:
    _, consumer = new_aged_pair(entries, passed=5 * entries)
    assert consumer.pull() is None
    assert consumer.try_sleep(), "a stale word must not keep the consumer awake"
    assert len(consumer) == 0


def test_zeroed_memory_holds_no_entry_at_the_sequence_wrap() -> None:
    _, consumer = new_pair(2)
    for lap in (LAPS_PER_SEQUENCE - 1, LAPS_PER_SEQUENCE, LAPS_PER_SEQUENCE + 1):
        consumer._next = lap * 2
        assert consumer.pull() is None


def test_word_that_another_process_damaged_is_not_processed() -> None:
    producer, consumer = new_pair(4)
    producer.push(100, 7)
    position = next(i for i, word in enumerate(producer._words) if word >> 32 == 1)
    producer._words[position] = 3 << 32 | 8 << 17 | 100
    assert consumer.pull() is None


def test_reset_ring_starts_afresh_while_the_producer_goes_on() -> None:
    memory = new_memory(4)
    producer, consumer = Ring(memory, 4, inline=True), Ring(memory, 4, inline=True)
    for n in range(6):
        producer.push(n, n)
        consumer.pull()
        consumer.release()
    producer.push(50, 50)  # on its way when the consumer dies
    consumer.close()
    producer.close()
    memory[:] = bytes(len(memory))
    producer, consumer = Ring(memory, 4, inline=True), Ring(memory, 4, inline=True)
    assert consumer.pull() is None
    assert [producer.push(n, n) for n in range(5)] == [True] * 4 + [False]
    assert [item[2] for item in pull_all(consumer)] == [0, 1, 2, 3]


def test_only_the_first_batch_after_sleep_rings() -> None:
    producer, consumer = new_pair(8)
    assert not producer.must_wake(), "nobody sleeps yet"
    assert consumer.try_sleep()
    producer.push(1, 1)
    assert producer.must_wake()
    producer.push(2, 2)
    assert not producer.must_wake(), "the doorbell is already on its way"


def test_sleep_is_refused_while_an_entry_waits() -> None:
    producer, consumer = new_pair(8)
    producer.push(1, 1)
    assert not consumer.try_sleep()
    assert not producer.must_wake(), "the consumer is awake, no doorbell is needed"
    consumer.pull()
    assert consumer.try_sleep()
    consumer.wake()
    assert not producer.must_wake()


@pytest.mark.parametrize(("entries", "inline"), [(1, False), (2, True), (1024, True), (2048, False)])
def test_region_holds_words_and_packets_in_whole_pages(entries: int, inline: bool) -> None:
    size = ring_size(entries, inline)
    assert size % 4096 == 0
    producer, consumer = new_pair(entries, inline=inline)
    filler = bytes(range(256)) * 8
    for _ in range(entries):
        assert producer.push_inline(memoryview(filler)) if inline else producer.push(1, 1)
    assert len(pull_all(consumer)) == entries
    assert all(bytes(view) == filler for view in consumer.inline)


class RingModel(RuleBasedStateMachine):
    """Two ends over one memory behave like a bounded deque, on any lap."""

    @initialize(
        bits=st.integers(0, 3),
        lap=st.sampled_from([0, 1, 7, LAPS_PER_SEQUENCE - 1, LAPS_PER_SEQUENCE, 2 * LAPS_PER_SEQUENCE - 1]),
    )
    def start(self, bits: int, lap: int) -> None:
        self.entries = 1 << bits
        self.producer, self.consumer = new_aged_pair(self.entries, lap * self.entries)
        self.waiting: deque[tuple[bytes | None, int, int]] = deque()  # (inline packet, length, slot)
        self.pulled = 0  # and not released
        self.asleep = False

    def _has_room(self) -> bool:
        return len(self.waiting) + self.pulled < self.entries

    @rule(length=st.integers(0, (1 << 17) - 1), slot=st.integers(0, 0x7FFD))
    def push(self, length: int, slot: int) -> None:
        room = self._has_room()
        assert self.producer.push(length, slot) == room
        if room:
            self.waiting.append((None, length, slot))

    @rule(packet=st.binary(max_size=64) | st.just(b"\xff" * INLINE_MAX))
    def push_inline(self, packet: bytes) -> None:
        room = self._has_room()
        assert self.producer.push_inline(memoryview(packet)) == room
        if room:
            self.waiting.append((packet, len(packet), -1))

    @rule()
    def pull(self) -> None:
        item = self.consumer.pull()
        if not self.waiting:
            assert item is None
            return
        assert item is not None
        index, length, slot = item
        packet, expected_length, expected_slot = self.waiting.popleft()
        assert (length, slot) == (expected_length, expected_slot)
        if packet is not None:
            assert bytes(self.consumer.inline[index][:length]) == packet
        self.pulled += 1

    @rule()
    def release(self) -> None:
        self.consumer.release()
        self.pulled = 0

    @rule()
    def fall_asleep(self) -> None:
        self.asleep = self.consumer.try_sleep()
        assert self.asleep == (not self.waiting)

    @rule()
    def must_wake(self) -> None:
        assert self.producer.must_wake() == self.asleep
        self.asleep = False

    @rule()
    def wake(self) -> None:
        self.consumer.wake()
        self.asleep = False

    @invariant()
    def length_is_what_the_producer_lost_room_for(self) -> None:
        assert len(self.producer) == len(self.waiting) + self.pulled


TestRingModel = RingModel.TestCase


# two processes


def payload_of(n: int) -> bytes:
    """What entry n carries; its length changes from entry to entry."""
    return n.to_bytes(8, "big") * (2 + n % 23)


def travels_inline(n: int) -> bool:
    return n % 3 != 0


@contextmanager
def consumer_process(mode: str, count: int) -> Iterator[tuple[Pool, int, int, "subprocess.Popen[str]"]]:
    """A pool of ours, the consumer's doorbell, ours, and the consumer: this file, run as a program."""
    pool = Pool.create(PoolLayout(1, SLOTS, 256))
    doorbell, answer_bell = os.eventfd(0), os.eventfd(0)
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, (pool.fd, doorbell, answer_bell, count)), mode],
        pass_fds=(pool.fd, doorbell, answer_bell),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield pool, doorbell, answer_bell, process
    finally:
        process.kill()
        process.communicate()
        os.close(doorbell)
        os.close(answer_bell)
        pool.close()


def test_two_processes_move_every_payload_in_order() -> None:
    with consumer_process("stream", PROCESS_ENTRIES) as (pool, doorbell, _, process):
        ring, free_ring = pool.ring(0), pool.free_ring(0)
        free, refused = list(range(SLOTS)), 0
        for n in range(PROCESS_ENTRIES):
            payload = payload_of(n)
            while True:
                while (item := free_ring.pull()) is not None:
                    free.append(item[2])
                free_ring.release()
                if travels_inline(n):
                    if ring.push_inline(memoryview(payload)):
                        break
                elif free:
                    pool.slots[free[-1]][: len(payload)] = payload
                    if ring.push(len(payload), free[-1]):
                        free.pop()
                        break
                refused += 1
                assert process.poll() is None, "the consumer gave up"
                os.sched_yield()
            if n % 5 == 0 and ring.must_wake():
                os.eventfd_write(doorbell, 1)
        if ring.must_wake():
            os.eventfd_write(doorbell, 1)
        report, _ = process.communicate(timeout=CONSUMER_TIMEOUT)
        while (item := free_ring.pull()) is not None:
            free.append(item[2])
        ring.close()
        free_ring.close()
    assert process.returncode == 0, "the consumer found a wrong entry (see its traceback)"
    assert int(report) > 0, "the consumer never slept: the doorbell was not tried"
    assert sorted(free) == list(range(SLOTS)), "a slot was lost or came back twice"


def test_no_wake_up_is_lost_when_both_ends_sleep_after_each_entry() -> None:
    """One entry at a time, answered by one entry: a single lost wake-up stops both ends for good."""
    with consumer_process("echo", ROUND_TRIPS) as (pool, doorbell, answer_bell, process):
        ring, free_ring = pool.ring(0), pool.free_ring(0)
        for n in range(ROUND_TRIPS):
            assert ring.push(n, n % SLOTS)
            if ring.must_wake():
                os.eventfd_write(doorbell, 1)
            item, _ = pull_or_sleep(free_ring, answer_bell)
            assert item[1:] == (n, n % SLOTS)
            free_ring.release()
        report, _ = process.communicate(timeout=CONSUMER_TIMEOUT)
        ring.close()
        free_ring.close()
    assert int(report) > 0, "the consumer never slept: the doorbell was not tried"


def pull_or_sleep(ring: Ring, doorbell: int) -> tuple[tuple[int, int, int], int]:
    """Return the next entry, and how often this process slept on the eventfd until it came."""
    sleeps = 0
    while (item := ring.pull()) is None:
        if ring.try_sleep():
            os.eventfd_read(doorbell)
            sleeps += 1
    return item, sleeps


def consume_stream(pool: Pool, doorbell: int, _: int, count: int) -> int:
    """Verify `count` entries and give their slots back; returns how often it slept."""
    ring, free_ring = pool.ring(0), pool.free_ring(0)
    sleeps = 0
    for n in range(count):
        (index, length, slot), slept = pull_or_sleep(ring, doorbell)
        sleeps += slept
        packet = ring.inline[index][:length] if slot < 0 else pool.slots[slot][:length]
        assert (slot < 0) == travels_inline(n), f"entry {n} came by the wrong way"
        assert packet == payload_of(n), f"entry {n} is damaged"
        if slot >= 0:
            assert free_ring.push(0, slot)
        if n % 7 == 0 or slept:
            ring.release()
    ring.release()
    return sleeps


def consume_echo(pool: Pool, doorbell: int, answer_bell: int, count: int) -> int:
    """Answer each of `count` entries over the free ring; returns how often it slept."""
    ring, free_ring = pool.ring(0), pool.free_ring(0)
    sleeps = 0
    for _ in range(count):
        (_, length, slot), slept = pull_or_sleep(ring, doorbell)
        sleeps += slept
        ring.release()
        assert free_ring.push(length, slot)
        if free_ring.must_wake():
            os.eventfd_write(answer_bell, 1)
    return sleeps


def main(pool_fd: int, doorbell: int, answer_bell: int, count: int, mode: str) -> None:
    pool = Pool.attach(pool_fd, PoolLayout(1, SLOTS, 256))
    consume = {"stream": consume_stream, "echo": consume_echo}[mode]
    print(consume(pool, doorbell, answer_bell, count))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), mode=sys.argv[5])
