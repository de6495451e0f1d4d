"""What systemd-resolved is told, by a resolvectl that writes down its arguments."""

from pathlib import Path

import pytest

from engine import resolved
from tests.support.loop import on_loop

SERVERS = ("198.18.0.2", "fdfe:dcba:9876::2")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A resolvectl that is found first, and a resolved that runs in our namespace; returns what it is told."""
    log = tmp_path / "told"
    program = tmp_path / "resolvectl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *refuse*) echo "no such link" >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    process = tmp_path / "proc" / "77"
    for path in (process / "ns", tmp_path / "proc" / "self" / "ns"):
        path.mkdir(parents=True)
    (process / "comm").write_text("systemd-resolve\n")
    (process / "ns" / "net").touch()
    (tmp_path / "proc" / "self" / "ns" / "net").hardlink_to(process / "ns" / "net")
    monkeypatch.setattr(resolved, "PROC", tmp_path / "proc")
    return log


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def move_elsewhere(net: Path) -> None:
    net.unlink()
    net.touch()


@on_loop
async def test_it_asks_the_tun_for_every_name_and_forgets_it(told: Path) -> None:
    assert await resolved.announce("tun0", SERVERS)
    assert lines(told) == [
        f"dns tun0 {' '.join(SERVERS)}",
        "domain tun0 ~.",
        "default-route tun0 yes",
    ]
    await resolved.revert("tun0")
    assert lines(told)[-1] == "revert tun0"


@on_loop
async def test_what_it_refuses_is_taken_back_and_told(told: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not await resolved.announce("refused", SERVERS)
    assert lines(told) == [f"dns refused {' '.join(SERVERS)}", "revert refused"]
    assert "no such link" in caplog.text


@on_loop
async def test_one_of_another_namespace_is_left_alone(told: Path) -> None:
    move_elsewhere(resolved.PROC / "77" / "ns" / "net")
    assert not await resolved.announce("tun0", SERVERS)
    assert lines(told) == []


@on_loop
async def test_without_a_dns_address_there_is_nothing_to_say(told: Path) -> None:
    assert not await resolved.announce("tun0", ())
    assert lines(told) == []


@on_loop
async def test_one_that_the_proxy_asks_too_is_left_alone(told: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not await resolved.announce("tun0", SERVERS, proxy_is_here=True)
    assert lines(told) == []
    assert "leave past the proxy" in caplog.text
