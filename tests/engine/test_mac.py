"""The whole `engine start` on a Mac's kernel: real processes, rings and sockets; the kernel's calls go to tests/support/darwin.

Everything that macOS has in the place of Linux's is in use: message sockets on a stream, pipes as doorbells, shared memory
objects, the helper and the guardian with their own connections to the kernel. No namespace, no privilege, no tun is needed.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from engine.control import ask
from engine.darwin.interface import SIOCAIFADDR, SIOCAIFADDR_IN6, SIOCSIFMTU, encode_inet6_alias, encode_inet_alias
from engine.darwin.route import RTM_ADD, RTM_DELETE
from engine.demo.service import Service
from engine.requests import Status
from tests.engine.netconf.test_darwin import EIGHT, EIGHT6, FLUSH, routes, sent
from tests.support.darwin.kernel import Kernel
from tests.support.darwin.mac import SITE, serve
from tests.support.darwin.messages import pcb_table, socket_records
from tests.support.netns import wait_until
from tests.support.tcp_peer import TcpPeer

TIMEOUT = 30.0  # seconds
ADDRESSES = ("198.18.0.1/30", "fdfe:dcba:9876::1/126")
REMOTE = "203.0.113.9"
"""The proxy's address in tests that never dial it."""


class Proxy:
    """A SOCKS5 server that is its own target: what is sent to it comes back in upper case."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"socks5://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            self._serve(client)
        except ConnectionError:
            pass  # the engine was killed

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            _, methods = stream.read(2)
            stream.read(methods)
            client.sendall(b"\5\0")
            request = stream.read(10)
            if len(request) < 10 or request[1] != 1:  # the probe for UDP
                client.sendall(b"\5\7\0\1" + bytes(6))
                return
            self.asked.append(request)
            client.sendall(b"\5\0\0\1" + bytes(6))
            while data := client.recv(65536):
                client.sendall(data.upper())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Mac:
    """A kernel, its server, and engines that run on it."""

    def __init__(self, work: Path) -> None:
        self.kernel = Kernel()
        self.before = self.kernel.leftovers()
        self.run_dir = work / "run"
        self.path = work / "kernel"
        self.environment = {**os.environ, "PYTHONPATH": str(SITE), "TUNLOOM_MAC": str(self.path)}

    @contextmanager
    def engine(self, proxy: str | None, *options: str) -> Iterator[Service]:
        """Start an engine with one worker; stop it on the way out unless the test has."""
        named = () if proxy is None else ("--proxy", proxy)
        start = ("start", *named, "--workers", "1", "--run-dir", str(self.run_dir), "--metrics", "off")
        command = [sys.executable, "-P", "-m", "engine", *start, *options]
        service = Service("engine", ["env", f"PYTHONPATH={SITE}", f"TUNLOOM_MAC={self.path}", *command])
        try:
            service.wait_for("ready", TIMEOUT)
            yield service
        finally:
            service.stop()
        assert "Traceback" not in service.output, service.output

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "engine", *command, "--run-dir", str(self.run_dir)],
            env=self.environment, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[Mac]:
    made = Mac(tmp_path)
    with serve(made.kernel, made.path):
        yield made
        made.kernel.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def exchange(wire: socket.socket, peer: TcpPeer, done: str) -> None:
    """Carry packets between the application's end and the tun until the peer's attribute `done` holds."""
    deadline = monotonic() + TIMEOUT
    while not getattr(peer, done):
        assert monotonic() < deadline, f"no {done}"
        while peer.sent:
            wire.send(b"\0\0\0\2" + peer.sent.pop(0)[10:])
        try:
            packet = wire.recv(70_000)
        except BlockingIOError:
            peer.timer(monotonic())
            continue
        family, version = packet[:4], packet[4] >> 4
        assert family == {4: b"\0\0\0\2", 6: b"\0\0\0\x1e"}[version]
        if version == 4 and packet[4 + 9] == 6:
            peer.receive(bytes(10) + packet[4:], monotonic())


def test_start_and_stop_are_exactly_these_calls(mac: Mac, tmp_path: Path) -> None:
    config = tmp_path / "engine.json"
    inbound = {"type": "tun", "auto_route": True, "address": list(ADDRESSES)}
    whole = {"inbounds": [inbound], "outbounds": [{"type": "direct"}], "engine": {"hijack_dns": False}}
    config.write_text(json.dumps(whole))
    options = ("-c", str(config), "--interface", "utun8", "--mtu", "9000")
    with mac.engine(f"socks5://{REMOTE}:1080", *options) as engine:
        started = mac.kernel.log[:]
        assert [call for call in started if call[0] != "send_route" and call[0] != "bind_to_interface"] == [
            ("ioctl", "0xc0644e03", (bytes(4) + b"com.apple.net.utun_control".ljust(96, b"\0")).hex()),
            ("connect_control", "2020020005000000" + "09000000" + 20 * "00"),
            ("set_option", "2,16", struct.pack("=I", 512 * 1024 // 9004).hex()),
            ("ioctl", f"{SIOCSIFMTU:#010x}", "7574756e38" + 22 * "0" + "28230000" + 24 * "0"),
            ("ioctl", f"{SIOCAIFADDR:#010x}", encode_inet_alias("utun8", ADDRESSES[0]).hex()),
            ("ioctl", f"{SIOCAIFADDR_IN6:#010x}", encode_inet6_alias("utun8", ADDRESSES[1]).hex()),
        ]
        own4, own6 = (address.partition("/")[0] for address in ADDRESSES)
        assert routes(started) == [
            sent(RTM_ADD, f"{REMOTE}/32", "192.168.1.1"),
            *(sent(RTM_ADD, prefix, own4) for prefix in EIGHT),
            *(sent(RTM_ADD, prefix, own6) for prefix in EIGHT6),
        ]
        mac.kernel.log.clear()
        assert mac.run("stop").returncode == 0
        assert engine.process.wait(TIMEOUT) == 0
    assert routes(mac.kernel.log) == [
        *(sent(RTM_DELETE, prefix, own6) for prefix in reversed(EIGHT6)),
        *(sent(RTM_DELETE, prefix, own4) for prefix in reversed(EIGHT)),
        sent(RTM_DELETE, f"{REMOTE}/32", "192.168.1.1"),
    ]
    assert mac.kernel.leftovers() == mac.before


def test_a_connection_is_carried_to_the_proxy_and_back(mac: Mac, proxy: Proxy) -> None:
    with mac.engine(proxy.url) as engine:
        peer = TcpPeer(source="198.18.0.1", destination="198.51.100.7")
        wire = mac.kernel.wire("utun4")
        peer.connect(monotonic())
        exchange(wire, peer, "open")
        data = bytes(range(97, 123)) * 4000
        peer.write(data, monotonic())
        peer.close(monotonic())
        exchange(wire, peer, "eof")
        assert bytes(peer.received) == data.upper()
        assert proxy.asked == [b"\5\1\0\1" + socket.inet_aton("198.51.100.7") + struct.pack("!H", 443)]
        status = ask(mac.run_dir, Status()).status
        assert status is not None
        assert status.workers[0].tcp_opened == 1
        engine.process.send_signal(signal.SIGINT)
        assert engine.process.wait(TIMEOUT) == 0
    assert mac.kernel.leftovers() == mac.before


def test_upstream_sockets_are_bound_to_the_way_out_and_follow_it(mac: Mac, tmp_path: Path) -> None:
    config = tmp_path / "direct.json"
    inbound = {"type": "tun", "auto_route": True, "address": list(ADDRESSES)}
    config.write_text(json.dumps({"inbounds": [inbound], "outbounds": [{"type": "direct"}]}))
    with mac.engine(None, "-c", str(config), "--interface", "utun8") as engine:
        wire = mac.kernel.wire("utun8")

        def bound_after(port: int) -> tuple[str, ...]:
            mac.kernel.log.clear()
            peer = TcpPeer(source="198.18.0.1", destination="192.0.2.77", port=port)
            peer.connect(monotonic())
            wire.send(b"\0\0\0\2" + peer.sent[0][10:])
            wait_until(lambda: any(call[0] == "bind_to_interface" for call in mac.kernel.log), what="a socket")
            return next(call for call in mac.kernel.log if call[0] == "bind_to_interface")

        assert bound_after(40001) == ("bind_to_interface", f"{int(socket.AF_INET)},4")
        mac.kernel.set_default("10.0.0.1", "en1")
        mac.kernel.remove_default(6)
        wait_until(lambda: "another network" in engine.output, what="the move")
        assert bound_after(40002) == ("bind_to_interface", f"{int(socket.AF_INET)},6")


def test_flow_of_the_proxy_itself_leaves_directly_and_its_server_is_learned(mac: Mac, proxy: Proxy) -> None:
    port = int(proxy.url.rpartition(":")[2])
    mac.kernel.processes[400] = (1, 502, "/usr/local/bin/v2ray", ("v2ray", "run"))
    mac.kernel.tables["net.inet.tcp.pcblist_n"] = pcb_table(
        socket_records(
            handle=1, local=("127.0.0.1", port), remote=("0.0.0.0", 0), vflag=1, uid=502, last_pid=400, tcp=True
        ),
        socket_records(
            handle=2,
            local=("198.18.0.1", 40001),
            remote=("203.0.113.80", 443),
            vflag=1,
            uid=502,
            last_pid=400,
            tcp=True,
        ),
    )
    with mac.engine(proxy.url):
        peer = TcpPeer(source="198.18.0.1", destination="203.0.113.80", port=40001)
        peer.connect(monotonic())
        mac.kernel.log.clear()
        mac.kernel.wire("utun4").send(b"\0\0\0\2" + peer.sent[0][10:])
        wait_until(lambda: mac.kernel.route_to("203.0.113.80/32") is not None, what="the server's own route")
        bound = ("bind_to_interface", f"{int(socket.AF_INET)},4")
        wait_until(lambda: bound in mac.kernel.log, what="a socket that is bound to the way out")
        assert proxy.asked == []
    assert mac.kernel.leftovers() == mac.before


def test_another_network_re_points_the_host_route_of_the_proxy(mac: Mac) -> None:
    with mac.engine(f"socks5://{REMOTE}:1080") as engine:
        mac.kernel.log.clear()
        mac.kernel.set_default("10.0.0.1", "en1")
        wait_until(lambda: "another network" in engine.output, what="the move")
        assert routes(mac.kernel.log)[:2] == [
            sent(RTM_DELETE, f"{REMOTE}/32", "192.168.1.1"),
            sent(RTM_ADD, f"{REMOTE}/32", "10.0.0.1"),
        ]
        mac.kernel.set_default("192.168.1.1", "en0")
        engine.stop()
    assert mac.kernel.leftovers() == mac.before


def test_network_services_ask_the_engine_for_names_while_it_runs(mac: Mac) -> None:
    own = ("198.18.0.2", "fdfe:dcba:9876::2")
    with mac.engine(f"socks5://{REMOTE}:1080") as engine:
        assert mac.kernel.services == {"Wi-Fi": ("en0", own), "USB LAN": ("en7", own)}
        mac.kernel.log.clear()
        engine.stop()
    assert [call for call in mac.kernel.log if call[0] == "run"] == [
        ("run", "/usr/sbin/networksetup", "-setdnsservers", "USB LAN", "192.0.2.53"),
        ("run", "/usr/sbin/networksetup", "-setdnsservers", "Wi-Fi", "Empty"),
        *FLUSH,
    ]
    assert mac.kernel.leftovers() == mac.before


def test_killed_master_leaves_nothing(mac: Mac) -> None:
    with mac.engine(f"socks5://{REMOTE}:1080") as engine:
        pid = engine.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        engine.process.wait(TIMEOUT)
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), what="the end of all")
        wait_until(lambda: mac.kernel.leftovers() == mac.before, what="the network as it was before")


def test_killed_worker_is_replaced(mac: Mac, proxy: Proxy) -> None:
    with mac.engine(proxy.url):
        status = ask(mac.run_dir, Status()).status
        assert status is not None
        first = status.workers[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        def another() -> bool:
            status = ask(mac.run_dir, Status()).status
            assert status is not None
            return status.workers[0].state == "running" and status.workers[0].pid not in (None, first)

        wait_until(another, what="another worker")
        peer = TcpPeer(source="198.18.0.1", destination="198.51.100.7")
        peer.connect(monotonic())
        exchange(mac.kernel.wire("utun4"), peer, "open")


def test_everybody_killed_is_mended_by_repair(mac: Mac) -> None:
    with mac.engine(f"socks5://{REMOTE}:1080") as engine:
        pid = engine.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for victim in (*map(int, children), pid):  # the guardian is among them
            os.kill(victim, signal.SIGSTOP)
        for victim in (pid, *map(int, children)):
            os.kill(victim, signal.SIGKILL)
        engine.process.wait(TIMEOUT)
        mac.kernel.reap()
        assert mac.kernel.route_to(f"{REMOTE}/32") is not None
        assert mac.run("repair").returncode == 0
        assert mac.kernel.leftovers() == mac.before


def test_name_of_another_kind_of_interface_is_refused(mac: Mac) -> None:
    done = mac.run("start", "--proxy", f"socks5://{REMOTE}:1080", "--interface", "tun0")
    assert done.returncode == 1
    assert "utun and a number" in done.stderr
    assert mac.kernel.leftovers() == mac.before
