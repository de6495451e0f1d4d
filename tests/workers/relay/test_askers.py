"""workers/relay/askers.py: one look-up a socket, and what becomes of the questions that wait for it."""

import asyncio
import socket

import pytest

from shared.metrics import CELLS, Cell
from shared.rules.flow import Ends
from tests.support.loop import on_loop, until
from workers.relay import askers as module
from workers.relay.askers import Askers

SERVER = socket.inet_aton("192.0.2.53")
HOST = socket.inet_aton("10.0.0.2")


def ends(port: int = 40000) -> Ends:
    return Ends("udp", HOST, port, SERVER, 53)


class Bed:
    """Askers whose look-ups are answered by the test: `answers`, by port."""

    def __init__(self) -> None:
        self.counters = [0] * CELLS
        self.asked: list[int] = []
        self.answers: dict[int, asyncio.Future[tuple[bool, bool]]] = {}
        self.passed: list[tuple[bytes, bool]] = []
        self.askers = Askers(asyncio.get_running_loop(), self.counters, self._find)

    async def _find(self, flow: Ends) -> tuple[bool, bool]:
        self.asked.append(flow.source_port)
        return await self.answers.setdefault(flow.source_port, asyncio.get_running_loop().create_future())

    def hold(self, payload: bytes, port: int = 40000) -> None:
        self.askers.hold(ends(port), payload, lambda _, query, is_own: self.passed.append((query, is_own)))

    async def find(self, *, is_own: bool, lasts: bool = True, port: int = 40000) -> None:
        """The master says whose the socket is."""
        await until(lambda: port in self.answers)
        self.answers.pop(port).set_result((is_own, lasts))
        number = len(self.passed)
        await until(lambda: len(self.passed) > number)

    def knows(self, after: float = 0.0, port: int = 40000) -> bool:
        return self.askers.knows((HOST, port), asyncio.get_running_loop().time() + after)


@on_loop
async def test_all_that_a_socket_asks_waits_for_one_look_up() -> None:
    bed = Bed()
    for payload in (b"a", b"b", b"c"):
        bed.hold(payload)
    await bed.find(is_own=False)
    assert bed.passed == [(b"a", False), (b"b", False), (b"c", False)]
    assert bed.asked == [40000]


@on_loop
async def test_application_is_known_for_a_while() -> None:
    bed = Bed()
    assert not bed.knows()
    bed.hold(b"a")
    await bed.find(is_own=False)
    assert bed.knows()
    assert not bed.knows(after=module.KNOWN_FOR)
    assert not bed.knows(port=40001)


@pytest.mark.parametrize(("is_own", "lasts"), [(True, True), (True, False), (False, False)])
@on_loop
async def test_others_are_found_out_each_time(is_own: bool, lasts: bool) -> None:
    bed = Bed()
    for payload in (b"a", b"b"):
        bed.hold(payload)
        await bed.find(is_own=is_own, lasts=lasts)
        assert not bed.knows()
    assert bed.passed == [(b"a", is_own), (b"b", is_own)]
    assert bed.asked == [40000, 40000]


@on_loop
async def test_no_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 2)
    monkeypatch.setattr(module, "HELD_MAX", 2)
    bed = Bed()
    for payload in (b"a", b"b", b"too many of one"):
        bed.hold(payload)
    bed.hold(b"c", port=40001)
    bed.hold(b"one socket too many", port=40002)
    assert bed.counters[Cell.DROP_DNS_LIMIT] == 2
    await bed.find(is_own=False)
    await bed.find(is_own=True, port=40001)
    assert bed.passed == [(b"a", False), (b"b", False), (b"c", True)]


@on_loop
async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN_MAX", 2)
    bed = Bed()
    for port in (1, 2, 3):
        bed.hold(b"a", port)
        await bed.find(is_own=False, port=port)
    assert [bed.knows(port=port) for port in (1, 2, 3)] == [False, False, True]


@on_loop
async def test_close_gives_up() -> None:
    bed = Bed()
    bed.hold(b"a")
    await until(lambda: bed.asked == [40000])
    bed.askers.close()
    await asyncio.sleep(0)
    await until(lambda: bed.answers[40000].cancelled())
    assert bed.passed == []
