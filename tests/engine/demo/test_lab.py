"""Namespaces that leave nothing behind, and the lab made of two of them."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from engine.demo.lab import CLIENT_V4, TARGETS_V4, UPSTREAM_V4, UPSTREAM_V6, Lab, LabError, Namespace

pytestmark = pytest.mark.e2e

PORT = 7777
SLEEPER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]


def connect(address: str) -> socket.socket:
    return socket.create_connection((address, PORT), timeout=5)


def listen(address: str) -> socket.socket:
    return socket.create_server((address, PORT), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def own_namespace() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_entered_moves_this_thread_there_and_back() -> None:
    home = own_namespace()
    with Namespace() as namespace:
        with namespace.entered():
            assert own_namespace() != home
        assert own_namespace() == home


def test_entered_comes_back_from_an_exception() -> None:
    home = own_namespace()
    with Namespace() as namespace, pytest.raises(KeyError), namespace.entered():
        raise KeyError
    assert own_namespace() == home


def test_commands_run_inside() -> None:
    with Namespace() as namespace:
        with namespace.entered():
            inside = own_namespace()
        answer = namespace.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == inside


def test_path_is_good_for_nsenter() -> None:
    with Namespace() as namespace:
        with namespace.entered():
            inside = own_namespace()
        command = ["nsenter", f"--net={namespace.path}", "readlink", "/proc/self/ns/net"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == inside


def test_close_kills_what_runs_inside() -> None:
    namespace = Namespace()
    with namespace.popen(SLEEPER, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert namespace.processes() == [process.pid]
        namespace.close()
        assert process.wait() == -9


def test_close_twice_is_harmless() -> None:
    namespace = Namespace()
    namespace.close()
    namespace.close()


def test_network_state_shows_a_change_and_its_undoing() -> None:
    with Namespace() as namespace:
        before = namespace.network_state()
        with namespace.entered(), IPRoute() as netlink:
            netlink.rule("add", priority=9000, table=2022)
            assert {kind for kind, lines in namespace.network_state().items() if lines != before[kind]} == {"rules"}
            netlink.rule("del", priority=9000, table=2022)
        assert namespace.network_state() == before


def test_lab_carries_tcp_from_client_to_every_target() -> None:
    with Lab() as lab:
        for target in lab.targets:
            with lab.internet.entered():
                listener = listen(target)
            with lab.client.entered():
                flow = connect(target)
            accepted, peer = listener.accept()
            with listener, flow, accepted:
                assert ":" in target or peer[0] == CLIENT_V4


def test_lab_without_default_routes_reaches_the_proxy_but_no_target() -> None:
    with Lab(default_routes=False) as lab:
        for upstream in [UPSTREAM_V4, *([UPSTREAM_V6] if lab.ipv6 else [])]:
            with lab.internet.entered():
                listener = listen(upstream)
            with listener, lab.client.entered(), connect(upstream):
                pass
        for target in lab.targets:
            with lab.client.entered(), pytest.raises(OSError) as refused:
                connect(target)
            assert refused.value.errno == errno.ENETUNREACH


def test_two_labs_at_once_do_not_meet() -> None:
    with Lab() as one, Lab() as other, one.internet.entered(), listen(TARGETS_V4[0]):
        with other.client.entered(), pytest.raises(ConnectionRefusedError):
            connect(TARGETS_V4[0])
        with one.client.entered(), connect(TARGETS_V4[0]):
            pass


def test_lab_leaves_no_descriptor_process_or_link() -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    links = Path("/proc/net/dev").read_text().count(":")
    with Lab() as lab:
        process = lab.client.popen(SLEEPER)
    assert process.wait() == -9
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert Path("/proc/net/dev").read_text().count(":") == links


def test_lab_that_fails_half_built_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Lab) -> None:
        raise OSError(errno.EPERM, "refused")

    monkeypatch.setattr(Lab, "_connect", fail)
    descriptors = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LabError, match="refused") as failed, Lab():
        pass
    assert failed.value.not_permitted
    assert set(os.listdir("/proc/self/fd")) == descriptors
