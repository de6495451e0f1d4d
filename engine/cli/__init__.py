"""The command line: options in, exit codes out (0 done, 1 failed while running, 2 usage, 3 not permitted).

One file a group of commands; each imports what it runs only when it runs, so that `engine status` is quick.
"""

import sys
from typing import Any

import typer

from engine.argument_memory import hide_passwords
from engine.cli.check import check
from engine.cli.demo import demo
from engine.cli.doctor import doctor
from engine.cli.explain import explain
from engine.cli.fetch import fetch
from engine.cli.flows import flows, top, usage
from engine.cli.importing import import_file
from engine.cli.repair import repair
from engine.cli.run import run
from engine.cli.running import reload, status, stop
from engine.cli.service import service
from engine.cli.start import start

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carries every TCP and UDP flow of this machine to your SOCKS5 proxy.",
)
for command in (start, stop, reload, status, flows, top, usage, check, explain, fetch, demo, doctor, repair):
    app.command()(command)
# What follows the command belongs to the command: `engine run curl -v` is `engine run -- curl -v`.
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command("import")(import_file)
app.add_typer(service, name="service")


def main() -> Any:
    """Entry point of the commands `engine` and `tunloom`."""
    hide_passwords(sys.argv[1:])  # before anything else: as long as they are there, `ps` shows them
    return app()
