"""DNS over HTTPS (RFC 8484): POST of one message a stream of one HTTP/2 connection. The framing is the library h2's."""

import asyncio
from collections import deque
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from workers.dns import ConnectionLost, ServerFailed
from workers.dns.servers.connection import Connection

__all__ = ["HttpsConnection"]

MEDIA_TYPE = "application/dns-message"
MESSAGE_MAX = 65535
"""Bytes of the largest DNS message; a longer body is not read."""
STREAMS_MAX = 100
"""Questions under way over one connection, where the server does not say fewer (RFC 9113 6.5.2 asks for no less)."""


class _Stream:
    """One question: its answer, and what of it has come."""

    __slots__ = ("answer", "body", "status")

    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self.answer = answer
        self.status = 0
        self.body = bytearray()

    def end(self, result: bytes | Exception) -> None:
        if self.answer.done():
            return
        if isinstance(result, bytes):
            self.answer.set_result(result)
        else:
            self.answer.set_exception(result)


class HttpsConnection(Connection):
    """One HTTP/2 connection."""

    idle_timeout = 60.0  # a new one costs two round trips and the check of a certificate

    def __init__(self, loop: asyncio.AbstractEventLoop, authority: str, path: str) -> None:
        super().__init__(loop)
        self._headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", authority),
            (":path", path),
            ("accept", MEDIA_TYPE),
            ("content-type", MEDIA_TYPE),
        ]
        self._refusal: str | None = None  # why this server will never do
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._streams: dict[int, _Stream] = {}
        self._queue: deque[asyncio.Future[None]] = deque()  # questions that wait for a stream

    async def ask(self, message: bytes) -> bytes:
        """Return the answer to a message. Raises ConnectionLost, ServerFailed."""
        while self.usable and len(self._streams) >= self._streams_max():
            turn: asyncio.Future[None] = self._loop.create_future()
            self._queue.append(turn)
            await turn
        if self._refusal is not None:
            raise ServerFailed(self._refusal)
        if not self.usable:
            raise ConnectionLost
        self._stop_idle()
        stream = _Stream(self._loop.create_future())
        try:
            ident = self._http.get_next_available_stream_id()
            self._http.send_headers(ident, [*self._headers, ("content-length", str(len(message)))])
            # Zero is the identifier that makes equal questions equal requests (RFC 8484 section 4.1).
            self._http.send_data(ident, b"\0\0" + message[2:], end_stream=True)
        except h2.exceptions.ProtocolError as error:  # no stream identifiers are left, or no window
            self.abort()
            raise ConnectionLost from error
        self._streams[ident] = stream
        self._flush()
        try:
            return await stream.answer
        finally:
            del self._streams[ident]
            if not stream.answer.done() or stream.answer.cancelled():
                self._cancel(ident)
            self._on_stream_free()

    def _streams_max(self) -> int:
        return min(STREAMS_MAX, self._http.remote_settings.max_concurrent_streams)

    def _cancel(self, ident: int) -> None:
        """Nobody waits for the answer any more."""
        if self.usable:
            try:
                self._http.reset_stream(ident, error_code=8)  # CANCEL, RFC 9113 section 7
            except h2.exceptions.ProtocolError:
                return
            self._flush()

    def _on_stream_free(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        if not self._streams:
            self._start_idle()

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up: our half of the HTTP/2 preface."""
        super().connection_made(transport)
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            self._refusal = "the server does not speak HTTP/2"
            self.abort()
            return
        self._http.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what has come apart into events."""
        super().data_received(data)
        try:
            events = self._http.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            self.abort()
            return
        for event in events:
            self._on_event(event)
        self._flush()

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=ident, headers=headers):
                if ident in self._streams:
                    self._streams[ident].status = _status(headers)
            case h2.events.DataReceived(stream_id=ident, data=data, flow_controlled_length=length):
                self._http.acknowledge_received_data(length or 0, ident or 0)
                if ident in self._streams:
                    self._on_data(self._streams[ident], data or b"")
            case h2.events.StreamEnded(stream_id=ident):
                if ident in self._streams:
                    self._on_end(self._streams[ident])
            case h2.events.StreamReset(stream_id=ident):
                if ident in self._streams:
                    self._streams[ident].end(ConnectionLost())
            case h2.events.ConnectionTerminated():
                self.usable = False  # answers under way may still come (RFC 9113 6.8)

    def _on_data(self, stream: _Stream, data: bytes) -> None:
        stream.body += data
        if len(stream.body) > MESSAGE_MAX:
            stream.end(ServerFailed("the answer over HTTPS is longer than a DNS message"))

    def _on_end(self, stream: _Stream) -> None:
        if stream.status == 200:
            stream.end(bytes(stream.body))
        else:
            stream.end(ServerFailed(f"the server answers with HTTP status {stream.status}"))

    def _fail_all(self) -> None:
        for stream in self._streams.values():
            stream.end(ConnectionLost())
        for turn in self._queue:
            if not turn.done():
                turn.set_result(None)
        self._queue.clear()


def _status(headers: Iterable[tuple[bytes | str, bytes | str]] | None) -> int:
    for name, value in headers or ():
        if name in (":status", b":status"):
            return int(value)
    return 0
