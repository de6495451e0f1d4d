"""`engine start`."""

import os
from typing import Annotated, Literal

import typer

from engine.cli.discover import discovered_proxy
from engine.cli.options import DEFAULT_RUN_DIR, FAILED, NOT_PERMITTED, USAGE, RunDir, Workers, cores, fail, need_root

__all__ = ["start"]

MTU_MIN, MTU_MAX = 1280, 65535  # RFC 8200 (5); the largest IP packet


def start(
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy",
            help="socks5://[user:pass@]host:port, socks4://, socks4a:// or http://. [default: the one that is found here]",
        ),
    ] = None,
    workers: Workers = None,
    interface: Annotated[str, typer.Option("--interface", help="Name of the tun. [default: tunN]")] = "",
    mtu: Annotated[int, typer.Option("--mtu", min=MTU_MIN, max=MTU_MAX, help="Bytes of the largest packet.")] = MTU_MAX,
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
        Literal["auto", "uso", "tso", "csum", "none", "no-header"],
        typer.Option("--offload", help="The most that is asked of the kernel."),
    ] = "auto",
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="HOST:PORT for metrics and the Clash API, or `off`. [default: 127.0.0.1:9464]"),
    ] = None,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")] = "info",
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format")] = "text",
    run_dir: RunDir = DEFAULT_RUN_DIR,
    netns: Annotated[
        str | None, typer.Option("--netns", help="Run in this network namespace, as `ip netns exec` would.")
    ] = None,
) -> None:
    """Carry all traffic to the proxy until Ctrl-C or `engine stop`, then put everything back."""
    from engine.http.listen import SECRET_VARIABLE, ListenError, metrics_options
    from engine.netconf import NetworkError
    from engine.netns import NetnsError, enter_netns
    from engine.proxy_url import ProxyUrlError, parse_proxy_url, resolve_proxy
    from engine.run_dir import RunDirError
    from engine.supervisor import WorkerFailed
    from engine.tun import TunError

    try:
        proxy_config = parse_proxy_url(proxy) if proxy is not None else None
    except ProxyUrlError as error:
        fail(USAGE, str(error))
    if kill_switch and no_auto_route:
        fail(USAGE, "--kill-switch needs the routes: leave --no-auto-route out")
    need_root("engine start", "opens a tun device and changes routes")

    import uvloop

    from engine.master import EngineFailed, StartOptions, run_engine
    from shared.log import configure_logging

    configure_logging(log_level, log_format, name="master")
    try:
        if netns is not None:
            enter_netns(netns)
        http = metrics_options(metrics, secret=os.environ.pop(SECRET_VARIABLE, ""))  # no child is to inherit it
        options = StartOptions(
            proxy=resolve_proxy(proxy_config or discovered_proxy("engine start")),
            workers=workers or cores(),
            interface=interface,
            mtu=mtu,
            auto_route=not no_auto_route,
            offload=offload,
            kill_switch=kill_switch,
            run_dir=run_dir.absolute(),
            log_level=log_level,
            log_format=log_format,
            http=http,
        )
        uvloop.run(run_engine(options))
    except (ProxyUrlError, NetnsError, ListenError) as error:
        fail(USAGE, str(error))
    except (TunError, NetworkError) as error:
        fail(NOT_PERMITTED if error.not_permitted else FAILED, str(error))
    except (EngineFailed, RunDirError, WorkerFailed) as error:
        fail(FAILED, str(error))
