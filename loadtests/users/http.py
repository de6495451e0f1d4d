"""HTTP: requests on a connection that stays open, each on a connection of its own, and connections that are merely held."""

import random
import socket
import time

import gevent.local
from geventhttpclient.connectionpool import ConnectionPool
from locust import FastHttpUser, User, between, constant, task
from locust.exception import StopUser
from locust.user.task import LOCUST_STATE_STOPPING

from engine.demo.targets import HTTP_PORT, http_request, http_response
from loadtests.flow_ends import FlowEnds
from loadtests.users.request import TIMEOUT, Exchange, WrongAnswer, connect, exchange, target

__all__ = ["Http", "HttpHold", "HttpShort", "get"]

PATHS = 10_000
HOLD = 10.0
"""Seconds between two requests on a connection that is held."""


class _Flows(gevent.local.local):
    """The connection that this user (a greenlet) has made last."""

    last: FlowEnds | None = None


class _LastFlow:
    """Stands in the context of a request, which is made before its connection is."""

    @property
    def flow(self) -> FlowEnds | None:
        """Of the request, when it has ended: a user makes one request at a time."""
        return _flows.last


_flows = _Flows()
_last_flow = _LastFlow()


def _note_connection(pool: ConnectionPool, sock: socket.socket) -> None:
    _flows.last = FlowEnds.of(sock)


ConnectionPool.after_connect = (
    _note_connection  # the library's hook, of a class that locust names nowhere to be replaced
)


def get(user: FastHttpUser, name: str, **headers: str) -> None:
    """Fetch a page, whose body tells its path."""
    path = f"/page{random.randrange(PATHS)}"
    context = {"last": _last_flow}
    with user.client.get(path, name=name, headers=headers, catch_response=True, context=context) as response:
        if response.status_code == 200 and response.content != http_response(path).partition(b"\r\n\r\n")[2]:
            response.failure(WrongAnswer("the body is not that of the page"))


class Http(FastHttpUser):
    """A page every 50 to 150 ms, on one connection."""

    weight = 4
    wait_time = between(0.05, 0.15)
    connection_timeout = network_timeout = TIMEOUT

    @task
    def page(self) -> None:
        """One page."""
        get(self, "GET keep-alive")


class HttpShort(FastHttpUser):
    """A page every 100 to 300 ms, each on a connection of its own."""

    weight = 2
    wait_time = between(0.1, 0.3)
    connection_timeout = network_timeout = TIMEOUT

    @task
    def page(self) -> None:
        """One page."""
        get(self, "GET short", Connection="close")


class HttpHold(User):
    """Holds a connection for as long as the test takes and asks for a page every HOLD seconds.

    On a plain socket: ten thousand of these are to fit.
    """

    wait_time = constant(0)
    _flow: socket.socket | None = None
    _ends: FlowEnds | None = None

    @task
    def page(self) -> None:
        """Connect if need be, wait, ask."""
        if self._flow is None:
            with exchange(self, "HTTP", "hold: connect") as made:
                self._flow = connect(made, target(self), HTTP_PORT)
                self._ends = made.flow
        if self._flow is None:
            self.wait_a_while()
            return
        self.wait_a_while()
        if self._state == LOCUST_STATE_STOPPING:
            raise StopUser  # ten thousand that close at once, with a request of each under way, are another test
        with exchange(self, "HTTP", "hold: GET", self._ends) as made:
            self._ask(made)

    def wait_a_while(self) -> None:
        """Wait, not in step with the others."""
        time.sleep(random.uniform(0.5, 1.5) * HOLD)

    def _ask(self, made: Exchange) -> None:
        assert self._flow is not None
        path = f"/hold{random.randrange(PATHS)}"
        expected = http_response(path)
        answer = b""
        try:
            self._flow.sendall(http_request(path))
            while len(answer) < len(expected):
                piece = self._flow.recv(4096)
                if not piece:
                    raise ConnectionError(f"closed after {len(answer)} of {len(expected)} bytes")
                answer += piece
        except OSError:
            self._flow.close()
            self._flow = None
            raise
        made.size = len(answer)
        if answer != expected:
            raise WrongAnswer("the answer is not that to the request")

    def on_stop(self) -> None:
        """Close the connection."""
        if self._flow is not None:
            self._flow.close()
