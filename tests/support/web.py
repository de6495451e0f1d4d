"""An HTTP server for bulk transfers: GET serves one large file, PUT answers with the SHA-256 of what it was sent."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.netns import Namespace
from tests.support.sockets import pseudo_random, tcp_server

__all__ = ["Blob", "make_blob", "web_server"]

BLOCK = 1_048_583  # bytes; a prime, so that no two aligned pieces of the file are alike
PIECE = 256 * 1024


@dataclass(frozen=True)
class Blob:
    """A file and its hash."""

    path: Path
    size: int
    sha256: str


def make_blob(path: Path, size: int) -> Blob:
    """Write a file of `size` bytes."""
    block, digest = pseudo_random(BLOCK), hashlib.sha256()
    with path.open("wb") as file:
        for at in range(0, size, BLOCK):
            piece = block[: size - at]
            digest.update(piece)
            file.write(piece)
    return Blob(path, size, digest.hexdigest())


@contextmanager
def web_server(internet: Namespace, host: str, blob: Blob) -> Iterator[str]:
    """Serve `blob` at any path of the URL that this gives."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(blob.size))
            self.end_headers()
            self.wfile.flush()
            with blob.path.open("rb") as file:
                self.connection.sendfile(file)

        def do_PUT(self) -> None:
            digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
            while left and (piece := self.rfile.read(min(left, PIECE))):
                digest.update(piece)
                left -= len(piece)
            answer = digest.hexdigest().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the output of the tests clean."""

    listener = tcp_server(internet, host)
    listener.settimeout(None)
    server = ThreadingHTTPServer(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = listener.getsockname()[1]
        yield f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
