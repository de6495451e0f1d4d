"""engine/notify.py: the datagram that systemd gets."""

import os
import socket
from pathlib import Path

import pytest

from engine.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_state_reaches_the_service_manager(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"tunloom-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify("READY=1")
        assert manager.recv(100, socket.MSG_DONTWAIT) == b"READY=1"


@pytest.mark.parametrize("path", [None, "", "/nonexistent/notify", "@tunloom-nobody-listens", "/" + "x" * 200])
def test_without_a_manager_nothing_happens(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if path is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify("READY=1")
