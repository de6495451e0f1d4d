"""What the HTTP process needs once its privileges are gone: libraries and the dashboard's files; no socket but those it has."""

from pathlib import Path

from shared.confinement import library_paths
from shared.system import confine

__all__ = ["confine_http"]

TYPES = Path("/etc/mime.types")


def confine_http(ui: Path | None) -> None:
    """Give up all else. `ui`: directory of a dashboard. Raises OSError."""
    confine([*library_paths(), TYPES, *([ui] if ui is not None else [])], sockets=False)
