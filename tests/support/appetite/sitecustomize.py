"""A worker that is sent SIGUSR1 eats memory: put this directory on PYTHONPATH; no line of the product knows of it."""

import signal
import sys
from types import FrameType

SIZE = 400 * 1024 * 1024
eaten: list[bytes] = []


def eat(number: int, frame: FrameType | None) -> None:
    eaten.append(b"\1" * SIZE)


if sys.orig_argv[1:4] == ["-P", "-m", "workers"]:
    signal.signal(signal.SIGUSR1, eat)
