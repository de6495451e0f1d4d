"""`engine service`."""

import sys
from typing import Annotated

import typer

__all__ = ["service"]

service = typer.Typer(no_args_is_help=True, help="The engine as a service of the machine.")


@service.callback()
def group() -> None:
    """Without this Typer would take the only command for the group itself."""


@service.command(context_settings={"allow_interspersed_args": False})
def plist(
    options: Annotated[list[str] | None, typer.Argument(help="Options of `engine start`, after `--`.")] = None,
) -> None:
    """Print the property list by which launchd of macOS runs `engine start`."""
    from engine.service.launchd import launchd_plist

    sys.stdout.buffer.write(launchd_plist([sys.executable, "-P", "-m", "engine"], options or []))
