"""`engine start`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.argument_memory import take_variable
from engine.cli.discover import discovered_proxy
from engine.cli.options import (
    DEFAULT_RUN_DIR,
    FAILED,
    NOT_PERMITTED,
    USAGE,
    ConfigFiles,
    Workers,
    cores,
    fail,
    load_files,
    need_root,
    refuse,
)
from engine.cli.proxy_option import named_proxy, password_warnings
from shared.log import READY, configure_logging

if TYPE_CHECKING:
    from engine.config.effective import CommandLine

__all__ = ["start"]

log = logging.getLogger(__name__)

MTU_MIN, MTU_MAX = 1280, 65535  # RFC 8200 (5); the largest IP packet


def start(
    config: ConfigFiles = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy",
            help="socks5://[user:pass@]host:port, socks4://, socks4a:// or http://; with -c in place of its default "
            "outbound. With a password rather in the environment, as TUNLOOM_PROXY. [default: that of -c, or the one found here]",
        ),
    ] = None,
    workers: Workers = None,
    interface: Annotated[str | None, typer.Option("--interface", help="Name of the tun. [default: tunN]")] = None,
    mtu: Annotated[
        int | None,
        typer.Option("--mtu", min=MTU_MIN, max=MTU_MAX, help="Bytes of the largest packet. [default: 65535]"),
    ] = None,
    no_auto_route: Annotated[
        bool, typer.Option("--no-auto-route", help="Open the tun, but leave routes and rules to you.")
    ] = False,
    kill_switch: Annotated[
        bool,
        typer.Option(
            "--kill-switch",
            help="Let nothing out but through the tun, to the LAN and by the engine itself, also after a crash.",
        ),
    ] = False,
    offload: Annotated[
        Literal["auto", "uso", "tso", "csum", "none", "no-header"] | None,
        typer.Option("--offload", help="The most that is asked of the kernel. [default: auto]"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="HOST:PORT for metrics and the Clash API, or `off`. [default: 127.0.0.1:9464]"),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option("--log-level", help="[default: info]")
    ] = None,
    log_format: Annotated[Literal["text", "json"] | None, typer.Option("--log-format", help="[default: text]")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", help="Where the engine keeps its control socket and journal. [default: /run/tunloom]"
        ),
    ] = None,
    netns: Annotated[
        str | None, typer.Option("--netns", help="Run in this network namespace, as `ip netns exec` would.")
    ] = None,
) -> None:
    """Carry all traffic to the proxy until Ctrl-C or `engine stop`, then put everything back."""
    from engine.config.effective import CommandLine
    from engine.http.listen import SECRET_VARIABLE
    from engine.netns import NetnsError, enter_netns

    named = named_proxy(proxy)
    files = tuple(config or ())
    if files and os.geteuid() != 0:
        load_files(files)  # what is wrong with them is told also to those who may not start an engine
    need_root("engine start", "opens a tun device and changes routes")
    try:
        if netns is not None:
            enter_netns(netns)
    except NetnsError as error:
        fail(USAGE, str(error))
    if not files and named is None:
        configure_logging(log_level or "info", log_format or "text", name="master")
        named = discovered_proxy("engine start")
    line = CommandLine(
        files=files,
        workers=workers,
        proxy=named,
        interface=interface,
        mtu=mtu,
        auto_route=not no_auto_route,
        offload=offload,
        kill_switch=kill_switch,
        metrics=metrics,
        secret=take_variable(SECRET_VARIABLE) or "",
        log_level=log_level,
        log_format=log_format,
    )
    run_until_stopped(line, run_dir=run_dir, warnings=password_warnings(proxy))


def run_until_stopped(line: "CommandLine", *, run_dir: Path | None, warnings: Sequence[str] = ()) -> None:
    """Make the configuration in force, run, and turn every failure into its sentence and exit code."""
    import uvloop

    from engine.config.effective import UsageError, effective
    from engine.config.problems import ConfigError
    from engine.config.resolve import ResolveError
    from engine.http.listen import ListenError
    from engine.master import EngineFailed, StartOptions, run_engine
    from engine.netconf import NetworkError
    from engine.rights import RightsError
    from engine.run_dir import RunDirError
    from engine.tun import TunError
    from engine.worker_process import WorkerFailed

    try:
        config, remarks = effective(line)
        if config.log.output is not None:
            log_to_file(config.log.output)
        configure_logging(config.log.level, config.log.format, name="master")
        logging.getLogger(READY).setLevel(logging.INFO)  # scripts wait for it, whatever the level
        for remark in (*warnings, *remarks):
            log.warning("%s", remark)
        options = StartOptions(
            config=config,
            workers=config.workers or cores(),
            run_dir=(run_dir or Path(config.run_dir or DEFAULT_RUN_DIR)).absolute(),
            command_line=line,
        )
        uvloop.run(run_engine(options))
    except ConfigError as error:
        refuse(error)
    except OSError as error:
        fail(USAGE, f"-c {error.filename}: {error.strerror}")
    except (ListenError, ResolveError, UsageError) as error:
        fail(USAGE, str(error))
    except (TunError, NetworkError) as error:
        fail(NOT_PERMITTED if error.not_permitted else FAILED, str(error))
    except (EngineFailed, RightsError, RunDirError, WorkerFailed) as error:
        fail(FAILED, str(error))


def log_to_file(path: str) -> None:
    """Let standard error, of all processes that are started from now on too, go to a file (log.output)."""
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        fail(USAGE, f"log.output: {path} cannot be written: {error.strerror}")
    os.dup2(target, 2)
    os.close(target)
