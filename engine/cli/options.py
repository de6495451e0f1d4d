"""What all commands share: options, exit codes, and the one way to say that something is wrong."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from engine.config.model import EngineConfig
    from engine.config.problems import ConfigError

__all__ = [
    "DEFAULT_RUN_DIR",
    "FAILED",
    "NOT_PERMITTED",
    "USAGE",
    "AsJson",
    "ConfigFiles",
    "RunDir",
    "Workers",
    "cores",
    "fail",
    "load_files",
    "need_root",
    "refuse",
]

FAILED, USAGE, NOT_PERMITTED = 1, 2, 3
WORKERS_MAX = 64
DEFAULT_RUN_DIR = Path("/run/tunloom") if Path("/run").is_dir() else Path("/var/run/tunloom")  # macOS has no /run

RunDir = Annotated[Path, typer.Option("--run-dir", help="Where the engine keeps its control socket and journal.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=WORKERS_MAX, help="Worker processes. [default: cores]")
]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "-c", "--config", help="Configuration file, or a directory of *.json files; several are merged in their order."
    ),
]


def load_files(paths: Iterable[Path]) -> "EngineConfig":
    """Return the configuration that files describe; exit 2 with all of its errors and warnings."""
    from engine.config.load import expand, load
    from engine.config.problems import ConfigError

    try:
        return load(expand(paths))
    except OSError as error:
        fail(USAGE, f"-c {error.filename}: {error.strerror}")
    except ConfigError as error:
        refuse(error)


def refuse(error: "ConfigError") -> NoReturn:
    """Print what is wrong with files, in their order, and exit 2."""
    for line in sorted((*error.errors, *error.warnings)):
        print(line, file=sys.stderr)
    count = len(error.errors)
    fail(USAGE, f"{count} error{'s' if count > 1 else ''}: the configuration cannot be used")


def cores() -> int:
    """Cores that this process may use."""
    # A Mac has no affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fail(code: int, sentence: str) -> NoReturn:
    """Say what is wrong in one sentence on standard error, and exit."""
    print(f"engine: {sentence}", file=sys.stderr)
    raise SystemExit(code)


def need_root(command: str, because: str) -> None:
    """Exit 3 unless this process is root."""
    if os.geteuid() != 0:
        fail(NOT_PERMITTED, f"{command} needs root, because it {because}: run it with sudo")
