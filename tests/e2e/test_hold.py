"""Ten thousand connections at once."""

import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.engine import Engine, running_engine
from tests.support.netns import TARGET_V4, Topology
from tests.support.sockets import connect, receive
from tests.support.upstreams import embedded, targets

pytestmark = pytest.mark.e2e

FLOWS = 10_000
PROXIES = 3  # each flow takes two descriptors in the proxy
DESCRIPTORS = 12_000  # the test holds one end of all flows, the target the other
AT_ONCE = 32  # connects under way


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the soft limit, which the processes that the test starts inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < DESCRIPTORS:
        pytest.skip(f"needs a hard limit of {DESCRIPTORS} open files (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_10000_connections_are_held_and_all_still_echo(net: Topology, run_dir: Path) -> None:
    with ExitStack() as stack:
        for _ in range(PROXIES):
            url = stack.enter_context(embedded(net.internet, "--reuse-port"))
        stack.enter_context(targets(net.internet))
        engine = stack.enter_context(running_engine(net.client, run_dir, proxy=url))
        empty = memory(engine)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        flows = list(pool.map(lambda _: stack.enter_context(connect(net.client, (TARGET_V4, 7))), range(FLOWS)))
        assert sum(worker.tcp_active for worker in engine.status().workers) == FLOWS
        print(f"{FLOWS} flows: {(memory(engine) - empty) / FLOWS / 1024:.1f} KiB of worker memory each")
        assert all(pool.map(echoes, flows, range(FLOWS)))
        assert all(pool.map(echoes, reversed(flows), range(FLOWS)))
        for worker in engine.status().workers:
            assert worker.restarts == 0 and worker.state == "running"


def echoes(sock: socket.socket, number: int) -> bool:
    """Whether a message comes back."""
    message = b"%08d" % number
    sock.sendall(message)
    return receive(sock, len(message)) == message


def memory(engine: Engine) -> int:
    """Private bytes of all workers."""
    total = 0
    for worker in engine.status().workers:
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total
