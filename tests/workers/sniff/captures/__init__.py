"""First bytes of real clients; README.md says how each was taken."""

from pathlib import Path

__all__ = ["capture", "every_capture"]

HERE = Path(__file__).parent


def capture(name: str) -> bytes:
    """The bytes of one capture."""
    return (HERE / f"{name}.bin").read_bytes()


def every_capture() -> list[str]:
    """The names of all captures."""
    return sorted(path.stem for path in HERE.glob("*.bin"))
