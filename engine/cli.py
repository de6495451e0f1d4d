"""The command line: options in, exit codes out (0 done, 1 failed while running, 2 usage, 3 not permitted)."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

__all__ = ["main"]

FAILED, USAGE, NOT_PERMITTED = 1, 2, 3
MTU_MIN, MTU_MAX = 1280, 65535  # RFC 8200 (5); the largest IP packet
WORKERS_MAX = 64
DEFAULT_RUN_DIR = Path("/run/tunloom")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carries every TCP and UDP flow of this machine to your SOCKS5 proxy.",
)

RunDir = Annotated[Path, typer.Option("--run-dir", help="Where the engine keeps its control socket and journal.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=WORKERS_MAX, help="Worker processes. [default: cores]")
]


@app.command()
def start(
    proxy: Annotated[
        str | None, typer.Option("--proxy", help="socks5://[user:pass@]host:port, socks4://, socks4a:// or http://")
    ] = None,
    workers: Workers = None,
    interface: Annotated[str, typer.Option("--interface", help="Name of the tun. [default: tunN]")] = "",
    mtu: Annotated[int, typer.Option("--mtu", min=MTU_MIN, max=MTU_MAX, help="Bytes of the largest packet.")] = MTU_MAX,
    no_auto_route: Annotated[
        bool, typer.Option("--no-auto-route", help="Open the tun, but leave routes and rules to you.")
    ] = False,
    offload: Annotated[
        Literal["auto", "uso", "tso", "csum", "none", "no-header"],
        typer.Option("--offload", help="The most that is asked of the kernel."),
    ] = "auto",
    metrics: Annotated[str, typer.Option("--metrics", help="Only `off` in this version.")] = "off",
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")] = "info",
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format")] = "text",
    run_dir: RunDir = DEFAULT_RUN_DIR,
    netns: Annotated[
        str | None, typer.Option("--netns", help="Run in this network namespace, as `ip netns exec` would.")
    ] = None,
) -> None:
    """Carry all traffic to the proxy until Ctrl-C or `engine stop`, then put everything back."""
    from engine.netconf import NetworkError
    from engine.netns import NetnsError, enter_netns
    from engine.proxy_url import ProxyUrlError, parse_proxy_url, resolve_proxy
    from engine.run_dir import RunDirError
    from engine.supervisor import WorkerFailed
    from engine.tun import TunError

    if proxy is None:
        _fail(USAGE, "--proxy is missing: name your proxy, as in `engine start --proxy socks5://127.0.0.1:1080`")
    if metrics != "off":
        _fail(
            USAGE,
            "--metrics: this version has no HTTP endpoint yet; leave the option out (`engine status` shows the counters)",
        )
    try:
        proxy_config = parse_proxy_url(proxy)
    except ProxyUrlError as error:
        _fail(USAGE, str(error))
    if os.geteuid() != 0:
        _fail(
            NOT_PERMITTED, "engine start needs root, because it opens a tun device and changes routes: run it with sudo"
        )

    import uvloop

    from engine.master import EngineFailed, StartOptions, run_engine
    from shared.log import configure_logging

    configure_logging(log_level, log_format, name="master")
    try:
        if netns is not None:
            enter_netns(netns)
        options = StartOptions(
            proxy=resolve_proxy(proxy_config),
            workers=workers or _cores(),
            interface=interface,
            mtu=mtu,
            auto_route=not no_auto_route,
            offload=offload,
            run_dir=run_dir.absolute(),
            log_level=log_level,
            log_format=log_format,
        )
        uvloop.run(run_engine(options))
    except (ProxyUrlError, NetnsError) as error:
        _fail(USAGE, str(error))
    except (TunError, NetworkError) as error:
        _fail(NOT_PERMITTED if error.not_permitted else FAILED, str(error))
    except (EngineFailed, RunDirError, WorkerFailed) as error:
        _fail(FAILED, str(error))


@app.command()
def stop(run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Stop the running engine and wait until everything is put back."""
    from engine.control import NotRunning, Request, ask
    from engine.run_dir import wait_until_unlocked

    try:
        ask(run_dir, Request("stop"))
        wait_until_unlocked(run_dir)
    except NotRunning as error:
        _fail(FAILED, str(error))
    typer.echo("stopped")


@app.command()
def status(as_json: AsJson = False, run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Show what the running engine does, per worker."""
    import msgspec

    from engine.control import NotRunning, Request, ask

    try:
        reply = ask(run_dir, Request("status"))
    except NotRunning as error:
        _fail(FAILED, str(error))
    if reply.status is None:
        _fail(FAILED, reply.error or "the engine gave no status")
    if as_json:
        typer.echo(msgspec.json.encode(reply.status))
        return
    from engine.status_view import print_status

    print_status(reply.status)


@app.command()
def demo(
    workers: Workers = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, max=600, help="Length of each throughput test.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Try the whole path on an embedded proxy in private namespaces; nothing of this machine is touched."""
    from engine.demo.run import run_demo

    if os.geteuid() != 0:
        _fail(
            NOT_PERMITTED,
            "engine demo needs root, because it makes network namespaces and a tun device: run it with sudo",
        )
    raise typer.Exit(run_demo(workers=workers or _cores(), seconds=seconds, as_json=as_json))


@app.command()
def repair(run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Undo what an engine that crashed may have left in the network."""
    from engine.netconf import NetworkError
    from engine.netconf.network import repair_network
    from engine.run_dir import RunDirError, lock_run_dir

    if os.geteuid() != 0:
        _fail(NOT_PERMITTED, "engine repair needs root, because it changes routes: run it with sudo")
    try:
        with lock_run_dir(run_dir):  # a running engine's changes are no leftovers
            changes = asyncio.run(repair_network(run_dir))
    except (NetworkError, RunDirError) as error:
        _fail(FAILED, str(error))
    typer.echo(f"{changes} changes undone" if changes else "nothing to repair")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _fail(code: int, sentence: str) -> NoReturn:
    print(f"engine: {sentence}", file=sys.stderr)
    raise SystemExit(code)


def main() -> Any:
    """Entry point of the commands `engine` and `tunloom`."""
    return app()
