"""`engine repair`."""

import asyncio
from typing import Annotated

import typer

from engine.cli.options import DEFAULT_RUN_DIR, FAILED, RunDir, fail, need_root

__all__ = ["repair"]


def repair(
    run_dir: RunDir = DEFAULT_RUN_DIR,
    hold: Annotated[
        bool, typer.Option("--hold", help="Leave a kill switch closed: the engine will be started again.")
    ] = False,
) -> None:
    """Undo what an engine that crashed may have left in the network."""
    from engine.netconf import NetworkError
    from engine.netconf.network import repair_network
    from engine.run_dir import RunDirError, lock_run_dir

    need_root("engine repair", "changes routes")
    try:
        with lock_run_dir(run_dir):  # a running engine's changes are no leftovers
            changes = asyncio.run(repair_network(run_dir, hold=hold))
    except (NetworkError, RunDirError) as error:
        fail(FAILED, str(error))
    typer.echo(f"{changes} changes undone" if changes else "nothing to repair")
