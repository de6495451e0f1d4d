"""Wipes secrets out of what others can see of this process: its arguments, which `ps` shows everybody, and its environment.

Linux shows both as they lie in memory, at addresses that /proc/self/stat tells (proc_pid_stat(5)): what is overwritten there is
gone for everybody who looks later. macOS has no such file; there nothing is wiped.
"""

import os
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

__all__ = ["hide_passwords", "password_of", "take_variable"]

ARGUMENTS, ENVIRONMENT = 45, 47
"""Where arg_start and env_start stand among the fields behind the name; arg_end and env_end follow."""
STAR = ord("*")


def hide_passwords(arguments: Sequence[str]) -> None:
    """Overwrite the passwords of the URLs that follow --proxy, in the arguments as others see them."""
    for url in _proxies(arguments):
        password = password_of(url)
        at = os.fsencode(url).rfind(os.fsencode(f":{password}@"))
        if password and at >= 0:
            _overwrite(ARGUMENTS, os.fsencode(url), at + 1, len(os.fsencode(password)))


def take_variable(name: str) -> str | None:
    """Return a variable of the environment, and remove it: no child is to inherit it, and nobody to read it in /proc."""
    value = os.environ.pop(name, None)
    if value:
        _overwrite(ENVIRONMENT, os.fsencode(f"{name}={value}"), len(name) + 1, len(os.fsencode(value)))
    return value


def password_of(url: str) -> str:
    """Return the password in a proxy URL as it is written there; empty without one."""
    try:
        parts = urlsplit(url if "://" in url else f"socks5://{url}")
    except ValueError:  # whoever uses it will say what is wrong
        return ""
    return parts.password or ""


def _proxies(arguments: Iterable[str]) -> list[str]:
    found = []
    before = ""
    for argument in arguments:
        if before == "--proxy":
            found.append(argument)
        elif argument.startswith("--proxy="):
            found.append(argument.partition("=")[2])
        before = argument
    return found


def _overwrite(region: int, text: bytes, at: int, length: int) -> None:
    """Replace so many bytes by stars, `at` bytes into `text`, wherever a region has that."""
    import ctypes  # most commands have nothing to hide, and are to be quick

    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return
    start, end = int(fields[region]), int(fields[region + 1])
    if not start:  # hidden from us
        return
    memory = ctypes.string_at(start, end - start)
    found = memory.find(text)
    while found >= 0:
        ctypes.memset(start + found + at, STAR, length)
        found = memory.find(text, found + len(text))
