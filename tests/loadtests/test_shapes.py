"""loadtests/shapes.py: how many users at which moment."""

import pytest

from loadtests.shapes import SHAPES, SPIKE, chosen


def course(name: str, seconds: int = 100) -> list[float]:
    """Share of the peak, second by second."""
    return [SHAPES[name](now / seconds, now) for now in range(seconds)]


def test_ramp_rises_in_ten_steps_and_stays() -> None:
    shares = course("ramp")
    assert shares == sorted(shares)
    assert sorted(set(shares)) == [pytest.approx(n / 10) for n in range(1, 11)]
    assert shares[73:] == [1.0] * 27


def test_soak_is_flat() -> None:
    assert set(course("soak")) == {1.0}


def test_churn_goes_up_and_down() -> None:
    shares = course("churn", seconds=60)
    assert shares == ([1.0] * 10 + [0.1] * 10) * 3


def test_shape_is_chosen_by_option_or_environment() -> None:
    assert chosen(["-f", "x", "--shape", "ramp", "Http"], {}) is SHAPES["ramp"]
    assert chosen(["--shape=soak"], {"LOCUST_SHAPE": "ramp"}) is SHAPES["soak"]
    assert chosen(["--shape", "spike"], {}) == SPIKE
    assert chosen(["-s", "5"], {}) is None
    assert chosen([], {"LOCUST_SHAPE": "churn"}) is SHAPES["churn"]
