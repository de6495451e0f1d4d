"""`engine service`."""

import sys
from itertools import pairwise
from typing import Annotated

import typer

from engine.cli.options import FAILED, USAGE, AsJson, fail, need_root
from engine.cli.proxy_option import PROXY_VARIABLE

__all__ = ["service"]

service = typer.Typer(no_args_is_help=True, help="The engine as a service of the machine.")

Options = Annotated[list[str] | None, typer.Argument(help="Options of `engine start`, after `--`.")]


@service.command(context_settings={"allow_interspersed_args": False})
def install(options: Options = None) -> None:
    """Have systemd run `engine start OPTIONS`, now and whenever the machine starts."""
    from engine.service.manager import ServiceFailed
    from engine.service.manager import install as install_unit
    from engine.service.systemd import UNIT_NAME

    arguments = _checked(options or [])
    need_root("engine service install", "writes a unit of the system")
    try:
        install_unit(_program(), arguments)
    except ServiceFailed as error:
        fail(FAILED, str(error))
    typer.echo(f"installed and started: {UNIT_NAME}")


@service.command()
def uninstall() -> None:
    """Stop the service and remove it."""
    from engine.service.manager import ServiceFailed
    from engine.service.manager import uninstall as uninstall_unit

    need_root("engine service uninstall", "removes a unit of the system")
    try:
        typer.echo("uninstalled" if uninstall_unit() else "not installed: nothing to remove")
    except ServiceFailed as error:
        fail(FAILED, str(error))


@service.command()
def status(as_json: AsJson = False) -> None:
    """Say whether the service is installed, starts with the machine, and runs. Exit 1 when it does not run."""
    import json

    from engine.service.manager import state

    found = state()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo("installed" if found["installed"] else "not installed: `sudo engine service install -- OPTIONS`")
        typer.echo(f"starts with the machine: {found['enabled']}\nruns now: {found['active']}")
    raise SystemExit(0 if found["active"] == "active" else FAILED)


@service.command(context_settings={"allow_interspersed_args": False})
def unit(options: Options = None) -> None:
    """Print the unit by which systemd runs `engine start OPTIONS`."""
    from engine.service.systemd import systemd_unit

    sys.stdout.write(systemd_unit(_program(), _checked(options or [])))


@service.command(context_settings={"allow_interspersed_args": False})
def plist(options: Options = None) -> None:
    """Print the property list by which launchd of macOS runs `engine start`."""
    from engine.service.launchd import launchd_plist

    _refuse_passwords(options or [])
    sys.stdout.buffer.write(launchd_plist(_program(), options or []))


def _program() -> list[str]:
    return [sys.executable, "-P", "-m", "engine"]


def _checked(options: list[str]) -> list[str]:
    """Refuse what would be read by others, or mean something else to a service."""
    _refuse_passwords(options)
    for option, value in pairwise(options):
        if option in ("-c", "--config") and not value.startswith("/"):
            fail(USAGE, f"-c {value}: a service has no directory of its own to stand in; write the whole path")
    if any(option == "--run-dir" or option.startswith("--run-dir=") for option in options):
        fail(USAGE, "--run-dir: a service keeps its files in /run/tunloom")
    return options


def _refuse_passwords(options: list[str]) -> None:
    """A unit, or a property list, is read by everybody, and so is the list of processes."""
    from engine.service.systemd import ENVIRONMENT_FILE

    if any("://" in option and "@" in option for option in options):
        fail(
            USAGE,
            "a password in an option of a service can be read by every user: put the proxy into a configuration file that is "
            f"root's alone (chmod 600) and give that with -c, or, for systemd, {PROXY_VARIABLE}=URL into {ENVIRONMENT_FILE}",
        )
