"""The control socket of a running engine, RUN_DIR/control.sock (root's alone, 0600), and its client.

One connection, one request, one reply, each a line of JSON: {"command": "status"} or {"command": "stop"}. What may be asked
and what is answered stands in engine/requests.py.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from engine.requests import Reply, Request

__all__ = ["ControlServer", "NotRunning", "ask"]

REPLY_MAX = 256 * 1024 * 1024
"""Bytes; twenty thousand flows take about fourteen million."""
REQUEST_MAX = 64 * 1024
CLIENT_TIMEOUT = 15.0  # seconds; stopping takes the longest

_decode_request = msgspec.json.Decoder(Request).decode
_decode_reply = msgspec.json.Decoder(Reply).decode


class NotRunning(Exception):
    """No engine listens on that control socket; the text is one sentence for the user."""


class ControlServer:
    """Listens on `path`; `handle` answers a request."""

    def __init__(self, path: Path, handle: Callable[[Request], Awaitable[Reply]]) -> None:
        self._path = path
        self._handle = handle
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError when the socket cannot be made."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(old_mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_MAX)

    async def stop(self) -> None:
        """Close; connections that wait for a reply are closed with the loop."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            try:
                reply = await self._handle(_decode_request(line))
            except (msgspec.MsgspecError, RecursionError) as error:
                reply = Reply(error=f"not a request: {error}")
            for piece in _pieces(reply):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        except (OSError, ValueError):
            pass  # the client went away, or sent a line without end
        finally:
            writer.close()


def _pieces(reply: Reply) -> Iterator[bytes]:
    """Yield a reply's line of JSON; flows in parts, since all of them at once would keep the packets waiting."""
    if reply.flows is None:
        yield msgspec.json.encode(reply)
    else:
        yield b'{"flows":['
        for number, part in enumerate(reply.flows):
            yield (b"," if number else b"") + msgspec.json.encode(part)
        yield b"]}"
    yield b"\n"


def ask(run_dir: Path, request: Request, *, timeout: float = CLIENT_TIMEOUT) -> Reply:
    """Send `request` to the engine of `run_dir` and return its reply. Raises NotRunning."""
    path = run_dir / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect(str(path))
            client.sendall(msgspec.json.encode(request) + b"\n")
            data = client.makefile("rb").readline(REPLY_MAX)
        except PermissionError:
            raise NotRunning(f"{path} is root's: ask again with sudo") from None
        except TimeoutError:
            raise NotRunning(f"the engine behind {path} does not answer") from None
        except OSError:
            raise NotRunning(f"no engine is running (nothing listens on {path})") from None
    if not data:
        raise NotRunning(f"the engine behind {path} went away")
    try:
        return _decode_reply(data)
    except msgspec.MsgspecError:
        raise NotRunning(f"what listens on {path} does not answer like an engine of this version") from None
