"""`engine doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from engine.cli.options import DEFAULT_RUN_DIR, FAILED, USAGE, AsJson, ConfigFiles, RunDir, cores, fail, load_files
from engine.cli.proxy_option import named_proxy, password_warnings

if TYPE_CHECKING:
    from engine.config.model import EngineConfig
    from engine.doctor import Finding

__all__ = ["doctor"]

MARKS = {"ok": "[green]ok[/]", "note": "[blue]note[/]", "warning": "[yellow]warning[/]", "error": "[red]ERROR[/]"}


def doctor(
    config: ConfigFiles = None,
    proxy: Annotated[
        str | None,
        typer.Option("--proxy", help="Examine this one. [default: that of -c, or the one that is found here]"),
    ] = None,
    as_json: AsJson = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
    netns: Annotated[str | None, typer.Option("--netns", help="Look at this network namespace.")] = None,
) -> None:
    """Say what is wrong with this machine or its proxy, and how to mend it. Exit 1 when something must be mended first."""
    from engine.doctor.examine import examine
    from engine.netns import NetnsError, enter_netns

    try:
        if netns is not None:
            enter_netns(netns)
    except NetnsError as error:
        fail(USAGE, str(error))
    wanted = _configuration(config, proxy)
    workers = (wanted.workers if wanted is not None else None) or cores()
    findings = [*_password(proxy), *examine(wanted, workers=workers, run_dir=run_dir)]
    well = all(finding.level != "error" for finding in findings)
    if as_json:
        typer.echo(msgspec.json.encode({"ok": well, "findings": findings}))
    else:
        _print(findings)
    raise SystemExit(0 if well else FAILED)


def _configuration(files: list[Path] | None, proxy: str | None) -> "EngineConfig | None":
    from engine.config.named_proxy import for_proxy, with_proxy

    named = named_proxy(proxy)
    if files:
        loaded = load_files(files)
        return loaded if named is None else with_proxy(loaded, named)
    if named is None:
        import asyncio

        from engine.discovery.search import discover
        from engine.users import WORKER_UID

        named = asyncio.run(discover(own_uid=WORKER_UID)).chosen
    return for_proxy(named) if named is not None else None


def _password(proxy: str | None) -> "list[Finding]":
    from engine.doctor import Finding

    parts = (warning.partition(": ") for warning in password_warnings(proxy))
    return [Finding("password", "note", text, mend) for text, _, mend in parts]


def _print(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for finding in findings:
        console.print(f"{MARKS[finding.level]}  [bold]{finding.check}[/]: {escape(finding.text)}", soft_wrap=True)
        if finding.mend and finding.level != "ok":
            console.print(f"      -> {escape(finding.mend)}", soft_wrap=True)
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
