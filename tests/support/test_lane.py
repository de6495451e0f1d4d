"""The lane of a bad link does what it says, and the same again from the same seed."""

from tests.support.lane import Impairment, Lane

MIX = Impairment(loss=0.05, duplicate=0.01, flip=0.001, reorder=0.25)


def passed(lane: Lane, packets: list[bytes]) -> list[bytes]:
    """Send packets through a lane, one each millisecond; return what comes out, in order."""
    out: list[bytes] = []
    for number, packet in enumerate(packets):
        lane.put(packet, now=number / 1000)
        out += lane.take(number / 1000)
    return [*out, *lane.take(len(packets) / 1000 + 1.0)]


NUMBERED = [bytes([0x45]) + number.to_bytes(3, "big") for number in range(2000)]


def test_a_wire_without_impairment_delays_only() -> None:
    lane = Lane(Impairment(delay=0.005), seed=0)
    lane.put(NUMBERED[0], now=1.0)
    assert lane.next_at == 1.005
    assert list(lane.take(1.0049)) == []
    assert list(lane.take(1.005)) == NUMBERED[:1]
    assert passed(Lane(Impairment(jitter=0.01), seed=0), NUMBERED) == NUMBERED


def test_same_seed_same_fate() -> None:
    first, second, other = Lane(MIX, seed=1), Lane(MIX, seed=1), Lane(MIX, seed=2)
    assert passed(first, NUMBERED) == passed(second, NUMBERED) != passed(other, NUMBERED)
    assert first.counts == second.counts


def test_what_the_wire_counts_is_what_it_does() -> None:
    lost = Lane(Impairment(loss=0.1), seed=0)
    assert len(passed(lost, NUMBERED)) == lost.counts.arrived - lost.counts.lost < len(NUMBERED)
    doubled = Lane(Impairment(duplicate=0.1), seed=0)
    assert len(passed(doubled, NUMBERED)) == len(NUMBERED) + doubled.counts.duplicated > len(NUMBERED)
    flipped = Lane(Impairment(flip=0.1), seed=0)
    damage = [a for a, b in zip(passed(flipped, NUMBERED), NUMBERED, strict=True) if a != b]
    assert len(damage) == flipped.counts.flipped > 0
    late = Lane(Impairment(reorder=0.1), seed=0)
    out = passed(late, NUMBERED)
    assert sorted(out) == NUMBERED != out and late.counts.reordered > 0
    slow = Lane(Impairment(rate=2000.0), seed=0)  # half of what comes
    assert len(passed(slow, NUMBERED)) == len(NUMBERED) - slow.counts.overflowed < len(NUMBERED)
