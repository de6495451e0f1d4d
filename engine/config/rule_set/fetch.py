"""Fetches the files of remote rule-sets, through the proxy of the configuration. Nothing else in the engine fetches anything."""

import http.client
import os
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from socket import socket
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from python_socks import ProxyError, ProxyType
from python_socks.sync import Proxy

from engine.config.build.machine import this_machine
from engine.config.decode import decode
from engine.config.dialect import DialectError, Object, decode_text, parse
from engine.config.load import read_tree
from engine.config.options.outbound import HttpOptions, SocksOptions
from engine.config.options.route import FileOptions, RemoteRuleSetOptions
from engine.config.problems import Problems, Report, Sources
from engine.config.rule_set.files import format_of, remote_path
from engine.config.rule_set.srs import RuleSetError, decode_srs
from shared.config import ProxyConfig

__all__ = ["FetchError", "Wanted", "fetch", "wanted_files"]

TIMEOUT = 30.0  # seconds for a connection, and for each piece of an answer
REDIRECTS_MAX = 5
SIZE_MAX = 64 * 1024 * 1024
"""Bytes of a file; the largest published set has about 10 MB."""


class FetchError(Exception):
    """A file could not be fetched; the text is one sentence."""


class Wanted(NamedTuple):
    """A file that a configuration names."""

    tag: str
    url: str
    path: Path
    """Where it goes."""
    format: str
    proxy: ProxyConfig | None
    """None: fetched directly."""


def wanted_files(paths: Iterable[Path]) -> list[Wanted]:
    """Return what the remote rule-sets of a configuration need. Raises ConfigError when it cannot be read at all."""
    problems = Problems(Sources())
    tree = read_tree(paths, problems, this_machine())
    problems.raise_errors()
    # Only these parts of it are looked at; what is wrong with the rest, `engine check` tells.
    options = decode(FileOptions, tree, (), Report(Problems(problems.sources), tree))
    proxies: dict[str, ProxyConfig | None] = {}
    for index, outbound in enumerate(options.outbounds):
        proxies[outbound.tag or str(index)] = (
            _proxy(outbound) if isinstance(outbound, SocksOptions | HttpOptions) else None
        )
    default = options.route.final or next(iter(proxies), "")
    return [
        Wanted(
            tag=option.tag,
            url=option.url,
            path=remote_path(option, options.engine.rule_set_dir),
            format=format_of(option.format, option.url) or "binary",
            proxy=proxies.get(option.download_detour or default),
        )
        for option in options.route.rule_set
        if isinstance(option, RemoteRuleSetOptions) and option.url
    ]


def _proxy(options: SocksOptions | HttpOptions) -> ProxyConfig | None:
    if isinstance(options, HttpOptions):
        return ProxyConfig("http", options.server, options.server_port, options.username, options.password)
    kind = "socks5" if options.version == "5" else "socks4"
    return ProxyConfig(kind, options.server, options.server_port, options.username, options.password)  # type: ignore[arg-type]


def fetch(wanted: Wanted) -> int:
    """Fetch one file, look at it, and put it in its place at once; return its size in bytes. Raises FetchError."""
    data = _download(wanted.url, wanted.proxy)
    _check(wanted, data)
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=wanted.path.parent, prefix=f".{wanted.path.name}", delete=False) as file:
            file.write(data)
        os.chmod(file.name, 0o644)
        os.replace(file.name, wanted.path)
    except OSError as error:
        raise FetchError(f"{wanted.path} cannot be written: {error.strerror}") from None
    return len(data)


def _check(wanted: Wanted, data: bytes) -> None:
    try:
        if wanted.format == "binary":
            decode_srs(data)
        elif not isinstance(parse(decode_text(data)), Object):
            raise RuleSetError("it is not an object in { }")
    except (RuleSetError, DialectError) as error:
        raise FetchError(f"what {wanted.url} gave is no rule-set: {error}") from None


def _download(url: str, proxy: ProxyConfig | None) -> bytes:
    for _ in range(REDIRECTS_MAX + 1):
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError(f"{url!r} is no address of a file: it begins with http:// or https://")
        try:
            connection = http.client.HTTPConnection(parts.hostname, port, timeout=TIMEOUT)
            connection.sock = _connect(parts.scheme, parts.hostname, port, proxy)
            target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            connection.request("GET", target, headers={"User-Agent": "tunloom", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            data = answer.read(SIZE_MAX + 1)
            connection.close()
        except (OSError, http.client.HTTPException, ProxyError, UnicodeError) as error:
            raise FetchError(f"{url} cannot be fetched: {error or type(error).__name__}") from None
        location = answer.headers.get("Location")
        if answer.status in (301, 302, 303, 307, 308) and location:
            url = urljoin(url, location)
            continue
        if answer.status != 200:
            raise FetchError(f"{url} cannot be fetched: the server says {answer.status} {answer.reason}")
        if len(data) > SIZE_MAX:
            raise FetchError(f"{url} is larger than {SIZE_MAX >> 20} MiB")
        return data
    raise FetchError(f"{url} cannot be fetched: more than {REDIRECTS_MAX} redirects")


def _connect(scheme: str, host: str, port: int, proxy: ProxyConfig | None) -> socket:
    if proxy is None:
        made = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        made.connect()
        plain = made.sock
    else:
        kinds = {"socks5": ProxyType.SOCKS5, "socks4": ProxyType.SOCKS4, "http": ProxyType.HTTP}
        client = Proxy(kinds[proxy.kind], proxy.host, proxy.port, proxy.username, proxy.password, rdns=True)
        plain = client.connect(host, port, timeout=TIMEOUT)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
