"""`engine start`."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

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
)

if TYPE_CHECKING:
    from engine.http import HttpOptions

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
            "outbound. [default: that of -c, or the one that is found here]",
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
    from engine.config.model import LogConfig
    from engine.config.named_proxy import for_proxy, with_proxy
    from engine.config.resolve import ResolveError, resolve
    from engine.http.listen import SECRET_VARIABLE, ListenError
    from engine.netconf import NetworkError
    from engine.netns import NetnsError, enter_netns
    from engine.proxy_url import ProxyUrlError, parse_proxy_url
    from engine.run_dir import RunDirError
    from engine.supervisor import WorkerFailed
    from engine.tun import TunError

    try:
        named = parse_proxy_url(proxy) if proxy is not None else None
    except ProxyUrlError as error:
        fail(USAGE, str(error))
    if config and os.geteuid() != 0:
        load_files(config)  # what is wrong with them is told also to those who may not start an engine
    need_root("engine start", "opens a tun device and changes routes")

    import uvloop

    from engine.master import EngineFailed, StartOptions, run_engine
    from shared.log import configure_logging

    try:
        if netns is not None:
            enter_netns(netns)
        loaded = load_files(config) if config else None
        log_options = LogConfig() if loaded is None else loaded.log
        log_options = LogConfig(
            level=log_level or log_options.level, format=log_format or log_options.format, output=log_options.output
        )
        if log_options.output is not None:
            log_to_file(log_options.output)
        configure_logging(log_options.level, log_options.format, name="master")
        if loaded is None:
            chosen = for_proxy(named or discovered_proxy("engine start"))
        else:
            for warning in loaded.warnings:
                log.warning("%s", warning.replace(": warning: ", ": ", 1))
            chosen = loaded if named is None else with_proxy(loaded, named)
        resolved, troubles = resolve(chosen)
        for trouble in troubles:
            log.warning("%s", trouble)
        tun = msgspec.structs.replace(
            resolved.tun,
            interface_name=interface or resolved.tun.interface_name,
            mtu=mtu or resolved.tun.mtu,
            offload=offload or resolved.tun.offload,
            auto_route=resolved.tun.auto_route and not no_auto_route,
        )
        if (kill_switch or resolved.kill_switch) and not tun.auto_route:
            fail(USAGE, "the kill switch needs the routes: leave --no-auto-route out, or write auto_route: true")
        whole = msgspec.structs.replace(
            resolved,
            tun=tun,
            log=log_options,
            kill_switch=kill_switch or resolved.kill_switch,
            http=http_options(metrics, resolved.http, os.environ.pop(SECRET_VARIABLE, "")),  # no child is to inherit it
        )
        options = StartOptions(
            config=whole,
            workers=workers or whole.workers or cores(),
            run_dir=(run_dir or Path(whole.run_dir or DEFAULT_RUN_DIR)).absolute(),
        )
        uvloop.run(run_engine(options))
    except (ProxyUrlError, NetnsError, ListenError, ResolveError) as error:
        fail(USAGE, str(error))
    except (TunError, NetworkError) as error:
        fail(NOT_PERMITTED if error.not_permitted else FAILED, str(error))
    except (EngineFailed, RunDirError, WorkerFailed) as error:
        fail(FAILED, str(error))


def log_to_file(path: str) -> None:
    """Let standard error, of all processes that are started from now on too, go to a file (log.output)."""
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        fail(USAGE, f"log.output: {path} cannot be written: {error.strerror}")
    os.dup2(target, 2)
    os.close(target)


def http_options(metrics: str | None, of_file: "HttpOptions | None", secret: str) -> "HttpOptions | None":
    """Return what is served where: --metrics comes before the file's engine.metrics, the environment's secret before its own."""
    from engine.http.listen import metrics_options

    if metrics is None:
        return replace(of_file, secret=secret or of_file.secret) if of_file is not None else None
    named = metrics_options(metrics, secret=secret or (of_file.secret if of_file is not None else ""))
    if named is None or of_file is None or not of_file.is_named:
        return named
    return replace(of_file, addresses=tuple(dict.fromkeys((*named.addresses, *of_file.addresses))), secret=named.secret)
