"""The proxy of a command that names none."""

import asyncio
import logging
from typing import TYPE_CHECKING

from engine.cli.options import USAGE, fail
from shared.config import ProxyConfig

if TYPE_CHECKING:
    from engine.discovery import Found

__all__ = ["discovered_proxy"]

log = logging.getLogger(__name__)


def discovered_proxy(command: str) -> ProxyConfig:
    """Look for a proxy on this machine, say what there is and what was chosen; exit 2 when nothing can be used.

    `command` is what the user typed, for the advice.
    """
    from engine.discovery.search import discover, report
    from engine.users import WORKER_UID

    log.info("no proxy is named: looking for one on this machine (environment, settings, listening programs)")
    discovery = asyncio.run(discover(own_uid=WORKER_UID))
    for line in report(discovery):
        log.info("%s", line)
    chosen = discovery.chosen
    if chosen is None:
        fail(USAGE, _advice(command, discovery.found))
    log.info("using %s (%s)", chosen, discovery.found[0].candidate.origin)
    return chosen


def _advice(command: str, found: tuple["Found", ...]) -> str:
    """One sentence: why there is no proxy to use, and what to do."""
    for one in found:
        if not one.speech.trouble and not one.ours:
            where = str(one.candidate.proxy).rpartition("@")[2].rpartition("//")[2]
            return (
                f"the proxy at {where} ({one.candidate.origin}) does not let us in without a password that it knows: "
                f"give it in the environment, TUNLOOM_PROXY=socks5://USER:PASSWORD@{where}, and say `{command}` again"
            )
    for one in found:
        if not one.ours:
            return (
                f"{one.candidate.origin} leads to {one.candidate.proxy}, which is no working proxy ({one.speech.trouble}): "
                f"start it, or name another: `{command} --proxy socks5://127.0.0.1:1080`"
            )
    return (
        "no proxy was found: neither the environment nor the system settings name one, and no program known as one listens "
        f"here; start yours, or name it: `{command} --proxy socks5://127.0.0.1:1080`"
    )
