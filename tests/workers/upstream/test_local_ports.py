"""workers/upstream/local_ports.py: in a namespace with few local ports."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.config import DialConfig
from shared.metrics import CELLS, Cell
from tests.support.loop import on_loop
from tests.support.netns import ip, namespace
from tests.support.sockets import reset
from workers.upstream.local_ports import NoLocalPort
from workers.upstream.sockets import Sockets

pytestmark = pytest.mark.e2e

PORTS = 8


def set_ports(count: int) -> None:
    """Let the namespace of this thread have so many local ports."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"40000 {40000 + count - 1}")


@pytest.fixture(autouse=True)
def few_ports() -> Iterator[None]:
    """The test's thread stands in a namespace with PORTS local ports, and an address that is not loopback."""
    with namespace("ports") as made, made.entered():
        set_ports(PORTS)
        ip("addr", "add", "192.0.2.1/32", "dev", "lo")
        yield


async def connect_all(sockets: Sockets, server: socket.socket, kept: ExitStack) -> int:
    """Open connections until no port is left; return how many there were."""
    host, port = server.getsockname()
    count = 0
    while True:
        try:
            kept.enter_context(await sockets.connect(host, port, timeout=20))
        except NoLocalPort as error:
            assert str(error).endswith(
                f"no local port is left for one more connection to {host} port {port}: "
                "widen net.ipv4.ip_local_port_range, or give the proxy more addresses"
            )
            return count
        count += 1


@pytest.mark.parametrize("host", ["192.0.2.1", "127.0.0.1"])
@on_loop
async def test_it_is_said_and_counted_that_ports_have_run_out(caplog: pytest.LogCaptureFixture, host: str) -> None:
    counters = [0] * CELLS
    sockets = Sockets(asyncio.get_running_loop(), DialConfig(), counters, mark=None)
    with socket.create_server((host, 1080), backlog=1024) as server, ExitStack() as kept:
        assert await connect_all(sockets, server, kept) == PORTS
        assert await connect_all(sockets, server, kept) == 0
    assert counters[Cell.NO_LOCAL_PORT] == 2
    assert len(caplog.records) == 1, "it is told once a minute"


@on_loop
async def test_a_port_that_comes_free_is_found() -> None:
    sockets = Sockets(asyncio.get_running_loop(), DialConfig(), [0] * CELLS, mark=None)
    with socket.create_server(("192.0.2.1", 1080), backlog=1024), ExitStack() as kept:
        made = [kept.enter_context(await sockets.connect("192.0.2.1", 1080, timeout=20)) for _ in range(PORTS)]
        with pytest.raises(NoLocalPort):
            await sockets.connect("192.0.2.1", 1080, timeout=20)
        reset(made[0])  # leaves no TIME-WAIT
        while True:
            try:
                kept.enter_context(await sockets.connect("192.0.2.1", 1080, timeout=20))
                break
            except NoLocalPort:
                await asyncio.sleep(0)


@on_loop
async def test_an_address_that_no_source_reaches_is_another_matter() -> None:
    counters = [0] * CELLS
    sockets = Sockets(asyncio.get_running_loop(), DialConfig(), counters, mark=None)
    # Of IPv6 there is ::1 alone, which is no source for others: connect(2) says EADDRNOTAVAIL.
    ip("-6", "route", "add", "2001:db8::/32", "dev", "lo")
    with pytest.raises(OSError) as caught:
        await sockets.connect("2001:db8::1", 1080, timeout=20)
    assert not isinstance(caught.value, NoLocalPort)
    assert counters[Cell.NO_LOCAL_PORT] == 0


@on_loop
async def test_ports_of_either_parity_are_taken_from_the_beginning() -> None:
    """As the kernel would choose them by itself, half of them go first; then those are searched in vain for each connection."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, 51, 0)  # IP_LOCAL_PORT_RANGE
        except OSError:
            pytest.skip("needs Linux 6.3")
    set_ports(64)
    sockets = Sockets(asyncio.get_running_loop(), DialConfig(), [0] * CELLS, mark=None)
    with socket.create_server(("192.0.2.1", 1080), backlog=1024), ExitStack() as kept:
        made = [kept.enter_context(await sockets.connect("192.0.2.1", 1080, timeout=20)) for _ in range(24)]
        assert {sock.getsockname()[1] % 2 for sock in made} == {0, 1}
