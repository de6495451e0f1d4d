"""What all commands share: options, exit codes, and the one way to say that something is wrong."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

__all__ = [
    "DEFAULT_RUN_DIR",
    "FAILED",
    "NOT_PERMITTED",
    "USAGE",
    "AsJson",
    "RunDir",
    "Workers",
    "cores",
    "fail",
    "need_root",
]

FAILED, USAGE, NOT_PERMITTED = 1, 2, 3
WORKERS_MAX = 64
DEFAULT_RUN_DIR = Path("/run/tunloom")

RunDir = Annotated[Path, typer.Option("--run-dir", help="Where the engine keeps its control socket and journal.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=WORKERS_MAX, help="Worker processes. [default: cores]")
]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def fail(code: int, sentence: str) -> NoReturn:
    """Say what is wrong in one sentence on standard error, and exit."""
    print(f"engine: {sentence}", file=sys.stderr)
    raise SystemExit(code)


def need_root(command: str, because: str) -> None:
    """Exit 3 unless this process is root."""
    if os.geteuid() != 0:
        fail(NOT_PERMITTED, f"{command} needs root, because it {because}: run it with sudo")
