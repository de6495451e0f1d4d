"""Which SYNs get a connection in a flood."""

from workers.stack.tcp.admission import Admission


def key(number: int) -> bytes:
    return number.to_bytes(12, "big")


def test_every_syn_is_admitted_while_few_are_half_open() -> None:
    gate = Admission(100)
    assert all(gate.admits(key(number), half_open=99, now=1.0) for number in range(10_000))


def test_syn_that_comes_again_after_a_second_is_admitted() -> None:
    gate = Admission(100)
    assert not gate.admits(key(1), half_open=100, now=1.0)
    assert gate.admits(key(1), half_open=100, now=2.0)


def test_syn_that_comes_again_at_once_is_not() -> None:
    gate = Admission(100)
    assert not any(gate.admits(key(1), half_open=100, now=1.0 + number / 1000) for number in range(100))


def test_syn_is_remembered_through_a_flood_of_others() -> None:
    gate = Admission(100)
    assert not gate.admits(key(0), half_open=100, now=1.0)
    for number in range(1, 30_000):
        assert not gate.admits(key(number), half_open=100, now=1.0 + number / 30_000)
    assert gate.admits(key(0), half_open=100, now=2.0)


def test_what_is_remembered_is_bounded() -> None:
    gate = Admission(100)
    for number in range(200_000):
        gate.admits(key(number), half_open=100, now=1.0)
    assert len(gate._younger) + len(gate._older) <= 2 * 32768


def test_syn_is_forgotten_in_time() -> None:
    gate = Admission(100)
    gate.admits(key(1), half_open=100, now=1.0)
    gate.admits(key(2), half_open=100, now=10.0)
    gate.admits(key(3), half_open=100, now=20.0)
    assert not gate.admits(key(1), half_open=100, now=20.5)


def test_many_failures_within_a_second_are_a_flood_and_the_next_second_still() -> None:
    gate = Admission(100)
    for _ in range(250):
        gate.failed(5.1)
    assert not gate.admits(key(1), half_open=0, now=5.2)
    assert not gate.admits(key(2), half_open=0, now=6.9)
    assert gate.admits(key(3), half_open=0, now=7.1)


def test_few_failures_are_no_flood() -> None:
    gate = Admission(100)
    for second in range(10):
        for _ in range(249):
            gate.failed(second + 0.5)
        assert gate.admits(key(second), half_open=0, now=second + 0.6)
