"""Where the HTTP process listens: `--metrics HOST:PORT`, and the rule that nobody but this machine asks without a secret."""

import errno
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from engine.http import HttpOptions

__all__ = [
    "DEFAULT_LISTEN",
    "SECRET_VARIABLE",
    "ListenError",
    "is_loopback",
    "listen",
    "metrics_options",
    "parse_listen",
]

DEFAULT_LISTEN = "127.0.0.1:9464"
SECRET_VARIABLE = "TUNLOOM_SECRET"
"""Environment variable with the secret; on a command line everybody could read it."""
BACKLOG = 128


class ListenError(Exception):
    """The address is wrong or taken; the text is one sentence for the user. `taken`: another program has it."""

    def __init__(self, message: str, *, taken: bool = False) -> None:
        super().__init__(message)
        self.taken = taken


def metrics_options(metrics: str | None, *, secret: str) -> HttpOptions | None:
    """Return what the option --metrics stands for; None: nothing is served. Raises ListenError."""
    if metrics == "off":
        return None
    host, port = parse_listen(metrics or DEFAULT_LISTEN, option="--metrics")
    if not is_loopback(host) and not secret:
        raise ListenError(
            f"--metrics: {host or 'every address'} is not loopback, and there others may ask only with a secret: "
            f"set {SECRET_VARIABLE} in the environment or experimental.clash_api.secret in the configuration"
        )
    return HttpOptions(addresses=((host, port),), is_named=metrics is not None, secret=secret)


def parse_listen(text: str, *, option: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an empty host is every address. `option` is how messages call the setting.

    Raises ListenError.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenError(f"{option}: {text!r}: an IPv6 address stands in brackets, as in [::1]:9464")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ListenError(f"{option}: {text!r} is not HOST:PORT, such as {DEFAULT_LISTEN}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(addresses: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Return a listening socket for each of `addresses`. Raises ListenError; then none stays open."""
    sockets: list[socket.socket] = []
    try:
        for host, port in addresses:
            sockets.append(_listen(host, port))
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def _listen(host: str, port: int) -> socket.socket:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if not host:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            return socket.create_server(("", port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror as error:
        raise ListenError(f"metrics and API: {host!r} is no address of this machine ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ListenError(f"metrics and API: another program listens at {where}", taken=True) from None
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(f"metrics and API: cannot listen at {where} ({reason})") from None
