"""`engine top` on a real terminal: tmux types, and what stands on the screen is read."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.engine import ENGINE, Bed
from tests.support.netns import TARGET_V4, wait_until
from tests.support.sockets import flow, listening

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")]

TIMEOUT = 30.0  # seconds; only turns a hang into a failure


class Terminal:
    """A tmux server of its own, with one window."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ("tmux", "-S", str(socket))

    def run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True).stdout

    def type(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.screen, timeout=TIMEOUT, what=f"{text!r} on the screen")


@contextmanager
def terminal(socket: Path, *command: str) -> Iterator[Terminal]:
    made = Terminal(socket)
    made.run("-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "40", " ".join(command) + "; sleep 1000")
    try:
        yield made
    finally:
        made.run("kill-server")


def test_top_shows_filters_and_closes(bed: Bed, tmp_path: Path) -> None:
    command = (*ENGINE, "top", "--run-dir", str(bed.engine.run_dir))
    with listening(bed.net, TARGET_V4) as server, terminal(tmp_path / "tmux", *command) as screen:
        app, peer = flow(bed.net, server)
        with app, peer:
            app.sendall(b"hello")
            port = app.getsockname()[1]
            screen.wait_for("1 flows by bytes")
            assert "worker" in screen.screen and "proxy" in screen.screen
            screen.type("s")
            screen.wait_for("flows by up")
            screen.type("/", "nothing-like-this", "Enter")
            screen.wait_for("0 flows by up filter 'nothing-like-this'")
            screen.type("/", str(port), "Enter")
            screen.wait_for(f"1 flows by up filter '{port}'")
            screen.type("x")
            with pytest.raises(ConnectionResetError):
                app.recv(1)
            screen.wait_for(f"0 flows by up filter '{port}'")
            screen.type("q")
            wait_until(lambda: "flows by" not in screen.screen, timeout=TIMEOUT, what="the end of it")


def test_without_a_terminal_it_says_so(bed: Bed) -> None:
    command = [*ENGINE, "top", "--run-dir", str(bed.engine.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "needs a terminal" in done.stderr
