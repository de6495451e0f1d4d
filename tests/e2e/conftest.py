"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Bed
from tests.support.engine import bed as make_bed
from tests.support.netns import leaving_nothing
from tests.support.sockets import close_sockets


@pytest.fixture(autouse=True, scope="session")
def no_proxy_settings() -> Iterator[None]:
    """The programs know of no proxy, whatever the environment of the tests says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Namespaces, the embedded proxy and a running engine, for all tests of a module."""
    with leaving_nothing(), make_bed(tmp_path_factory.mktemp("bed") / "run") as made:
        yield made


@pytest.fixture(autouse=True)
def no_open_sockets() -> Iterator[None]:
    """Close what a failed test has left open."""
    yield
    close_sockets()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory for an engine of the test's own."""
    return tmp_path / "run"
