"""Names of answered addresses: written by one worker, read by all."""

import pytest

from shared import answered
from shared.answered import PART_SIZE, AnsweredNames

V4, V6 = bytes((192, 0, 2, 1)), bytes(15) + b"\1"


def workers(count: int = 2) -> list[AnsweredNames]:
    memory = bytearray(count * PART_SIZE)
    parts = [memoryview(memory)[i * PART_SIZE : (i + 1) * PART_SIZE] for i in range(count)]
    return [AnsweredNames(parts, own) for own in range(count)]


def test_what_one_has_answered_all_know() -> None:
    one, other = workers()
    one.put(V4, "a.example", 1.0)
    one.put(V6, "b.example", 1.0)
    assert (other.find(V4), other.find(V6), one.find(V4)) == ("a.example", "b.example", "a.example")
    assert other.find(bytes((192, 0, 2, 2))) is None


@pytest.mark.parametrize("first", [0, 1])
def test_the_latest_answer_counts_whoever_gave_it(first: int) -> None:
    both = workers()
    both[first].put(V4, "old.example", 1.0)
    both[1 - first].put(V4, "new.example", 2.0)
    assert [each.find(V4) for each in both] == ["new.example"] * 2


def test_addresses_of_both_families_with_the_same_bytes_are_told_apart() -> None:
    one, other = workers()
    one.put(V4, "four.example", 1.0)
    assert other.find(V4 + bytes(12)) is None


def test_half_written_place_is_empty() -> None:
    memory = bytearray(PART_SIZE)
    names = AnsweredNames([memoryview(memory)], 0)
    names.put(V4, "some.example", 1.0)
    at = memory.index(b"some.example")
    memory[at] ^= 1
    assert names.find(V4) is None


def test_places_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "NAMES", 1)
    one, other = workers()
    one.put(V4, "a.example", 1.0)
    one.put(V6, "b", 2.0)
    assert (other.find(V4), other.find(V6)) == (None, "b")
