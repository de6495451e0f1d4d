"""engine/pins.py: where flows live that the hash does not find."""

from engine.pins import Pins

A, B, C = b"a", b"b", b"c"


def test_flow_is_where_it_was_last_said_to_be() -> None:
    pins = Pins[list[int]]()
    first, second = [1], [2]
    pins.add(first, (A, B))
    pins.add(second, (B,))
    assert (pins.get(A), pins.get(B), pins.get(C)) == (first, second, None)
    pins.remove(first, (A, B, C))
    assert (pins.get(A), pins.get(B)) == (None, second), "it has ended in the first, and lives in the second"


def test_nothing_is_left_of_a_place_that_is_given_up() -> None:
    pins = Pins[list[int]]()
    equal = [], []  # places are told apart by what they are, not by what they are equal to
    pins.add(equal[0], (A, B))
    pins.add(equal[1], (C,))
    pins.drop(equal[0])
    assert len(pins) == 1
    assert pins.get(C) is equal[1]
