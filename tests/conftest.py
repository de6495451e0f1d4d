"""Fixtures for all tests. Those marked `e2e` get network namespaces of their own, and must leave nothing behind."""

import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.netns import Topology, leaving_nothing, topology

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=False, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def _why_not_e2e() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    if shutil.which("ip") is None:
        return "needs the command ip (package iproute2)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    reason = _why_not_e2e()
    if reason is None:
        return
    for item in items:
        if "e2e" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an e2e test that leaves a namespace, a process, a packet pool, shared memory or a routing rule behind."""
    if request.node.get_closest_marker("e2e") is None:
        yield
        return
    with leaving_nothing():
        yield


@pytest.fixture
def net() -> Iterator[Topology]:
    """The namespaces `client` and `internet`; see tests/support/netns.py."""
    with topology() as made:
        yield made
