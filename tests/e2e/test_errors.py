"""What goes wrong reaches the application as the error that it would get without the engine."""

import errno
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.engine import running_engine
from tests.support.netns import PROXY_V4, TARGET_V4, TARGET_V6, Topology, wait_until
from tests.support.sockets import connect, flow, listening, udp_socket
from tests.support.upstreams import PASSWORD, USER, dante, embedded

pytestmark = pytest.mark.e2e

UNREACHABLE_V4, UNREACHABLE_V6 = "203.0.113.66", "2001:db8::66"
SILENT = "203.0.113.77"


def connect_error(net: Topology, host: str, port: int = 9) -> int | None:
    """Return the errno of a connect that must fail."""
    with pytest.raises(OSError) as caught:
        connect(net.client, (host, port)).close()
    assert not isinstance(caught.value, TimeoutError) or caught.value.errno, "the application waited in vain"
    return caught.value.errno


@pytest.mark.parametrize("proxy", ["embedded", "dante"])
def test_refused_and_unreachable(net: Topology, run_dir: Path, tmp_path: Path, proxy: str) -> None:
    for family, unreachable in ("-4", UNREACHABLE_V4), ("-6", UNREACHABLE_V6):
        net.internet.run("ip", family, "route", "add", "unreachable", unreachable)
    upstream = embedded(net.internet) if proxy == "embedded" else dante(net.internet, tmp_path)
    with upstream as url, running_engine(net.client, run_dir, proxy=url):
        for host in TARGET_V4, TARGET_V6:
            assert connect_error(net, host) == errno.ECONNREFUSED
        for host in UNREACHABLE_V4, UNREACHABLE_V6:
            assert connect_error(net, host) == errno.EHOSTUNREACH


def test_destination_that_never_answers(net: Topology, run_dir: Path) -> None:
    net.internet.run("ip", "addr", "add", SILENT, "dev", "lo")
    net.internet.run("nft", "-f", "-", input=_SWALLOW)
    with embedded(net.internet) as url, running_engine(net.client, run_dir, proxy=url):
        assert connect_error(net, SILENT) == errno.EHOSTUNREACH


_SWALLOW = f"""
table inet silent {{
    chain input {{ type filter hook input priority filter; ip daddr {SILENT} drop; }}
}}
"""


def test_proxy_that_dies_and_comes_back(net: Topology, run_dir: Path) -> None:
    with ExitStack() as proxy, listening(net, TARGET_V4) as server:
        url = proxy.enter_context(embedded(net.internet))
        with running_engine(net.client, run_dir, proxy=url) as engine, udp_socket(net.client, "0.0.0.0") as datagrams:
            datagrams.connect((TARGET_V4, 9))
            datagrams.send(b"make an association")
            app, peer = flow(net, server)
            proxy.close()
            with app, peer, pytest.raises(ConnectionResetError):
                app.recv(1)
            assert connect_error(net, TARGET_V4) == errno.ENETUNREACH
            with pytest.raises(ConnectionRefusedError):
                datagrams.send(b"is anybody there")
                datagrams.recv(1)
            assert [worker.restarts for worker in engine.status().workers] == [0, 0]
            with embedded(net.internet):
                app, peer = flow(net, server)
                with app, peer:
                    app.sendall(b"back again")
                    assert peer.recv(100) == b"back again"


def test_wrong_password_is_one_clear_line_without_it(net: Topology, run_dir: Path) -> None:
    wrong = "wr0ng-s3cret"
    with (
        embedded(net.internet, password=PASSWORD),
        running_engine(
            net.client, run_dir, "--log-level", "debug", proxy=f"socks5://{USER}:{wrong}@{PROXY_V4}:1080", workers=1
        ) as engine,
    ):
        for _ in range(5):
            assert connect_error(net, TARGET_V4) == errno.ENETUNREACH
        lines = [line for line in engine.log.splitlines() if "WARNING" in line or "ERROR" in line]
        of_password, *others = lines
        assert "TUNLOOM_PROXY" in of_password, lines
        assert len(others) == 1 and "does not serve us" in others[0] and PROXY_V4 in others[0], lines
        secrets = [engine.log, *map(command_line_and_environment, engine.processes())]
        assert not any(wrong in text for text in secrets)


def command_line_and_environment(pid: int) -> str:
    """Return what other users can see of a process, and what its children inherit."""
    return "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ"))


def test_proxy_that_hangs(net: Topology, run_dir: Path) -> None:
    """It accepts connections and says nothing: stopped by SIGSTOP. When it goes on, so do the flows."""
    with (
        embedded(net.internet) as url,
        running_engine(net.client, run_dir, proxy=url),
        listening(net, TARGET_V4) as server,
    ):
        app, peer = flow(net, server)
        with app, peer:
            (pid,) = listeners(net, 1080)
            os.kill(pid, signal.SIGSTOP)
            try:
                assert connect_error(net, TARGET_V4) is not None
                app.sendall(b"patience")
            finally:
                os.kill(pid, signal.SIGCONT)
            assert peer.recv(100) == b"patience"
            wait_until(lambda: reaches(net, server), what="a working proxy")


def listeners(net: Topology, port: int) -> list[int]:
    """Return the ids of the processes that listen on a TCP port of the internet."""
    line = net.internet.run("ss", "-Hltnp", f"sport = :{port}")
    return [int(part.split(",")[0]) for part in line.split("pid=")[1:]]


def reaches(net: Topology, server: object) -> bool:
    """Whether a new flow gets through."""
    try:
        app, peer = flow(net, server)  # type: ignore[arg-type]
    except OSError:
        return False
    app.close()
    peer.close()
    return True
