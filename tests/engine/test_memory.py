"""engine/memory.py: who waits for a measurement, and who does not."""

import asyncio
import os
import threading

import pytest

from engine import memory
from engine.memory import AGE, AGE_MAX, ProcessMemory, proportional_set_size
from tests.support.loop import on_loop, until


class Kernel:
    """Tells how often it was asked; answers when the test lets it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        self.lets = threading.Event()
        self.lets.set()
        self.now = 1000.0
        patch.setattr(memory, "monotonic", lambda: self.now)

    def measure(self, pid: int) -> int:
        self.asked.append(pid)
        assert self.lets.wait(20)
        return len(self.asked)


@on_loop
async def test_first_who_asks_waits_and_others_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    sizes = ProcessMemory(kernel.measure)
    assert await sizes.of([1, 2]) == {1: 1, 2: 2}
    kernel.now += AGE - 0.1
    assert await sizes.of([1, 2]) == {1: 1, 2: 2}
    assert kernel.asked == [1, 2]


@on_loop
async def test_nobody_waits_for_what_is_not_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    sizes = ProcessMemory(kernel.measure)
    await sizes.of([1])
    kernel.lets.clear()
    kernel.now += AGE
    for _ in range(3):
        assert await sizes.of([1]) == {1: 1}, "while the kernel takes its time"
    await until(lambda: kernel.asked == [1, 1])
    kernel.lets.set()
    await until(lambda: sizes._running is None)
    assert await sizes.of([1]) == {1: 2}
    assert kernel.asked == [1, 1]


@on_loop
async def test_what_is_too_old_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    sizes = ProcessMemory(kernel.measure)
    await sizes.of([1])
    kernel.now += AGE_MAX
    assert await sizes.of([1]) == {1: 2}


@on_loop
async def test_process_that_took_the_place_of_another_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    sizes = ProcessMemory(kernel.measure)
    await sizes.of([1, 2])
    assert await sizes.of([1, 3]) == {1: 3, 3: 4}


@on_loop
async def test_process_that_is_new_while_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    sizes = ProcessMemory(kernel.measure)
    kernel.lets.clear()
    first = asyncio.ensure_future(sizes.of([1]))
    await until(lambda: kernel.asked == [1])
    second = asyncio.ensure_future(sizes.of([1, 2]))
    kernel.lets.set()
    assert await first == {1: 1}
    assert await second == {1: 2, 2: 3}


def test_the_kernel_tells_and_says_nothing_of_nobody() -> None:
    own = proportional_set_size(os.getpid())
    assert own is not None and own > 1024 * 1024
    assert proportional_set_size(2**22 + 1) is None
