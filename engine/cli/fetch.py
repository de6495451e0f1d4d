"""`engine fetch`."""

import sys
from typing import Annotated

import typer

from engine.cli.options import FAILED, USAGE, ConfigFiles, fail, refuse
from engine.cli.proxy_option import named_proxy, password_warnings

__all__ = ["fetch"]


def fetch(
    config: ConfigFiles = None,
    proxy: Annotated[
        str | None, typer.Option("--proxy", help="Fetch through this one. [default: that of the configuration]")
    ] = None,
) -> None:
    """Fetch the files of remote rule-sets, through the proxy of the configuration, and put them where it looks for them."""
    from engine.config.load import expand
    from engine.config.problems import ConfigError
    from engine.config.rule_set.fetch import FetchError, wanted_files
    from engine.config.rule_set.fetch import fetch as fetch_file

    if not config:
        fail(USAGE, "-c is missing: name a configuration file, as in `engine fetch -c config.json`")
    named = named_proxy(proxy)
    for warning in password_warnings(proxy):
        print(f"engine: {warning}", file=sys.stderr)
    try:
        wanted = wanted_files(expand(config))
    except OSError as error:
        fail(USAGE, f"-c {error.filename}: {error.strerror}")
    except ConfigError as error:
        refuse(error)
    failed = 0
    for one in wanted:
        try:
            size = fetch_file(one if named is None else one._replace(proxy=named))
        except FetchError as error:
            print(f"{one.tag}: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{one.tag}: {one.path} ({size} bytes)")
    if not wanted:
        print("nothing to fetch: the configuration has no remote rule-set")
    if failed:
        fail(FAILED, f"{failed} of {len(wanted)} rule-sets could not be fetched")
