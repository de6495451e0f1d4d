"""`engine fetch`."""

import sys
from typing import Annotated

import typer

from engine.cli.options import FAILED, USAGE, ConfigFiles, fail, refuse

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
    from engine.proxy_url import ProxyUrlError, parse_proxy_url

    if not config:
        fail(USAGE, "-c is missing: name a configuration file, as in `engine fetch -c config.json`")
    try:
        named = parse_proxy_url(proxy) if proxy is not None else None
        wanted = wanted_files(expand(config))
    except ProxyUrlError as error:
        fail(USAGE, str(error))
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
