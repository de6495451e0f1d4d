"""Questions to the workers, and their answers put together."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

from engine.supervisor import Supervisor
from shared.config import Policy
from shared.control import (
    AskDns,
    Delay,
    DnsAnswered,
    Flows,
    FromMaster,
    ListFlows,
    LookedUp,
    LookUp,
    Reload,
    Reloaded,
    TestDelay,
)

__all__ = ["Answers"]

TIMEOUT = 5.0
"""Seconds for all workers to answer; what one has not said by then is not waited for."""

DNS_TIMEOUT = 12.0  # seconds; the service's own is ten

Answer = Flows | Delay | LookedUp | Reloaded | DnsAnswered


@dataclass
class _Question:
    """One question under way."""

    waiting: set[int]
    """Workers that have not (or not wholly) answered."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    answers: list[tuple[int, Answer]] = field(default_factory=list)


class Answers:
    """Give it the workers' reports that are answers."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._numbers = count(1)
        self._questions: dict[int, _Question] = {}

    def on_answer(self, worker: int, answer: Answer) -> None:
        """A worker has answered; too late is too late."""
        question = self._questions.get(answer.id)
        if question is None or worker not in question.waiting:
            return
        question.answers.append((worker, answer))
        if not isinstance(answer, Flows) or answer.last:
            question.waiting.discard(worker)
            if not question.waiting:
                question.done.set()

    async def flows(self, *, owners: bool = False) -> list[tuple[int, bytes]]:
        """Return all live flows in parts: the number of a worker, and what shared.control.decode_views decodes.

        They are not decoded here: ten thousand would hold up the packets. `owners`: programs are looked up first.
        """
        answers = await self._ask(lambda number: self._supervisor.send_all(ListFlows(number, owners)), TIMEOUT)
        return [(worker, bytes(answer.flows)) for worker, answer in answers if isinstance(answer, Flows)]

    async def test_delay(self, outbound: str, url: str, timeout: float) -> Delay:
        """Fetch `url` through an outbound, in one worker; return how long that took, or why it failed."""

        answers = await self._ask_one(lambda number: TestDelay(number, outbound, url, timeout), timeout + TIMEOUT)
        for _, answer in answers:
            if isinstance(answer, Delay):
                return answer
        return Delay(0, None, "no worker answered")

    async def look_up(self, name: str, timeout: float) -> LookedUp:
        """Look a name up past all proxies, in one worker."""
        for _, answer in await self._ask_one(lambda number: LookUp(number, name), timeout):
            if isinstance(answer, LookedUp):
                return answer
        return LookedUp(0, (), "no worker answered")

    async def ask_dns(self, query: bytes) -> bytes:
        """Have the DNS service of one worker answer a message; empty when there is no answer."""
        answers = await self._ask_one(lambda number: AskDns(number, query), DNS_TIMEOUT)
        return next((answer.answer for _, answer in answers if isinstance(answer, DnsAnswered)), b"")

    async def reload(self, policy: Policy) -> dict[int, str | None]:
        """Have all workers follow `policy`; return what each has said: None for yes, else why not.

        A worker that is missing in the answer was not running (it will start with what Supervisor.set_policy says), or has
        not answered.
        """
        answers = await self._ask(lambda number: self._supervisor.send_all(Reload(number, policy)), TIMEOUT)
        return {worker: answer.error for worker, answer in answers if isinstance(answer, Reloaded)}

    async def _ask_one(self, question: Callable[[int], FromMaster], timeout: float) -> list[tuple[int, Answer]]:
        """Ask the first worker that listens, of those that take new flows."""

        def send(number: int) -> list[int]:
            asked = question(number)
            workers = (worker.index for worker in self._supervisor.current)
            return next(([index] for index in workers if self._supervisor.send(index, asked)), [])

        return await self._ask(send, timeout)

    async def _ask(self, send: Callable[[int], list[int]], timeout: float) -> list[tuple[int, Answer]]:
        """Send a question with a new number; `send` returns whom. Returns what has come when all have answered, or in time."""
        number = next(self._numbers)
        question = self._questions[number] = _Question(set())
        try:
            question.waiting |= set(send(number))
            if question.waiting:
                await _in_time(question.done.wait(), timeout)
        finally:
            del self._questions[number]
        return question.answers


async def _in_time(waiting: Awaitable[object], timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await waiting
    except TimeoutError:
        pass
