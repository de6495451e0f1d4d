"""The --proxy URL: socks5://[user:pass@]host[:port], socks5h, socks4, socks4a, http."""

from typing import Literal
from urllib.parse import unquote, urlsplit

from shared.config import ProxyConfig

__all__ = ["ProxyUrlError", "parse_proxy_url"]

_KINDS: dict[str, Literal["socks5", "socks4", "http"]] = {
    "socks5": "socks5",
    "socks5h": "socks5",
    "socks": "socks5",  # curl's word, and what most programs mean by it
    "socks4": "socks4",
    "socks4a": "socks4",
    "http": "http",
}
_PORTS = {"socks5": 1080, "socks4": 1080, "http": 8080}
_CREDENTIAL_MAX = 255  # bytes, RFC 1929 (2)


class ProxyUrlError(Exception):
    """The URL cannot be used; the text is one sentence that names the mend, without the password."""


def parse_proxy_url(url: str) -> ProxyConfig:
    """Return the proxy that `url` names; its addresses are not resolved yet. Raises ProxyUrlError."""
    if "://" not in url:
        url = f"socks5://{url}"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ProxyUrlError(
            "--proxy: the host is not understood; an IPv6 address stands in brackets, as in socks5://[2001:db8::1]:1080"
        ) from None
    try:
        port = parts.port
    except ValueError:
        raise ProxyUrlError(
            "--proxy: the port must be a number from 1 to 65535, as in socks5://127.0.0.1:1080"
        ) from None
    kind = _KINDS.get(parts.scheme.lower())
    if kind is None:
        known = ", ".join(_KINDS)
        raise ProxyUrlError(f"--proxy: {parts.scheme!r} is not a kind of proxy known here; use one of {known}")
    if not parts.hostname:
        raise ProxyUrlError("--proxy: the host is missing; write it as in socks5://127.0.0.1:1080")
    if port == 0:
        raise ProxyUrlError("--proxy: the port must be a number from 1 to 65535, as in socks5://127.0.0.1:1080")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ProxyUrlError(
            "--proxy: nothing may follow the port (a '/', '?' or '#' in a password is written %2F, %3F, %23)"
        )
    username, password = _credentials(parts.username, parts.password, kind)
    return ProxyConfig(kind=kind, host=parts.hostname, port=port or _PORTS[kind], username=username, password=password)


def _credentials(username: str | None, password: str | None, kind: str) -> tuple[str | None, str | None]:
    if username is None:
        return None, None
    try:
        username, password = (unquote(text, errors="strict") for text in (username, password or ""))
        username.encode(), password.encode()
    except UnicodeError:
        raise ProxyUrlError("--proxy: user name and password must be UTF-8, also behind their %-escapes") from None
    if kind == "socks5":
        for name, value in (("user name", username), ("password", password)):
            if not 1 <= len(value.encode()) <= _CREDENTIAL_MAX:
                raise ProxyUrlError(f"--proxy: SOCKS5 wants a {name} of 1 to {_CREDENTIAL_MAX} bytes (RFC 1929)")
    return username, password
