"""Short connections, one after another."""

import os
import random

from locust import User, between, task

from engine.demo.targets import ECHO_PORT
from loadtests.users.request import WrongAnswer, connect, exchange, target

__all__ = ["TcpChurn"]

TOKEN_MAX = 4096  # bytes


class TcpChurn(User):
    """Connects, sends a token, gets it back, closes."""

    weight = 2
    wait_time = between(0.02, 0.1)

    @task
    def token(self) -> None:
        """One connection."""
        sent = os.urandom(random.randint(1, TOKEN_MAX))
        with exchange(self, "TCP", "connect, echo, close") as made, connect(made, target(self), ECHO_PORT) as flow:
            flow.sendall(sent)
            received = b""
            while len(received) < len(sent):
                piece = flow.recv(TOKEN_MAX)
                if not piece:
                    raise ConnectionError(f"closed after {len(received)} of {len(sent)} bytes")
                received += piece
            made.size = len(received)
            if received != sent:
                raise WrongAnswer("the echo is not the token")
