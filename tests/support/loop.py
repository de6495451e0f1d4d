"""Tests that are coroutines, run on the loop that the product runs on."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import uvloop

P = ParamSpec("P")

HANGS_AFTER = 30.0  # seconds; only turns a hang into a failure that names the test


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine test on a fresh uvloop; it fails when it takes HANGS_AFTER seconds."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(HANGS_AFTER):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds: for what has no event of its own, such as a counter in shared memory."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)
