"""Two stacks, a path that hypothesis chooses, and relays that send, take, stop taking, close and reset when hypothesis says.

Whatever the schedule: every byte arrives once and in order, nobody waits for ever, all timers end, all memory is given back.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics import Cell
from tests.netsim.joined import Joined, join
from tests.support.lane import Impairment
from tests.support.stack_bed import Bed, Upstream, pattern
from workers.stack import CloseReason

SIZE_MAX = 300_000
STREAMS = pattern(SIZE_MAX, 1), pattern(SIZE_MAX, 2)
KEEP_ALIVE_IN_VAIN = 7200 + 10 * 75.0
"""Seconds after which a stack whose other end has vanished has given up."""

chance = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3])
paths = st.builds(
    Impairment,
    loss=chance, duplicate=chance, reorder=chance, flip=st.sampled_from([0.0, 0.0, 0.02]),
    delay=st.sampled_from([0.0001, 0.005, 0.1]), reorder_delay=st.sampled_from([0.001, 0.02]),
    jitter=st.sampled_from([0.0, 0.01]), rate=st.sampled_from([None, 100_000.0, 5e6]), queue=st.sampled_from([0.02, 0.5]),
)  # fmt: skip

actions = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 100_000)),
    st.tuples(st.just("take only"), st.integers(0, 5000)),
    st.tuples(st.just("take"), st.integers(1, 200_000)),
    st.tuples(st.just("wait"), st.sampled_from([0.0001, 0.003, 0.05, 0.3, 5.0, 100.0])),
    st.tuples(st.just("shut down"), st.none()),
)
schedules = st.lists(st.tuples(st.sampled_from([0, 1]), actions), max_size=25)


class End:
    """One relay, and what it has sent."""

    def __init__(self, bed: Bed, stream: bytes) -> None:
        self.bed = bed
        self.upstream: Upstream = bed.upstreams[-1]
        self.stream = stream
        self.sent = 0
        self.shut = False

    def act(self, action: str, amount: float | None, now: float) -> None:
        """Do one action of a schedule, unless it is too late for it."""
        upstream = self.upstream
        if upstream.closed is not None:
            return
        if action == "send" and not self.shut:
            size = min(int(amount or 0), SIZE_MAX - self.sent)
            upstream.send(self.stream[self.sent : self.sent + size], now)
            self.sent += size
        elif action == "take only":
            upstream.capacity = int(amount or 0)
        elif action == "take":
            upstream.capacity += int(amount or 0)
            upstream.connection.resume(now)
        elif action == "shut down":
            self.shut = True
            upstream.send(b"", now, shutdown=True)

    def finish(self, now: float) -> None:
        """From now on take all, and send no more."""
        self.act("take", 1 << 60, now)
        self.act("shut down", None, now)


def play(network: Joined, ends: tuple[End, End], schedule: list[tuple[int, tuple[str, float | None]]]) -> None:
    for side, (action, amount) in schedule:
        if action == "wait":
            network.run(amount or 0.0)
        else:
            ends[side].act(action, amount, network.now)
            network.run(0.0)


def assert_at_rest(end: End, now: float) -> None:
    """Let the last timers pass; nothing may be left."""
    end.bed.now = now
    end.bed.advance(KEEP_ALIVE_IN_VAIN)
    assert end.upstream.closed is not None
    assert end.bed.stack.connections == {}
    assert end.bed.stack.next_timeout() is None and len(end.bed.stack.timers) == 0
    assert end.bed.count(Cell.BUFFER_BYTES) == end.bed.count(Cell.TCP_ACTIVE) == end.bed.count(Cell.TCP_HALF_OPEN) == 0
    assert end.bed.count(Cell.TCP_OPENED) == end.bed.count(Cell.TCP_CLOSED)


def ends_of(network: Joined) -> tuple[End, End]:
    near, far = network.near.bed, network.far.bed
    return End(near, STREAMS[0]), End(far, STREAMS[1])


@given(paths, paths, schedules, st.integers(0, 1000), st.booleans(), st.sampled_from([4096, 65536, 4 << 20]))
@settings(max_examples=150)
def test_every_byte_arrives_whatever_the_schedule(
    up: Impairment,
    down: Impairment,
    schedule: list[tuple[int, tuple[str, float | None]]],
    seed: int,
    offload: bool,
    buffer: int,
) -> None:
    network = join(up, down, seed=seed, offload=offload, buffer=buffer)
    ends = ends_of(network)
    play(network, ends, schedule)
    for end in ends:
        end.finish(network.now)
    network.run(3000, lambda: all(end.upstream.closed is not None for end in ends))
    gave_up = [end for end in ends if end.upstream.closed is not CloseReason.FINISHED]
    # A path may be too bad for a connection: two minutes in which nothing came through. All else must end well.
    if not gave_up:
        for sender, receiver in (ends, ends[::-1]):
            assert receiver.upstream.eof
            assert receiver.upstream.received == sender.stream[: sender.sent]
    else:
        assert max(up.loss, down.loss) == 0.3
    for end in ends:
        assert_at_rest(end, network.now)


@given(paths, schedules, schedules, st.integers(0, 1000), st.sampled_from([0, 1]))
@settings(max_examples=100)
def test_reset_at_any_time_leaves_nothing(
    path: Impairment,
    before: list[tuple[int, tuple[str, float | None]]],
    after: list[tuple[int, tuple[str, float | None]]],
    seed: int,
    side: int,
) -> None:
    network = join(path, path, seed=seed)
    ends = ends_of(network)
    play(network, ends, before)
    if ends[side].upstream.closed is None:
        ends[side].upstream.connection.abort(network.now)
        assert ends[side].upstream.closed is CloseReason.ABORTED
    play(network, ends, after)
    network.run(KEEP_ALIVE_IN_VAIN + 1000)
    for sender, receiver in (ends, ends[::-1]):
        assert sender.stream.startswith(bytes(receiver.upstream.received)), (
            "what arrived is what was sent, as far as it goes"
        )
    for end in ends:
        assert_at_rest(end, network.now)
