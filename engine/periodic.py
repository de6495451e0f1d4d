"""Calls that repeat on an event loop."""

import asyncio
from collections.abc import Callable

__all__ = ["every"]


def every(loop: asyncio.AbstractEventLoop, interval: float, call: Callable[[], None]) -> Callable[[], None]:
    """Call `call` every `interval` seconds; return what ends that."""
    handle: asyncio.TimerHandle

    def tick() -> None:
        nonlocal handle
        handle = loop.call_later(interval, tick)
        call()

    handle = loop.call_later(interval, tick)
    return lambda: handle.cancel()
