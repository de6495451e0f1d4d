"""Who may ask: the checks that stand before every route. Pure: headers in, a refusal or None out.

Host    an address, `localhost`, or a name of this machine. A page of evil.example whose name was made to point at
        127.0.0.1 (DNS rebinding) is sent by its browser with Host: evil.example, and refused.
Origin  what a browser says of the page that asks: this server's own pages, pages of this machine (loopback), and what the
        configuration lists. Programs send none.
secret  `Authorization: Bearer SECRET`, or `?token=SECRET` of a websocket, which cannot have headers. Compared in constant time.
"""

import hmac
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from engine.http.listen import is_loopback

__all__ = ["Access", "Refused"]

ANY_ORIGIN = "*"


@dataclass(frozen=True, slots=True)
class Refused:
    """The status to answer with, and why."""

    status: int
    reason: str


class Access:
    """The rules of one run. `secret` empty: there is none. `origins`: more that may ask; `*` is all. `names`: of this machine."""

    def __init__(self, *, secret: str, origins: Sequence[str] = (), names: Sequence[str] = ()) -> None:
        self._secret = secret.encode()
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        own = socket.gethostname().lower()
        self._names = frozenset({"localhost", own, own.partition(".")[0], *(name.lower() for name in names)})

    def check_source(self, host: str | None, origin: str | None) -> Refused | None:
        """Check the headers Host and Origin, None when they are missing."""
        if host is None or not self._is_own(_host_name(host)):
            return Refused(403, "the header Host names neither an address nor this machine")
        if origin is not None and not self.allows(origin, host):
            return Refused(403, f"pages of {origin} may not ask: see access_control_allow_origin")
        return None

    def allows(self, origin: str, host: str | None) -> bool:
        """Whether a page of `origin` may ask a server that it calls `host`."""
        origin = origin.lower()
        if ANY_ORIGIN in self._origins or origin in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or name is None:
            return False
        return is_loopback(name) or (host is not None and parts.netloc == host.lower())

    def check_secret(self, authorization: str | None, token: str | None) -> Refused | None:
        """Check the header Authorization and the query's token, None when they are missing."""
        if not self._secret:
            return None
        scheme, _, credentials = (authorization or "").partition(" ")
        given = credentials if scheme.lower() == "bearer" else token or ""
        if hmac.compare_digest(given.encode(errors="surrogateescape"), self._secret):  # headers are any bytes
            return None
        return Refused(401, "the secret is missing or wrong")

    def _is_own(self, name: str) -> bool:
        try:
            ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _host_name(host: str) -> str:
    """Return the host of a Host header, without port and brackets, in lower case; empty when it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
