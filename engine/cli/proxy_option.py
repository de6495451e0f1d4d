"""The proxy that a command is told: by --proxy, or, where a password is not to be read by others, by TUNLOOM_PROXY."""

from typing import TYPE_CHECKING

from engine.argument_memory import password_of, take_variable
from engine.cli.options import USAGE, fail

if TYPE_CHECKING:
    from shared.config import ProxyConfig

__all__ = ["PROXY_VARIABLE", "named_proxy", "password_warnings"]

PROXY_VARIABLE = "TUNLOOM_PROXY"


def named_proxy(option: str | None) -> "ProxyConfig | None":
    """Return the proxy of --proxy, or else of the environment; None when neither names one. Exit 2 when it cannot be used.

    The variable is taken away: nothing that is started from now on has it.
    """
    from engine.proxy_url import ProxyUrlError, parse_proxy_url

    variable = take_variable(PROXY_VARIABLE)
    url = option if option is not None else variable
    if url is None:
        return None
    try:
        return parse_proxy_url(url)
    except ProxyUrlError as error:
        fail(USAGE, str(error) if option is not None else str(error).replace("--proxy", PROXY_VARIABLE, 1))


def password_warnings(option: str | None) -> tuple[str, ...]:
    """Return what to say about a password in --proxy: nothing without one."""
    if option is None or not password_of(option):
        return ()
    return (
        "the password in --proxy could be read by every user when the engine was started, and stays in the shell's history: "
        f"name the proxy in the environment ({PROXY_VARIABLE}), or in a file that is yours alone (-c)",
    )
