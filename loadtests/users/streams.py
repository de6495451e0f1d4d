"""Long transfers at a steady rate, every byte checked (engine/demo/bulk.py)."""

import random
import socket
import time
from collections.abc import Callable
from time import monotonic

from locust import User, between, task

from engine.demo import bulk
from engine.demo.targets import BULK_PORT
from loadtests.users.request import WrongAnswer, connect, exchange, target

__all__ = ["StreamDown", "StreamUp", "download", "transfer"]

RATE = 25e6 / 8
"""Bytes per second of one stream: a good video."""
ORDER_SIZE = 128 * 1024
"""Bytes that a download asks for at a time."""
SECONDS = (2.0, 6.0)
"""How long a transfer takes, between."""


def transfer(user: User, name: str, move: Callable[..., int], seconds: float) -> None:
    """Move data with bulk.upload or `download` for `seconds`, at RATE on average."""
    began, moved = monotonic(), 0

    def pace(size: int) -> None:
        nonlocal moved
        moved += size
        ahead = moved / RATE - (monotonic() - began)
        if ahead > 0:
            time.sleep(ahead)

    with exchange(user, "TCP", name) as made, connect(made, target(user), BULK_PORT) as flow:
        try:
            made.size = move(flow, seconds, pace)
        except bulk.TransferError as error:
            raise WrongAnswer(str(error)) from error


def download(flow: socket.socket, seconds: float, on_progress: Callable[[int], None]) -> int:
    """bulk.download, in small orders, so that it ends soon after its time."""
    return bulk.download(flow, seconds, on_progress, order_size=ORDER_SIZE)


class StreamUp(User):
    """Sends for some seconds, pauses, begins anew."""

    wait_time = between(0.0, 1.0)

    @task
    def send(self) -> None:
        """One upload."""
        transfer(self, "stream up", bulk.upload, random.uniform(*SECONDS))


class StreamDown(User):
    """Receives for some seconds, pauses, begins anew."""

    wait_time = between(0.0, 1.0)

    @task
    def receive(self) -> None:
        """One download."""
        transfer(self, "stream down", download, random.uniform(*SECONDS))
