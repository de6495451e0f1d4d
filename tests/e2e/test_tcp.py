"""TCP semantics through the engine: each test holds both ends of a flow."""

import socket
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest

from tests.support.engine import Bed
from tests.support.netns import TARGET_V4, TARGET_V6, wait_until
from tests.support.sockets import flow, listening, pseudo_random, receive, receive_until_eof, reset

pytestmark = [pytest.mark.e2e, pytest.mark.parametrize("host", [TARGET_V4, TARGET_V6], ids=["ipv4", "ipv6"])]

MIB = 1024 * 1024


def test_server_speaks_first(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app, peer:
            peer.sendall(b"220 ready")
            assert receive(app, 9) == b"220 ready"


def test_fin_of_the_application_leaves_the_other_direction_open(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app, peer:
            app.sendall(b"request")
            app.shutdown(socket.SHUT_WR)
            assert receive_until_eof(peer) == b"request"
            answer = pseudo_random(3 * MIB)
            with ThreadPoolExecutor() as pool:
                received = pool.submit(receive_until_eof, app)
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                assert received.result() == answer


def test_fin_of_the_peer_leaves_the_other_direction_open(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app, peer:
            peer.sendall(b"bye")
            peer.shutdown(socket.SHUT_WR)
            assert receive_until_eof(app) == b"bye"
            request = pseudo_random(3 * MIB)
            with ThreadPoolExecutor() as pool:
                received = pool.submit(receive_until_eof, peer)
                app.sendall(request)
                app.shutdown(socket.SHUT_WR)
                assert received.result() == request


def test_reset_of_the_application_stays_a_reset(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with peer:
            reset(app)
            with pytest.raises(ConnectionResetError):
                peer.recv(1)


def test_reset_of_the_peer_stays_a_reset(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app:
            reset(peer)
            with pytest.raises(ConnectionResetError):
                app.recv(1)


def test_connection_without_a_byte(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        for first, second in (0, 1), (1, 0):
            ends = flow(bed.net, server)
            ends[first].close()
            assert ends[second].recv(1) == b""
            ends[second].close()
        wait_until(lambda: sum(w.tcp_active for w in bed.engine.status().workers) == 0, what="the end of the flows")


def test_many_small_writes(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app, peer:
            data = pseudo_random(20_000)
            for sender, receiver in (app, peer), (peer, app):
                with ThreadPoolExecutor() as pool:
                    received = pool.submit(receive, receiver, len(data))
                    for i in range(0, len(data), 7):
                        sender.sendall(data[i : i + 7])
                    assert received.result() == data


def test_ping_pong(bed: Bed, host: str) -> None:
    with listening(bed.net, host) as server:
        app, peer = flow(bed.net, server)
        with app, peer:
            for i in range(500):
                app.sendall(b"%d" % i)
                assert peer.recv(100) == b"%d" % i
                peer.sendall(b"%d" % -i)
                assert app.recv(100) == b"%d" % -i


FLOWS = 4
OFFERED = 48 * MIB  # more than all buffers between the two ends of a flow hold


@pytest.mark.parametrize("direction", ["down", "up"])
def test_reader_that_sleeps_stops_the_sender_and_costs_bounded_memory(bed: Bed, host: str, direction: str) -> None:
    data = pseudo_random(OFFERED)
    before = worker_memory(bed)
    with listening(bed.net, host) as server, ThreadPoolExecutor(2 * FLOWS) as pool:
        flows = [flow(bed.net, server) for _ in range(FLOWS)]
        senders, readers = zip(*(ends if direction == "up" else ends[::-1] for ends in flows), strict=True)
        taken = list(pool.map(send_until_stalled, senders, repeat(data)))
        assert max(taken) < OFFERED, "nothing held the sender back"
        # Per flow one receive and one send buffer (shared/config.py, StackConfig), and what the allocator keeps.
        assert worker_memory(bed) - before < FLOWS * 2 * MIB + 16 * MIB
        received = [pool.submit(receive_until_eof, reader) for reader in readers]
        for sender, size in zip(senders, taken, strict=True):
            sender.settimeout(20)
            sender.sendall(memoryview(data)[size:])
            sender.shutdown(socket.SHUT_WR)
        assert [future.result() == data for future in received] == [True] * FLOWS
        for sock in (*senders, *readers):
            sock.close()


def worker_memory(bed: Bed) -> int:
    """Private bytes of all workers (the shared pool does not count)."""
    total = 0
    for worker in bed.engine.status().workers:
        for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def send_until_stalled(sock: socket.socket, data: bytes) -> int:
    """Send until nothing has been taken for a second; return how many bytes were."""
    sock.settimeout(1)
    view, sent = memoryview(data), 0
    try:
        while sent < len(data):
            sent += sock.send(view[sent : sent + MIB])
    except TimeoutError:
        pass
    return sent
