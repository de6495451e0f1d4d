"""`engine demo`."""

from typing import Annotated

import typer

from engine.cli.options import AsJson, Workers, cores, need_root

__all__ = ["demo"]


def demo(
    workers: Workers = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, max=600, help="Length of each throughput test.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Try the whole path on an embedded proxy in private namespaces; nothing of this machine is touched."""
    from engine.demo.run import run_demo

    need_root("engine demo", "makes network namespaces and a tun device")
    raise typer.Exit(run_demo(workers=workers or cores(), seconds=seconds, as_json=as_json))
