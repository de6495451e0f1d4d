"""loadtests/scrape.py: what windows with scrapes and windows without must show."""

import pytest

pytest.importorskip("psutil", reason="needs psutil (pip install '.[load]')")

from loadtests.scrape import Window, judged


def window(*times: float, mbit: float = 1000.0, dropped: int = 0, lost: int = 0) -> Window:
    return Window(times, mbit, {"ring_full": float(dropped)} if dropped else {}, 1000, lost)


def test_quick_scrapes_that_cost_nothing() -> None:
    having = [window(*[0.01] * 50), window(*[0.02] * 50, mbit=990.0)]
    lines, good = judged(having, [window(), window()])
    assert good
    assert lines[-1] == (
        "100 scrapes: half within 20.0 ms, 99 % within 20.0 ms (to be 50 ms), the slowest 20.0 ms; "
        "throughput with them 0.995 of that without"
    )


@pytest.mark.parametrize(("slow", "good"), [(1, True), (3, False)])
def test_one_scrape_of_a_hundred_may_be_slow(slow: int, good: bool) -> None:
    times = [0.01] * (100 - slow) + [0.3] * slow
    assert judged([window(*times)], [window()])[1] is good


def test_what_is_lost_with_scrapes_counts_against_what_is_lost_without() -> None:
    assert not judged([window(0.01, lost=20)], [window(lost=3)])[1]
    lines, good = judged([window(0.01, lost=4, dropped=7)], [window(lost=3)])
    assert good
    assert "| datagrams of the call lost | 4 of 1,000 | 3 of 1,000 |" in lines
    assert "| packets dropped | ring_full 7 | none |" in lines
