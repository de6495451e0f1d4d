"""A SOCKS5 server: CONNECT and UDP ASSOCIATE, IPv4, IPv6 and names, with or without a password (RFC 1928, RFC 1929).

    python -m engine.demo.socks_server --listen HOST:PORT [--user NAME --password-fd N] [--no-udp] [--reuse-port]

prints `listening HOST:PORT` when it is ready, and ends on SIGTERM. The demo, the tests and the benchmark send their traffic
through it. Sessions are callbacks over raw sockets: streams and tasks would cost more than what is being measured.
"""

import argparse
import asyncio
import errno
import hmac
import os
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Self

import uvloop

from engine.demo.socks_tcp import BUFFER_SIZE, Joint
from engine.demo.socks_udp import UdpAssociation
from shared.wire.socks5 import (
    CONNECT,
    DOMAIN,
    NO_ACCEPTABLE_METHOD,
    NO_AUTHENTICATION,
    PASSWORD_VERSION,
    UDP_ASSOCIATE,
    USERNAME_PASSWORD,
    VERSION,
    Reply,
    encode_address,
    parse_address,
)

__all__ = ["SocksServer"]

BACKLOG = 4096
ACCEPTS_PER_TURN = 64
CONNECT_TIMEOUT = 10.0
"""Seconds for a destination to answer."""
HANDSHAKE_MAX = 64 * 1024
"""Bytes a client may send before the reply to its request: the handshake and data sent ahead."""

_REPLIES = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.HOST_UNREACHABLE,
    errno.EACCES: Reply.NOT_ALLOWED,
    errno.EPERM: Reply.NOT_ALLOWED,
    errno.EAFNOSUPPORT: Reply.ADDRESS_TYPE_NOT_SUPPORTED,
}
"""REP of a connect that failed; of any other error GENERAL_FAILURE."""

_NO_ENDPOINT = ("0.0.0.0", 0)


class SocksServer:
    """Listens and owns the sessions. `close` ends all of them. The constructor raises OSError."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        credentials: tuple[bytes, bytes] | None = None,
        udp: bool = True,
        reuse_port: bool = False,
    ) -> None:
        """`reuse_port`: several servers may listen at the same port, and the kernel spreads the clients over them."""
        self.loop = loop
        self.credentials = credentials
        self.udp = udp
        self.buffer = memoryview(bytearray(BUFFER_SIZE))
        self.sessions: set[_Session | Joint] = set()
        self._listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
            reuse_port=reuse_port,
        )
        self._listener.setblocking(False)
        loop.add_reader(self._listener.fileno(), self._on_accept)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Address and port that it listens at."""
        host, port, *_ = self._listener.getsockname()
        return host, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and reset every session; harmless when repeated."""
        if self._listener.fileno() < 0:
            return
        self.loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for session in tuple(self.sessions):
            session.reset()

    def _on_accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                client, _address = self._listener.accept()
            except OSError:  # none left; or out of descriptors, and the backlog waits until sessions end
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sessions.add(_Session(self, client))


class _Session:
    """One client until its request is answered: greeting, perhaps password, request.

    `_step` is what the next bytes are to be; it consumes them and returns True, or returns False while some are missing.
    """

    def __init__(self, server: SocksServer, client: socket.socket) -> None:
        self._server = server
        self._loop = server.loop
        self._client = client
        self._input = bytearray()
        self._step: Callable[[_Session], bool] = _Session._greeting
        self._target: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._association: UdpAssociation | None = None
        self._loop.add_reader(client.fileno(), self._on_readable)

    def reset(self) -> None:
        """Close everything that belongs to the session; once it is closed, nothing."""
        if self not in self._server.sessions:
            return
        self._detach()
        self._client.close()
        if self._target is not None:
            self._loop.remove_writer(self._target.fileno())
            self._target.close()
        if self._task is not None:
            self._task.cancel()
        if self._association is not None:
            self._association.close()

    def _detach(self) -> None:
        self._server.sessions.discard(self)
        self._loop.remove_reader(self._client.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _on_readable(self) -> None:
        try:
            data = self._client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._input += data
        try:
            if not data or len(self._input) > HANDSHAKE_MAX:
                raise ValueError("the client is gone, or sends on and on")
            while self._step(self):
                pass
        except (ValueError, OSError):
            self.reset()

    def _consume(self, size: int) -> bytes:
        data = bytes(self._input[:size])
        del self._input[:size]
        return data

    # RFC 1928, section 3

    def _greeting(self) -> bool:
        if len(self._input) < 2 or len(self._input) < 2 + self._input[1]:
            return False
        version, _, *methods = self._consume(2 + self._input[1])
        if version != VERSION:
            raise ValueError("not SOCKS5")
        wanted = NO_AUTHENTICATION if self._server.credentials is None else USERNAME_PASSWORD
        if wanted not in methods:
            self._client.send(bytes((VERSION, NO_ACCEPTABLE_METHOD)))
            raise ValueError("no acceptable method")
        self._client.send(bytes((VERSION, wanted)))
        self._step = _Session._request if wanted == NO_AUTHENTICATION else _Session._password
        return True

    # RFC 1929, section 2

    def _password(self) -> bool:
        data = self._input
        if len(data) < 2 or len(data) < 3 + data[1] or len(data) < 3 + data[1] + data[2 + data[1]]:
            return False
        name_size, password_size = data[1], data[2 + data[1]]
        message = self._consume(3 + name_size + password_size)
        given = message[2 : 2 + name_size], message[3 + name_size :]
        expected = self._server.credentials
        assert expected is not None, "asked for a password only when there is one"
        # Both are compared, and in constant time, so that the time tells nothing.
        granted = hmac.compare_digest(given[0], expected[0]) & hmac.compare_digest(given[1], expected[1])
        self._client.send(bytes((PASSWORD_VERSION, 0 if granted else 1)))
        if not granted:
            raise ValueError("wrong user name or password")
        self._step = _Session._request
        return True

    # RFC 1928, section 4

    def _request(self) -> bool:
        parsed = parse_address(self._input, 3)
        if parsed is None:
            return False
        kind, address, port, size = parsed
        _, command, *_ = self._consume(size)
        self._step = _Session._answered
        if command == UDP_ASSOCIATE and self._server.udp:
            self._associate()
        elif command != CONNECT:
            self._refuse(Reply.COMMAND_NOT_SUPPORTED)
        elif kind == DOMAIN:
            self._task = self._loop.create_task(self._connect_by_name(address.decode("ascii", "replace"), port))
        else:
            self._connect(str(ip_address(address)), port)
        return False

    def _answered(self) -> bool:
        """What the client sends while its connection is being made stays in `_input`; on an association it means nothing."""
        if self._association is not None:
            self._input.clear()
        return False

    def _reply(self, reply: Reply, endpoint: tuple[str, int]) -> None:
        host, port = endpoint
        address = encode_address(ip_address(host.partition("%")[0]).packed, port)
        self._client.send(bytes((VERSION, reply, 0)) + address)

    def _refuse(self, reply: Reply) -> None:
        try:
            self._reply(reply, _NO_ENDPOINT)
        except OSError:  # the client is gone
            pass
        self.reset()

    # CONNECT

    async def _connect_by_name(self, name: str, port: int) -> None:
        try:
            infos = await self._loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # unknown, or not a host name at all
            infos = []
        self._task = None
        try:
            if infos:
                self._connect(str(infos[0][4][0]), port)
            else:
                self._refuse(Reply.HOST_UNREACHABLE)
        except OSError:
            self.reset()

    def _connect(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._target = socket.socket(family, socket.SOCK_STREAM)
        self._target.setblocking(False)
        code = self._target.connect_ex((host, port))
        if code == errno.EINPROGRESS:
            # On the same machine the answer has come before the first call returned.
            code = self._target.connect_ex((host, port))
        if code == errno.EISCONN:  # as macOS says it to who asks twice
            code = 0
        if code == errno.EALREADY:
            self._loop.add_writer(self._target.fileno(), self._on_connected)
            self._timer = self._loop.call_later(CONNECT_TIMEOUT, self._refuse, Reply.HOST_UNREACHABLE)
        else:
            self._conclude(code)

    def _on_connected(self) -> None:
        assert self._target is not None, "set by _connect"
        self._loop.remove_writer(self._target.fileno())
        try:
            self._conclude(self._target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except OSError:
            self.reset()

    def _conclude(self, code: int) -> None:
        """The target has answered: reply, and hand both sockets to a Joint. Raises OSError when the client is gone."""
        target = self._target
        assert target is not None, "set by _connect"
        if code:
            self._refuse(_REPLIES.get(code, Reply.GENERAL_FAILURE))
            return
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reply(Reply.SUCCEEDED, target.getsockname()[:2])
        self._detach()
        joint = Joint(self._loop, self._client, target, self._server.buffer, self._server.sessions.discard)
        self._server.sessions.add(joint)
        joint.start(bytes(self._input))

    # UDP ASSOCIATE

    def _associate(self) -> None:
        local, client = self._client.getsockname()[0], self._client.getpeername()[0]
        self._association = UdpAssociation(self._loop, local, client, self._server.buffer)
        self._reply(Reply.SUCCEEDED, self._association.endpoint)


async def _serve(options: argparse.Namespace, credentials: tuple[bytes, bytes] | None) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    host, _, port = options.listen.rpartition(":")
    with SocksServer(
        loop,
        host.strip("[]"),
        int(port),
        credentials=credentials,
        udp=options.udp,
        reuse_port=options.reuse_port,
    ) as server:
        host, port = server.endpoint
        print(f"listening [{host}]:{port}" if ":" in host else f"listening {host}:{port}", flush=True)
        await stopped.wait()


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m engine.demo.socks_server", description="A SOCKS5 server.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="port 0: any free one")
    parser.add_argument("--user", help="ask clients for this user name and a password")
    parser.add_argument(
        "--password-fd", type=int, metavar="N", help="descriptor to read the password from, up to its end"
    )
    parser.add_argument("--no-udp", dest="udp", action="store_false", help="answer UDP ASSOCIATE with reply 7")
    parser.add_argument("--reuse-port", action="store_true", help="share the port with other servers like this one")
    options = parser.parse_args()
    if (options.user is None) != (options.password_fd is None):
        parser.error("--user and --password-fd belong together")
    credentials = None
    if options.user is not None:
        with os.fdopen(options.password_fd, "rb") as file:
            credentials = (options.user.encode(), file.read().rstrip(b"\n"))
    uvloop.run(_serve(options, credentials))


if __name__ == "__main__":
    main()
