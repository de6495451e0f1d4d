"""engine/processes in namespaces: whose sockets a table shows, and who holds those of another user."""

import socket
import sys
from collections.abc import Iterator

import pytest

from engine.processes import ProcessTable, open_process_table
from shared.rules.flow import Ends
from tests.support.netns import CLIENT_V4, PROXY_V4, TARGET_V4, Topology
from tests.support.sockets import connect, listening, udp_socket
from tests.support.upstreams import needs

pytestmark = pytest.mark.e2e

OTHER_USER = 4321

CONNECT = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def table(net: Topology) -> Iterator[ProcessTable]:
    with net.client.entered():
        made = open_process_table()
    yield made
    made.close()


def flow(sock: socket.socket, destination: tuple[str, int]) -> Ends:
    network = "tcp" if sock.type is socket.SOCK_STREAM else "udp"
    ends = (CLIENT_V4, sock.getsockname()[1]), destination
    (source, source_port), (target, target_port) = ends
    return Ends(network, socket.inet_aton(source), source_port, socket.inet_aton(target), target_port)


def test_table_shows_the_namespace_that_it_was_opened_in(net: Topology, table: ProcessTable) -> None:
    outside = open_process_table()
    with (
        listening(net, PROXY_V4) as server,
        connect(net.client, server.getsockname()) as tcp,
        udp_socket(net.client, "0.0.0.0") as udp,
    ):
        for one in flow(tcp, server.getsockname()), flow(udp, (TARGET_V4, 53)):
            assert table.find(one) is not None
            assert outside.find(one) is None
            assert outside.search(one) is None
    outside.close()


def test_socket_of_another_user_is_found_with_its_process(net: Topology, table: ProcessTable) -> None:
    setpriv = needs("setpriv", "util-linux")
    user = [setpriv, "--reuid", str(OTHER_USER), "--clear-groups", sys.executable, "-P", "-c", CONNECT]
    with listening(net, PROXY_V4) as server:
        host, port = server.getsockname()
        with net.client.process(*user, host, str(port), stdin=-1, stdout=-1) as app:
            assert app.stdout is not None
            source_port = int(app.stdout.readline())
            source, destination = socket.inet_aton(CLIENT_V4), socket.inet_aton(host)
            found = table.find(Ends("tcp", source, source_port, destination, port))
            assert found is not None and found.uid == OTHER_USER
            assert table.holders([found.inode], uids=[found.uid])[found.inode].pid == app.pid
            assert table.describe(app.pid, found.uid).name.startswith("python")
