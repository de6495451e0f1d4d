"""engine/http/latest.py: one question for many, and a new one when the answer is old."""

import asyncio

import pytest

from engine.http import latest as module
from engine.http.latest import Latest
from tests.support.loop import on_loop, until


class Engine:
    """Counts questions; answers when told, with their number or an error."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.fails = False

    async def fetch(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may_answer.wait()
        if self.fails:
            raise TimeoutError
        return number


@on_loop
async def test_all_who_wait_get_one_answer_and_who_leaves_takes_nothing_with_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    engine = Engine()
    latest = Latest(engine.fetch, 1.0)
    waiting = [asyncio.ensure_future(latest.get()) for _ in range(50)]
    await until(lambda: engine.asked == 1)
    waiting[0].cancel()
    now += 2  # it takes two seconds, so that it is good for ten
    engine.may_answer.set()
    assert await asyncio.gather(*waiting[1:]) == [1] * 49
    now += 9.9
    assert await latest.get() == 1
    now += 0.2
    assert await latest.get() == 2
    now += 0.9
    assert await latest.get() == 2
    now += 0.2
    assert (await latest.get(), engine.asked) == (3, 3)


@on_loop
async def test_a_failure_is_not_kept() -> None:
    engine = Engine()
    engine.fails = True
    engine.may_answer.set()
    latest = Latest(engine.fetch, 60.0)
    with pytest.raises(TimeoutError):
        await latest.get()
    engine.fails = False
    assert await latest.get() == 2
