"""The --proxy URL: socks5://[user:pass@]host[:port], socks5h, socks4, socks4a, http."""

import ipaddress
import socket
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec

from shared.config import ProxyConfig

__all__ = ["ProxyUrlError", "parse_proxy_url", "resolve_proxy"]

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


def resolve_proxy(proxy: ProxyConfig) -> ProxyConfig:
    """Return `proxy` with its addresses, looked up while the machine's own routes are still in force. Raises ProxyUrlError."""
    try:
        found = socket.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid name"
        raise ProxyUrlError(
            f"--proxy: the host {proxy.host!r} cannot be resolved ({reason}); is it spelled right?"
        ) from None
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if parsed.is_unspecified or parsed.is_multicast:
            raise ProxyUrlError(f"--proxy: {address} is not the address of a proxy; a local one is 127.0.0.1")
    return msgspec.structs.replace(proxy, addresses=addresses)
