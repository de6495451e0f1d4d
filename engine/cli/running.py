"""Commands that talk to the running engine: stop, reload, status."""

from typing import Annotated

import typer

from engine.cli.options import DEFAULT_RUN_DIR, FAILED, USAGE, WORKERS_MAX, AsJson, RunDir, fail

__all__ = ["reload", "status", "stop"]

RELOAD_TIMEOUT = 90.0  # seconds; names are looked up, and a resolver that does not answer takes its time


def stop(run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Stop the running engine and wait until everything is put back; undo what is left of one that crashed."""
    from engine.control import NotRunning, ask
    from engine.netconf.journal import has_journal
    from engine.requests import Stop
    from engine.run_dir import wait_until_unlocked

    try:
        ask(run_dir, Stop())
        wait_until_unlocked(run_dir)
    except NotRunning as error:
        if not has_journal(run_dir):
            fail(FAILED, str(error))
        # Whoever says stop wants what a crash has left, above all a closed kill switch, to be gone.
        from engine.cli.repair import repair

        repair(run_dir)
    else:
        typer.echo("stopped")


def reload(
    run_dir: RunDir = DEFAULT_RUN_DIR,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=WORKERS_MAX, help="So many new workers take over; flows live on."),
    ] = None,
    new_workers: Annotated[
        bool,
        typer.Option("--new-workers", help="As many new workers take over, with the code that is installed now."),
    ] = False,
) -> None:
    """Let new flows follow the configuration as it stands in its files now; exit 2 when it has errors, and nothing changes.

    Exit 1 when new workers do not come up: those before them go on.
    """
    from engine.control import NotRunning, ask
    from engine.requests import Reload

    try:
        reply = ask(run_dir, Reload(workers, new_workers), timeout=RELOAD_TIMEOUT)
    except NotRunning as error:
        fail(FAILED, str(error))
    if reply.reloaded is None:
        fail(FAILED, reply.error or "the engine did not reload")
    for line in (*reply.reloaded.errors, *reply.reloaded.remarks):
        typer.echo(line, err=True)
    if reply.reloaded.errors:
        fail(USAGE, "not reloaded: the engine goes on with what it had")
    if reply.reloaded.failure:
        fail(FAILED, f"the workers stay as they are: {reply.reloaded.failure}")
    typer.echo(f"reloaded, {reply.reloaded.workers} new workers" if reply.reloaded.workers else "reloaded")


def status(as_json: AsJson = False, run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Show what the running engine does, per worker."""
    import msgspec

    from engine.control import NotRunning, ask
    from engine.requests import Status

    try:
        reply = ask(run_dir, Status())
    except NotRunning as error:
        fail(FAILED, str(error))
    if reply.status is None:
        fail(FAILED, reply.error or "the engine gave no status")
    if as_json:
        typer.echo(msgspec.json.encode(reply.status))
        return
    from engine.status_view import print_status

    print_status(reply.status)
