"""DNS servers on loopback whose behaviour a test chooses: UDP, streams, HTTP/2."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.support.peers import Endpoint
from tests.workers.dns.messages import reply
from workers.dns import Server

__all__ = ["DohServer", "answer_a", "at_once", "closed", "doh_server", "framed_server", "socket_to", "udp_server"]

RECORD = "example.com. 300 IN A 192.0.2.1"
Handler = Callable[[bytes], bytes | None]


def answer_a(query: bytes) -> bytes:
    """The usual answer."""
    return reply(query, RECORD, edns=0)


@contextmanager
def udp_server(handler: Callable[[bytes], list[bytes]], host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """Send what `handler` makes of each datagram."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, 0))

        def serve() -> None:
            data, peer = sock.recvfrom(65536)
            for answer in handler(data):
                sock.sendto(answer, peer)

        loop.add_reader(sock.fileno(), serve)
        try:
            yield sock.getsockname()[:2]
        finally:
            loop.remove_reader(sock.fileno())


@dataclass
class FramedServer:
    """A DNS server over a stream."""

    endpoint: Endpoint
    connections: int = 0
    questions: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def hang_up(self) -> None:
        """Close all connections."""
        for writer in self.writers:
            writer.close()
        self.writers.clear()


@asynccontextmanager
async def framed_server(
    handler: Callable[[list[bytes]], list[bytes]], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FramedServer]:
    """Give `handler` all questions of a connection that have no answer yet; it returns answers, and empties the list."""
    made = FramedServer(("", 0))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        made.writers.append(writer)
        open_questions: list[bytes] = []
        try:
            while True:
                question = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                made.questions.append(question)
                open_questions.append(question)
                for answer in handler(open_questions):
                    writer.write(len(answer).to_bytes(2, "big") + answer)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made.endpoint = server.sockets[0].getsockname()[:2]
    try:
        yield made
    finally:
        made.hang_up()
        server.close()


def at_once(open_questions: list[bytes]) -> list[bytes]:
    """Handler of framed_server: answer each question as it comes."""
    answers = [answer_a(question) for question in open_questions]
    open_questions.clear()
    return answers


async def socket_to(endpoint: Endpoint) -> socket.socket:
    """A connected, non-blocking socket, as an outbound gives it."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, endpoint)
    except OSError:
        sock.close()
        raise
    return sock


async def closed(server: Server) -> None:
    """Close a server of ours, and let the loop close its sockets."""
    server.close()
    for _ in range(5):
        await asyncio.sleep(0)


@dataclass
class DohServer:
    """A server of RFC 8484 and what it has been asked."""

    endpoint: Endpoint
    handler: Handler
    status: int = 200
    streams_max: int = 100
    connections: list["_DohConnection"] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    most_streams: int = 0


class _DohConnection(asyncio.Protocol):
    def __init__(self, server: DohServer) -> None:
        self.server = server
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.waiting: dict[int, bytes] = {}
        self.unsent: dict[int, bytes] = {}
        server.connections.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        values = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self.server.streams_max}
        self.http.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.http.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            match event:
                case h2.events.RequestReceived(stream_id=ident, headers=headers):
                    self.server.requests.append(dict(headers))  # type: ignore[arg-type]
                    self.waiting[ident] = b""
                    self.server.most_streams = max(self.server.most_streams, len(self.waiting))
                case h2.events.DataReceived(stream_id=ident, data=body):
                    self.waiting[ident] += body
                case h2.events.StreamEnded(stream_id=ident):
                    self.server.bodies.append(self.waiting[ident])
                    asyncio.get_running_loop().call_soon(self.respond, ident)
                case h2.events.StreamReset(stream_id=ident):
                    self.unsent.pop(ident, None)
        self.flush()

    def respond(self, ident: int) -> None:
        """Answer in a later turn, so that questions pile up."""
        answer = self.server.handler(self.waiting.pop(ident))
        if answer is None:
            return
        self.http.send_headers(
            ident, [(":status", str(self.server.status)), ("content-type", "application/dns-message")]
        )
        self.unsent[ident] = answer
        self.flush()

    def flush(self) -> None:
        """Send what the windows allow."""
        for ident, answer in tuple(self.unsent.items()):
            while answer and (size := min(self.http.local_flow_control_window(ident), 16384)):
                self.http.send_data(ident, answer[:size])
                answer = answer[size:]
            self.unsent[ident] = answer
            if not answer:
                del self.unsent[ident]
                self.http.end_stream(ident)
        self.transport.write(self.http.data_to_send())  # type: ignore[attr-defined]


@asynccontextmanager
async def doh_server(tls: ssl.SSLContext, handler: Handler = answer_a, **options: int) -> AsyncIterator[DohServer]:
    """Answer POST requests over HTTP/2."""
    made = DohServer(("", 0), handler, **options)
    server = await asyncio.get_running_loop().create_server(lambda: _DohConnection(made), "127.0.0.1", 0, ssl=tls)
    made.endpoint = server.sockets[0].getsockname()[:2]
    try:
        yield made
    finally:
        for connection in made.connections:
            connection.transport.abort()  # type: ignore[attr-defined]
        server.close()
