"""The leak check finds what it is there to find."""

import os
import subprocess
import sys
from contextlib import closing

import pytest

from shared.pool import Pool, PoolLayout
from tests.support.netns import TAG_VARIABLE, LeakCheck, namespace, wait_until

pytestmark = pytest.mark.e2e


def test_leaks_of_every_kind_are_found() -> None:
    # A tag of its own: the fixture that watches this test must find nothing.
    check = LeakCheck("leaky")
    assert check.leaks() == []
    with namespace("left") as left:
        assert check.leaks() == [f"namespace {left.name}"]
    with closing(Pool.create(PoolLayout(places=1, slots=2, ring_entries=2))) as pool:
        assert f"packet pool of the test itself: fd {pool.fd}" in check.leaks()
    arguments = [sys.executable, "-c", "input()"]
    tagged = os.environ | {TAG_VARIABLE: check.tag}
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, env=tagged) as process:
        wait_until(lambda: check.leaks() != [], what="the process")
        (line,) = check.leaks()
        assert line.startswith(f"process {process.pid}: ")
        check.kill()
        process.wait()
    assert check.leaks() == []
