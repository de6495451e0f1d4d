"""The run directory: one holder, and a path that can hold a socket."""

import socket
from pathlib import Path

import pytest

from engine.run_dir import PATH_MAX, RunDirError, lock_run_dir


def test_second_holder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with lock_run_dir(run_dir), pytest.raises(RunDirError, match="an engine is running"), lock_run_dir(run_dir):
        pass
    with lock_run_dir(run_dir):
        pass


def test_longest_path_holds_the_control_socket_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * (PATH_MAX - len(str(tmp_path)) - 1))
    with lock_run_dir(longest), socket.socket(socket.AF_UNIX) as control:
        control.bind(str(longest / "control.sock"))
    with pytest.raises(RunDirError, match="too long"), lock_run_dir(Path(f"{longest}y")):
        pass


def test_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(RunDirError, match="cannot be used"), lock_run_dir(path):
        pass
