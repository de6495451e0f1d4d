"""`engine import`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.cli.options import USAGE, fail

__all__ = ["import_file"]


def import_file(
    kind: Annotated[
        Literal["v2ray", "clash", "sing-box"],
        typer.Argument(help="Whose file it is: v2ray (also Xray), clash (also mihomo), sing-box (also Hiddify)."),
    ],
    file: Annotated[Path, typer.Argument(help="The file; - is standard input.")],
) -> None:
    """Print a configuration for `engine start -c` that means the same; what is left out is listed on standard error."""
    from engine.config.dialect import decode_text
    from engine.config.importers import import_text
    from engine.config.problems import ConfigError

    name = "standard input" if str(file) == "-" else str(file)
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        fail(USAGE, f"{file} cannot be read: {error.strerror}")
    try:
        imported = import_text(kind, decode_text(data), name)
    except ConfigError as error:
        for line in sorted((*error.errors, *error.warnings)):
            print(line, file=sys.stderr)
        fail(USAGE, f"{name} cannot be imported")
    for problem in imported.left:
        print(problem, file=sys.stderr)
    print(json.dumps(imported.config, indent=2, ensure_ascii=False))
