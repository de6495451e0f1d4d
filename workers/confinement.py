"""What a worker needs once its privileges are gone: libraries, the resolver's files, the authorities of TLS, and sockets."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from shared.confinement import library_paths
from shared.system import confine

__all__ = ["confine_worker"]

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVERS = ("/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman")
AUTHORITIES = ("/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/var/lib/ca-certificates")
"""Where the links of /etc/ssl lead to."""


def confine_worker() -> None:
    """Give up all else. Raises OSError."""
    confine([*library_paths(), *_resolver(), *_authorities()], sockets=True)


def _resolver() -> Iterator[Path]:
    yield Path("/etc")  # all of it: who changes resolv.conf or hosts may put a new file in its place
    yield from map(Path, RESOLVERS)
    behind = Path(os.path.realpath(RESOLV_CONF))
    yield behind if behind.parent in (Path("/"), Path("/run")) else behind.parent


def _authorities() -> Iterator[Path]:
    found = ssl.get_default_verify_paths()
    for place in (found.cafile, found.capath, found.openssl_cafile, found.openssl_capath, *AUTHORITIES):
        if place:
            yield Path(place)
