"""How long an outbound takes to fetch a URL: connection, TLS, request, first line of the answer."""

import asyncio
import ssl
from time import monotonic
from urllib.parse import urlsplit

from workers.upstream import Outbound, UpstreamError

__all__ = ["FetchFailed", "measure"]

_HEADER_MAX = 64 * 1024


class FetchFailed(Exception):
    """Nothing came back through the outbound; the text says why."""


async def measure(outbound: Outbound, url: str, timeout: float, tls: ssl.SSLContext) -> float:
    """Return the seconds from the first packet to the answer's status line, whatever the status. Raises FetchFailed.

    HEAD, as sing-box does: nothing but headers come back.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_tls = parts.scheme == "https"
    try:
        port = parts.port or (443 if is_tls else 80)
    except ValueError as error:
        raise FetchFailed(f"{url}: {error}") from error
    began = monotonic()
    try:
        async with asyncio.timeout(timeout):
            sock = await outbound.connect(host, port, [])
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=tls if is_tls else None, server_hostname=host if is_tls else None, limit=_HEADER_MAX
            )
            try:
                target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
                authority = parts.netloc.rpartition("@")[2]
                writer.write(
                    f"HEAD {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: tunloom\r\nConnection: close\r\n\r\n".encode()
                )
                line = await reader.readline()
            finally:
                writer.transport.abort()
    except UpstreamError as error:
        raise FetchFailed(str(error)) from error
    except TimeoutError as error:
        raise FetchFailed(f"no answer within {timeout:g} s") from error
    except (OSError, ssl.SSLError, ValueError) as error:
        raise FetchFailed(str(error)) from error
    if not line.startswith(b"HTTP/"):
        raise FetchFailed(
            "what answered does not speak HTTP" if line else "the connection was closed without an answer"
        )
    return monotonic() - began
