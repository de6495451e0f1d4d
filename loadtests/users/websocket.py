"""WebSocket: messages both ways on a connection that began as HTTP (RFC 6455)."""

import os
import random

import websocket
from locust import User, between, task

from loadtests.flow_ends import FlowEnds
from loadtests.targets import WEBSOCKET_PORT
from loadtests.users.request import TIMEOUT, WrongAnswer, exchange, target

__all__ = ["WebSocket", "chat"]

MESSAGES = 10
MESSAGE_MAX = 20_000  # bytes


def chat(user: User) -> None:
    """Open a WebSocket, exchange some messages, close it."""
    host = f"[{target(user)}]" if ":" in target(user) else target(user)
    flow: websocket.WebSocket | None = None
    ends: FlowEnds | None = None
    with exchange(user, "WebSocket", "open") as made:
        flow = _guarded(websocket.create_connection, f"ws://{host}:{WEBSOCKET_PORT}/", timeout=TIMEOUT)
        ends = made.flow = FlowEnds.of(flow.sock)
    if flow is None:
        return
    try:
        for _ in range(MESSAGES):
            sent = os.urandom(random.randint(1, MESSAGE_MAX))
            with exchange(user, "WebSocket", "message", ends) as made:
                _guarded(flow.send_binary, sent)
                received = _guarded(flow.recv)
                made.size = len(received)
                if received != sent:
                    raise WrongAnswer("the echo is not the message")
            if made.size == 0:  # it failed
                return
    finally:
        flow.shutdown()


def _guarded(call, *arguments, **options):  # type: ignore[no-untyped-def]
    """Call into the library, whose errors are not OSErrors."""
    try:
        return call(*arguments, **options)
    except websocket.WebSocketException as error:
        raise ConnectionError(str(error)) from error


class WebSocket(User):
    """One chat after another."""

    wait_time = between(0.1, 0.5)

    @task
    def talk(self) -> None:
        """One chat."""
        chat(self)
