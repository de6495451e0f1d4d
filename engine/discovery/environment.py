"""Proxy settings in environments. Under sudo ours is bare, so those of the programs that led to us are read too.

Names and their meaning are those of curl and Python: the lower-case name counts first, a value without scheme is HTTP.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from engine.discovery import Candidate, Source
from engine.processes import proc
from engine.proxy_url import ProxyUrlError, parse_proxy_url

__all__ = ["environment_candidates", "parse_environment", "parse_environment_file", "sudo_uid"]

VARIABLES = ("all_proxy", "socks_proxy", "https_proxy", "http_proxy")
"""The most general one first: the others are about HTTP alone."""
DEFAULT_PORT = 1080  # curl's, whatever the scheme
ETC_ENVIRONMENT = Path("/etc/environment")


def environment_candidates() -> tuple[list[Candidate], list[str]]:
    """Return the proxies that environments name, the nearest environment first, and remarks about values not understood."""
    candidates: list[Candidate] = []
    remarks: list[str] = []
    for environment, whose in _environments():
        found, bad = parse_environment(environment, whose)
        candidates += found
        remarks += bad
    return candidates, list(dict.fromkeys(remarks))


def parse_environment(environment: Mapping[str, str], whose: str) -> tuple[list[Candidate], list[str]]:
    """Return the proxies that one environment names, and remarks. `whose` completes `all_proxy ...`; it may be empty."""
    candidates: list[Candidate] = []
    remarks: list[str] = []
    for variable in VARIABLES:
        for name in variable, variable.upper():
            value = environment.get(name, "").strip()
            if not value:
                continue
            origin = f"{name} {whose}".strip()
            try:
                proxy = parse_proxy_url(_as_proxy_url(value))
            except ProxyUrlError as error:
                remarks.append(f"{origin} is not understood: {str(error).removeprefix('--proxy: ')}")
                break
            if value.rstrip("/").rpartition(":")[2].isdecimal() is False:
                proxy = msgspec.structs.replace(proxy, port=DEFAULT_PORT)
            candidates.append(Candidate(Source.ENVIRONMENT, origin, proxy))
            break
    return candidates, remarks


def _as_proxy_url(value: str) -> str:
    """Return the value as --proxy takes it. `https` is what many write for an HTTP proxy that carries HTTPS."""
    scheme, separator, rest = value.partition("://")
    if not separator:
        return f"http://{value}"
    return f"http://{rest}" if scheme.lower() == "https" else value


def parse_environment_file(text: str) -> dict[str, str]:
    """Return the variables of /etc/environment (pam_env(8)): NAME=VALUE lines, perhaps with `export` and quotes."""
    variables = {}
    for line in text.splitlines():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            variables[name.strip()] = value
    return variables


def sudo_uid() -> int | None:
    """Return the user who became root by sudo or pkexec; None when nobody did."""
    for name in "SUDO_UID", "PKEXEC_UID":
        if os.environ.get(name, "").isdecimal() and os.environ[name] != "0":
            return int(os.environ[name])
    return None


def _environments() -> Iterator[tuple[Mapping[str, str], str]]:
    yield os.environ, ""
    for pid in _ancestors_up_to_the_user():
        # That of sudo itself is what its caller had: /proc shows an environment as it was when the program started.
        yield _environment_of(pid), f"of {_name_of(pid)} (pid {pid}), which led to this command"
    uid = sudo_uid()
    if uid is not None:
        # The oldest ids first: the session's own come before what runs in it.
        for pid in sorted(pid for pid in proc.pids() if proc.uid_of(pid) == uid):
            yield _environment_of(pid), f"of {_name_of(pid)} (pid {pid}), of the user behind sudo"
    try:
        yield parse_environment_file(ETC_ENVIRONMENT.read_text(errors="replace")), f"in {ETC_ENVIRONMENT}"
    except OSError:
        pass


def _ancestors_up_to_the_user() -> list[int]:
    """Return our ancestors up to the first one of another user: sudo, and the shell it was typed in.

    Without a change of user there is nothing to learn: what they had and we have not, somebody took away on purpose.
    """
    ancestors = proc.ancestors(os.getpid())
    for number, pid in enumerate(ancestors):
        if proc.uid_of(pid) not in (os.geteuid(), None):
            return ancestors[: number + 1]
    return []


def _environment_of(pid: int) -> dict[str, str]:
    try:
        parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(part).partition("=") for part in parts)
    return {name: value for name, _, value in pairs if name}


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "a program that is gone"
