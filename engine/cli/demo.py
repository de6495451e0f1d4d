"""`engine demo`."""

from pathlib import Path
from typing import Annotated

import typer

from engine.cli.options import FAILED, AsJson, Workers, cores, fail, need_root

__all__ = ["demo"]

NAMESPACE = Path("/proc/self/ns/net")


def demo(
    workers: Workers = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, max=600, help="Length of each throughput test.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Try the whole path on an embedded proxy in private namespaces; nothing of this machine is touched."""
    if not NAMESPACE.exists():
        fail(FAILED, "engine demo needs network namespaces, which Linux alone has: try `engine start` itself")
    from engine.demo.run import run_demo

    need_root("engine demo", "makes network namespaces and a tun device")
    raise typer.Exit(run_demo(workers=workers or cores(), seconds=seconds, as_json=as_json))
