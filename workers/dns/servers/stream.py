"""Servers spoken to over a connection: how one is opened, kept, and replaced (RFC 7766 section 6.2, RFC 7858, RFC 8484).

All questions share one connection, and none waits for another's answer. What a connection is like is the matter of framed.py
(TCP, TLS) and https.py.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from time import monotonic

from workers.dns import ConnectionLost, ServerFailed
from workers.dns.servers.connection import Connection
from workers.upstream import UpstreamError

__all__ = ["StreamServer", "tls_context"]

REUSED_TIMEOUT = 2.5
"""Seconds without a single byte after which a kept connection is taken for dead: the network may have changed under it."""


class StreamServer:
    """One server over TCP, TLS or HTTPS. `dial` opens a socket to it, and raises UpstreamError."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        dial: Callable[[], Awaitable[socket.socket]],
        make: Callable[[], Connection],
        *,
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
    ) -> None:
        self._loop = loop
        self._name = name
        self._dial = dial
        self._make = make
        self._tls = tls
        self._tls_name = tls_name
        self._connection: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None

    async def exchange(self, message: bytes) -> bytes:
        """Return the answer to a message, whose identifier is of no interest here. Raises ServerFailed."""
        connection = self._connection
        if connection is not None and connection.usable:
            try:
                return await self._ask_kept(connection, message)
            except ConnectionLost:
                pass  # a server may close what has been idle whenever it likes (RFC 7766 6.2.4)
        try:
            return await (await self._opened()).ask(message)
        except ConnectionLost as error:
            raise ServerFailed(f"{self._name} closed the connection without an answer") from error

    async def _ask_kept(self, connection: Connection, message: bytes) -> bytes:
        """Ask over a connection that was open already. Raises ConnectionLost when nothing at all comes over it."""
        asked_at = monotonic()
        asking = self._loop.create_task(connection.ask(message), name="dns ask")
        try:
            await asyncio.wait((asking,), timeout=REUSED_TIMEOUT)
            if not asking.done() and connection.heard_at < asked_at:
                connection.abort()
            return await asking
        finally:
            asking.cancel()

    async def _opened(self) -> Connection:
        """Return a fresh connection; all who want one meanwhile wait for the same."""
        if self._opening is None:
            self._opening = self._loop.create_task(self._open(), name="dns connect")
            self._opening.add_done_callback(self._on_opened)
        # Whoever loses patience gives up alone.
        return await asyncio.shield(self._opening)

    def _on_opened(self, task: asyncio.Task[Connection]) -> None:
        self._opening = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()

    async def _open(self) -> Connection:
        try:
            sock = await self._dial()
        except UpstreamError as error:
            raise ServerFailed(f"{self._name} cannot be reached: {error}") from error
        try:
            _, connection = await self._loop.create_connection(
                self._make,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._tls_name if self._tls is not None else None,
            )
        except ssl.SSLCertVerificationError as error:
            raise ServerFailed(
                f"{self._name} has no certificate for {self._tls_name}: {error.verify_message}"
            ) from error
        except (OSError, ssl.SSLError) as error:
            raise ServerFailed(f"{self._name} closed the connection: {error}") from error
        except BaseException:
            sock.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection, also one that is being opened."""
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


def tls_context(protocol: str, *, certificate: str | None, insecure: bool) -> ssl.SSLContext:
    """Return a context that offers `protocol` (ALPN) and trusts `certificate` (PEM), or the system's authorities."""
    context = ssl.create_default_context(cadata=certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8310 section 9
    context.set_alpn_protocols([protocol])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
