"""engine/loop_guard/proxies.py on real processes: servers on loopback that open connections when told to."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engine.loop_guard.proxies import Endpoint, LocalProxies, dynamic_forwards
from engine.processes import Socket, open_process_table
from engine.processes.finder import ProcessFinder
from shared.metrics import CELLS
from shared.rules.flow import Ends

LOOPBACK = socket.inet_aton("127.0.0.1")

CHILD = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""

PROXY = f"""
import os, socket, subprocess, sys
CHILD = {CHILD!r}
host, port, target, *options = sys.argv[1:]
def dial():
    sock = socket.create_connection(("127.0.0.1", int(target)))
    print(sock.getsockname()[1], flush=True)
    return sock
if "dial-first" in options:
    early = dial()
    sys.stdin.readline()
family = socket.AF_INET6 if ":" in host else socket.AF_INET
server = socket.create_server((host, int(port)), family=family, dualstack_ipv6=host == "::", reuse_port="share" in options)
if "daemon" in options and os.fork():
    os._exit(0)
print(server.getsockname()[1], flush=True)
kept = []
for command in sys.stdin:
    if command == "dial\\n":
        kept.append(dial())
    elif command == "child\\n":
        child = subprocess.Popen([sys.executable, "-c", CHILD, target])
        kept.append(child)
        break
if kept and "child" in options:
    kept[-1].wait()
"""


class Proxy:
    """A running PROXY, told what to do over its standard input."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def number(self) -> int:
        """The port that it prints next."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def ask(self, command: str) -> int:
        """Tell it to open a connection, itself or by a child; return the connection's own port."""
        self.tell(command)
        return self.number()


@contextmanager
def proxy(target: int, *options: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[Proxy]:
    command = [sys.executable, "-c", PROXY, host, str(port), str(target), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Proxy(process)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=32) as made:
        yield made


class Bed:
    """LocalProxies on the real table."""

    def __init__(self, finder: ProcessFinder, target: int, endpoint: Endpoint) -> None:
        self.finder = finder
        self.target = target
        self.proxies = LocalProxies(finder, [endpoint])

    def socket(self, port: int) -> Socket:
        """The socket that has opened a connection from `port` to the target."""
        found = self.finder.table.find(Ends("tcp", LOOPBACK, port, LOOPBACK, self.target))
        assert found is not None
        return found

    async def owns(self, port: int) -> bool:
        return await self.proxies.owner(self.socket(port)) is not None


def run(target: socket.socket, port: int, body: Callable[[Bed], Coroutine[Any, Any, None]]) -> None:
    """Run `body` with LocalProxies for 127.0.0.1:`port`."""

    async def session() -> None:
        finder = ProcessFinder(open_process_table(), [0] * CELLS)
        bed = Bed(finder, target.getsockname()[1], (LOOPBACK, port))
        try:
            await body(bed)
        finally:
            bed.proxies.close()
            finder.close()

    asyncio.run(session())


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_connections_of_the_listening_process_are_its_own_and_others_of_the_same_user_are_not(
    server: socket.socket, host: str
) -> None:
    with proxy(port_of(server), host=host) as one:

        async def body(bed: Bed) -> None:
            with socket.create_connection(server.getsockname()) as other:
                assert await bed.owns(one.ask("dial"))
                assert not await bed.owns(port_of(other))
                assert await bed.owns(one.ask("dial")), "a connection that is younger than the last look"

        run(server, one.number(), body)
        one.process.terminate()


def test_connections_of_a_child_are_the_proxys_own(server: socket.socket) -> None:
    with proxy(port_of(server), "child") as one:

        async def body(bed: Bed) -> None:
            assert not await bed.owns(port_of(app))
            assert await bed.owns(one.ask("child"))

        with socket.create_connection(server.getsockname()) as app:
            run(server, one.number(), body)
        assert one.process.stdin is not None
        one.process.stdin.close()
        one.process.wait()


def test_daemon_whose_first_process_is_gone_is_followed(server: socket.socket) -> None:
    with proxy(port_of(server), "daemon") as one:

        async def body(bed: Bed) -> None:
            await bed.proxies.look()
            one.process.wait()
            assert await bed.owns(one.ask("dial"))

        run(server, one.number(), body)


def test_proxy_that_restarts_is_found_again_and_one_that_is_gone_owns_nothing(server: socket.socket) -> None:
    with proxy(port_of(server)) as first:
        port = first.number()

        async def body(bed: Bed) -> None:
            assert await bed.owns(first.ask("dial"))
            first.process.terminate()
            first.process.wait()
            with socket.create_connection(server.getsockname()) as other:
                assert not await bed.owns(port_of(other))
                with proxy(port_of(server), port=port) as second:
                    second.number()
                    assert await bed.owns(second.ask("dial"))
                    assert not await bed.owns(port_of(other))
                    second.process.terminate()

        run(server, port, body)


def test_proxy_that_dials_before_it_listens_again_is_known_by_its_command_line(server: socket.socket) -> None:
    with proxy(port_of(server), "dial-first", port=free_port()) as first:
        first.number()
        first.tell("")
        port = first.number()

        async def body(bed: Bed) -> None:
            await bed.proxies.look()
            first.process.terminate()
            first.process.wait()
            await bed.proxies.look()
            with proxy(port_of(server), "dial-first", port=port) as second:
                assert await bed.owns(second.number())
                second.process.terminate()
            with proxy(port_of(server), "dial-first", port=port + 1) as stranger:
                assert not await bed.owns(stranger.number())
                stranger.process.terminate()

        run(server, port, body)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return port_of(sock)


def test_all_processes_that_share_a_port_are_the_proxy(server: socket.socket) -> None:
    with proxy(port_of(server), "share") as first:
        port = first.number()
        with proxy(port_of(server), "share", port=port) as second:
            second.number()

            async def body(bed: Bed) -> None:
                assert await bed.owns(first.ask("dial"))
                assert await bed.owns(second.ask("dial"))

            run(server, port, body)
            second.process.terminate()
        first.process.terminate()


def test_nobody_listens_and_nobody_owns(server: socket.socket) -> None:
    async def body(bed: Bed) -> None:
        with socket.create_connection(server.getsockname()) as app:
            assert not await bed.owns(port_of(app))

    run(server, free_port(), body)


@pytest.mark.parametrize(
    ("command", "ports"),
    [
        ("ssh -D 1080 host", {1080}),
        ("ssh -D1080 host", {1080}),
        ("ssh -fND 127.0.0.1:1080 host", {1080}),
        ("ssh -N -D [::1]:1081 -D 1082 -p 2222 user@host", {1081, 1082}),
        ("ssh -o DynamicForward=1080 host", {1080}),
        ("ssh -oDynamicForward=127.0.0.1:1080 host", {1080}),
        ("ssh -L 1080:localhost:80 host", set()),
        ("ssh -p 1080 host", set()),
        ("ssh host -c D 1080", set()),
        ("ssh -D", set()),
        ("", set()),
    ],
)
def test_dynamic_forwards_of_ssh(command: str, ports: set[int]) -> None:
    assert dynamic_forwards(command.split()) == ports
