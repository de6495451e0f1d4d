"""Whoever is killed at whatever step: the network is as it was before. `make crash` plays every step, this only some."""

from collections.abc import Iterator

import pytest

from tests.support.fault_injection import SCENARIOS, FaultBed, Scenario, fault_bed
from tests.support.netns import leaving_nothing

pytestmark = pytest.mark.e2e

STRIDE = 43
"""Of the steps, of which there are about 100: no divisor of what repeats in them."""


@pytest.fixture(scope="module")
def bed() -> Iterator[FaultBed]:
    with leaving_nothing(), fault_bed() as made:
        yield made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.title)
def test_network_is_as_before(bed: FaultBed, scenario: Scenario) -> None:
    played = 0
    while (outcome := bed.inject(scenario, 3 + STRIDE * played)) is not None:
        assert outcome.differences == []
        played += 1
    assert played > 0
