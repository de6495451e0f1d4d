"""`engine run`."""

import logging
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from engine.cli.discover import discovered_proxy
from engine.cli.options import FAILED, NOT_PERMITTED, USAGE, ConfigFiles, Workers, cores, fail, load_files
from engine.cli.proxy_option import named_proxy, password_warnings

if TYPE_CHECKING:
    from engine.master import StartOptions

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.", metavar="-- CMD ...")],
    config: ConfigFiles = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy", help="As of `engine start`; on this machine too. [default: the one that is found here]"
        ),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Run the command as this user. [default: as you]")] = None,
    workers: Workers = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="[default: warning]")
    ] = "warning",
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="For `engine status`. [default: one that goes with the command]")
    ] = None,
) -> None:
    """Run one command whose traffic, and nobody else's, goes to the proxy; exit with its exit code.

    It gets a network namespace of its own; the routes of the machine stay as they are. Needs no root where users may make
    namespaces and /dev/net/tun is open to them.
    """
    from engine.config.model import LogConfig
    from engine.config.named_proxy import for_proxy, with_proxy
    from engine.config.resolve import ResolveError, resolve
    from engine.run import RunError, check_platform
    from engine.run.session import Session, run_session
    from engine.tun import TunDevice
    from shared.log import configure_logging

    configure_logging(log_level, "text", name="master")
    account = _account(user)
    named = named_proxy(proxy)
    for warning in password_warnings(proxy):
        log.warning("%s", warning)
    try:
        check_platform()
        if config:
            loaded = load_files(config)
            chosen = loaded if named is None else with_proxy(loaded, named)
        else:
            chosen = for_proxy(named or discovered_proxy("engine run"))
        resolved, troubles = resolve(chosen)
    except ResolveError as error:
        fail(USAGE, str(error))
    except RunError as error:
        fail(error.code, str(error))
    for line in (*resolved.warnings, *troubles):
        log.warning("%s", line)
    whole = msgspec.structs.replace(resolved, log=LogConfig(level=log_level), http=None, kill_switch=False)
    count = workers or whole.workers or cores()

    def engine(tun: TunDevice, tables: tuple[int, ...], directory: Path) -> int:
        from engine.master import StartOptions

        return _run_engine(StartOptions(config=whole, workers=count, run_dir=directory, tun=tun, sock_diag=tables))

    session = Session(arguments=command, user=account, tun=whole.tun, run_dir=run_dir)
    try:
        code = run_session(session, engine)
    except RunError as error:
        fail(error.code, str(error))
    raise SystemExit(code)


def _account(user: str | None) -> pwd.struct_passwd | None:
    if user is None:
        return None
    if os.geteuid() != 0:
        fail(NOT_PERMITTED, "--user needs root: without it the command runs as you")
    try:
        return pwd.getpwnam(user)
    except KeyError:
        fail(USAGE, f"--user: there is no user {user!r} on this machine")


def _run_engine(options: "StartOptions") -> int:
    import uvloop

    from engine.master import EngineFailed, run_engine
    from engine.rights import RightsError
    from engine.run_dir import RunDirError
    from engine.worker_process import WorkerFailed

    try:
        uvloop.run(run_engine(options))
    except (EngineFailed, RightsError, RunDirError, WorkerFailed) as error:
        fail(FAILED, str(error))
    return 0
