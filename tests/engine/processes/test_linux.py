"""engine/processes/linux.py, sockets.py and proc.py on real sockets of this very process, on loopback."""

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.processes import Network, ProcessTable, open_process_table, proc
from shared.rules.flow import Ends
from tests.support.netns import wait_until

LOOPBACK = {4: socket.inet_aton("127.0.0.1"), 6: socket.inet_pton(socket.AF_INET6, "::1")}
ELSEWHERE = socket.inet_aton("127.9.9.9")


@pytest.fixture
def table() -> Iterator[ProcessTable]:
    made = open_process_table()
    yield made
    made.close()


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def packed(sock: socket.socket, end: tuple[str, int]) -> tuple[bytes, int]:
    """Address and port as they stand in a packet."""
    address = socket.inet_pton(sock.family, end[0])
    return (address[12:] if address.startswith(bytes(10) + b"\xff\xff") else address), end[1]


def flow_of(sock: socket.socket, network: Network) -> Ends:
    """The flow of a connected socket."""
    return Ends(network, *packed(sock, sock.getsockname()[:2]), *packed(sock, sock.getpeername()[:2]))


@pytest.mark.parametrize(
    ("family", "host", "address"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "::1"),
     (socket.AF_INET6, "127.0.0.1", "::ffff:127.0.0.1")],
    ids=["v4", "v6", "dual-stack"],
)  # fmt: skip
def test_tcp_flow_has_exactly_its_own_socket(
    table: ProcessTable, family: socket.AddressFamily, host: str, address: str
) -> None:
    server_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=server_family) as server, socket.socket(family) as app:
        app.connect((address, server.getsockname()[1]))
        flow = flow_of(app, "tcp")
        found = table.find(flow)
        assert found is not None
        assert (found.inode, found.uid) == (inode_of(app), os.getuid())
        other = Ends("tcp", flow.source, flow.source_port, ELSEWHERE, flow.destination_port)
        assert table.find(other) is None


def test_listener_of_the_source_port_is_no_owner(table: ProcessTable) -> None:
    """The kernel would answer with it: it is what a packet to that port would reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        flow = Ends("tcp", LOOPBACK[4], server.getsockname()[1], ELSEWHERE, 443)
        assert table.find(flow) is None


def test_closed_tcp_flow_has_no_owner(table: ProcessTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        app = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        flow = flow_of(app, "tcp")
        app.close()
        peer.close()
        assert table.find(flow) is None


@pytest.mark.parametrize(
    ("family", "bind", "version"),
    [
        (socket.AF_INET, "127.0.0.1", 4),
        (socket.AF_INET, "0.0.0.0", 4),
        (socket.AF_INET6, "::", 4),
        (socket.AF_INET6, "::", 6),
        (socket.AF_INET6, "::1", 6),
    ],
)
def test_unconnected_udp_socket_is_found_for_any_destination(
    table: ProcessTable, family: socket.AddressFamily, bind: str, version: int
) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as app:
        app.bind((bind, 0))
        port = app.getsockname()[1]
        destination = ELSEWHERE if version == 4 else socket.inet_pton(socket.AF_INET6, "2001:db8::10")
        flow = Ends("udp", LOOPBACK[version], port, destination, 53)
        found = table.find(flow)
        assert found is not None and found.inode == inode_of(app)
        assert table.search(flow) == found


def test_udp_socket_connected_elsewhere_is_no_owner(table: ProcessTable) -> None:
    """A dump filters by the port alone: the answer must be compared (sing-box#4501)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.connect(("127.0.0.1", 9))
        flow = Ends("udp", LOOPBACK[4], app.getsockname()[1], ELSEWHERE, 53)
        assert table.find(flow) is None
        assert table.search(flow) is None
        own = flow_of(app, "udp")
        assert table.find(own) == table.search(own) is not None


def test_connected_udp_sockets_that_share_a_port_are_told_apart(table: ProcessTable) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
    ):
        for sock in first, second:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        first.connect(("127.0.0.1", 9))
        second.connect(("127.0.0.1", 10))
        for sock in first, second:
            found = table.find(flow_of(sock, "udp"))
            assert found is not None and found.inode == inode_of(sock)


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::"])
def test_listener_is_what_a_connection_would_reach(table: ProcessTable, bind: str) -> None:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.create_server((bind, 0), family=family, dualstack_ipv6=bind == "::") as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            found = table.listener(LOOPBACK[4], port)
            assert found is not None and found.inode == inode_of(server)
    assert table.listener(LOOPBACK[4], port) is None


def test_bound_sockets_are_those_of_the_port(table: ProcessTable) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as v4,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other,
    ):
        v4.bind(("127.0.0.1", 0))
        other.bind(("::1", 0))
        assert [found.inode for found in table.bound(v4.getsockname()[1])] == [inode_of(v4)]
        assert [found.inode for found in table.bound(other.getsockname()[1])] == [inode_of(other)]


def test_connections_hold_both_ends_and_no_listener(table: ProcessTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as app:
        peer, _ = server.accept()
        inodes = {found.inode for found in table.connections("tcp")}
        assert {inode_of(app), inode_of(peer)} <= inodes
        assert inode_of(server) not in inodes
        peer.close()


SLEEPER = """
import sys, socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_holder_is_found_among_all_processes_and_described(table: ProcessTable) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        port = int(child.stdout.readline())
        listener = table.listener(LOOPBACK[4], port)
        assert listener is not None
        holder = table.holders([listener.inode], uids=[listener.uid])[listener.inode]
        assert holder.pid == child.pid
        assert table.all_holders(listener.inode) == [child.pid]
        assert table.holds(holder, listener.inode)
        assert listener.inode in table.sockets_of(child.pid)
        info = table.describe(holder.pid, listener.uid)
        path = os.path.realpath(sys.executable)
        assert (info.pid, info.path, info.name) == (child.pid, path, os.path.basename(path))
        assert (info.uid, info.user) == (os.getuid(), pwd.getpwuid(os.getuid()).pw_name)
        assert table.arguments(child.pid)[1] == "-c"
        child.stdin.close()
        child.wait()
        assert not table.holds(holder, listener.inode)
        assert table.holders([listener.inode]) == {}


def test_socket_shared_by_two_processes_has_two_holders(table: ProcessTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[server.fileno()]) as child:
            assert child.stdin is not None
            wait_until(lambda: len(table.all_holders(inode_of(server))) == 2)
            assert set(table.all_holders(inode_of(server))) == {os.getpid(), child.pid}
            assert child.pid in table.descendants(os.getpid())
            child.stdin.close()


def test_grandchildren_are_descendants(table: ProcessTable) -> None:
    with subprocess.Popen(["sh", "-c", "sh -c 'cat; true'; true"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        wait_until(lambda: len(table.descendants(child.pid)) == 2)
        child.stdin.close()


def test_processes_that_are_gone_are_absent(table: ProcessTable) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert table.sockets_of(child.pid) == set()
    assert table.descendants(child.pid) == []
    assert table.arguments(child.pid) == ()
    assert proc.uid_of(child.pid) is None
    assert table.describe(child.pid, 0).path == ""


def test_user_without_account_has_no_name(table: ProcessTable) -> None:
    assert table.describe(None, 60922).user == ""
