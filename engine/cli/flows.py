"""Commands that show what goes through the engine: flows, top, usage."""

from typing import Annotated, Literal

import typer

from engine.cli.options import DEFAULT_RUN_DIR, FAILED, USAGE, AsJson, RunDir, fail

__all__ = ["flows", "top", "usage"]


def flows(
    as_json: AsJson = False,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            help="bytes, up, down, age, rtt, source, destination, name, process, rule, outbound, state, ...; `-` turns it round.",
        ),
    ] = "bytes",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="TEXT, or FIELD=TEXT such as outbound=proxy; several must all hold."),
    ] = None,
    close: Annotated[str | None, typer.Option("--close", metavar="ID", help="Reset this flow.")] = None,
    run_dir: RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Show all live flows: whose they are, which rule took them, where they leave, what they carried."""
    import msgspec

    from engine.control import NotRunning, ask
    from engine.flows import FlowError, ask_flows, filtered, sorted_flows
    from engine.flows_view import print_flows
    from engine.requests import CloseFlows

    try:
        if close is not None:
            error = ask(run_dir, CloseFlows(close)).error
            if error is not None:
                fail(USAGE, f"--close: {error}")
            return
        all_flows = ask_flows(run_dir)
        shown = sorted_flows(filtered(all_flows, filters or ()), sort)
    except NotRunning as error:
        fail(FAILED, str(error))
    except FlowError as error:
        fail(USAGE, str(error))
    if as_json:
        typer.echo(msgspec.json.encode({"flows": shown}))
    else:
        print_flows(shown, len(all_flows))


def usage(
    by: Annotated[Literal["process", "domain"], typer.Option("--by", help="What is added up.")] = "process",
    days: Annotated[
        int | None, typer.Option("--days", min=1, help="Only the last so many days, today included.")
    ] = None,
    as_json: AsJson = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Show what programs, or destinations, have used; it is kept across restarts."""
    import sqlite3
    from pathlib import Path

    import msgspec

    from engine.control import NotRunning, ask
    from engine.flows_view import print_usage
    from engine.requests import SaveUsage
    from engine.usage import usage_path, usage_totals

    path = usage_path(run_dir)
    try:
        path = Path(ask(run_dir, SaveUsage()).usage_file or path)  # what is not written yet counts too
    except NotRunning:
        pass  # what was kept can be shown all the same
    try:
        totals = usage_totals(path, by, days=days)
    except FileNotFoundError:
        totals = []
    except (sqlite3.Error, OSError) as error:
        fail(FAILED, f"{path} cannot be read: {error}")
    if as_json:
        typer.echo(msgspec.json.encode({"by": by, "totals": totals}))
    else:
        print_usage(totals, by)


def top(run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Watch the running engine: throughput, workers, outbounds, the flows that carry most. Keys: s, /, x, q."""
    import sys

    from engine.control import NotRunning
    from engine.top import run_top

    if not sys.stdin.isatty() or not sys.stdout.isatty():
        fail(USAGE, "engine top needs a terminal; `engine status` and `engine flows` do not")
    try:
        run_top(run_dir)
    except NotRunning as error:
        fail(FAILED, str(error))
    except KeyboardInterrupt:
        pass
