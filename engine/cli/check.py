"""`engine check`."""

import sys
from typing import Annotated

import typer

from engine.cli.options import USAGE, ConfigFiles, fail, load_files

__all__ = ["check"]


def check(
    config: ConfigFiles = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of configurations instead.")] = False,
) -> None:
    """Check configuration files: errors and warnings with file:line:column, all at once. Exit 0 when they can be used."""
    if schema:
        from engine.config.schema import json_schema

        sys.stdout.write(json_schema())
        return
    if not config:
        fail(USAGE, "-c is missing: name a configuration file, as in `engine check -c config.json`")
    loaded = load_files(config)
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    policy = loaded.policy
    print(
        f"ok: {len(policy.outbounds)} outbounds, {len(policy.route.rules)} rules, {len(policy.route.rule_sets)} rule-sets, "
        f"{len(policy.dns.servers)} DNS servers; what no rule takes goes to {policy.route.final}"
    )
